//! The states of all pages: a radix tree over block numbers, whose leaves are made when they are first used.
//!
//! A block's lock covers its 512 words. Address space that was never touched costs nothing; touched blocks cost 8 bytes
//! a page and some 40 bytes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::addr::{BLOCK_PAGES, BlockId, PageRange};
use crate::policy::Note;
use crate::state::{Frame, PageState, Word};

/// log2 of the children of a node; two levels reach the 2^26 blocks of a 47-bit address space.
const FANOUT_SHIFT: u32 = 13;
const FANOUT: usize = 1 << FANOUT_SHIFT;

type Leaf = Box<[OnceLock<Box<Block>>]>;

/// All blocks.
#[derive(Debug)]
pub(crate) struct Table {
    root: Box<[OnceLock<Leaf>]>,
    bytes: AtomicU64,
}

/// 512 pages and their lock.
#[derive(Debug, Default)]
pub(crate) struct Block {
    states: Mutex<States>,
}

/// The states of a block's pages. Holding this is holding the block's lock.
pub(crate) struct States {
    words: [Word; BLOCK_PAGES],
    /// Pages in [`PageState::System`].
    nr_system: u16,
    /// Whether the policy has the block among those that may leave.
    pub(crate) queued: bool,
    /// The policy's.
    pub(crate) note: Note,
}

impl Default for States {
    fn default() -> Self {
        Self { words: [Word::default(); BLOCK_PAGES], nr_system: 0, queued: false, note: Note::default() }
    }
}

impl std::fmt::Debug for States {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let known = (0..BLOCK_PAGES).filter(|index| !self.words[*index].is_none());
        f.debug_map().entries(known.map(|index| (index, self.get(index)))).finish()
    }
}

impl States {
    // These are called for each page of a block: not to inline them was a tenth of a huge page's migration.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> PageState {
        self.words[index].state()
    }

    /// Whether the page is [`PageState::System`].
    pub(crate) const fn is_system(&self, index: usize) -> bool {
        self.words[index].is_system()
    }

    /// Sets a page's state; its pin stays.
    #[inline]
    pub(crate) fn set(&mut self, index: usize, state: PageState) {
        let word = Word::new(state).pinned(self.words[index].is_pinned());
        self.nr_system += u16::from(word.is_system());
        self.nr_system -= u16::from(self.words[index].is_system());
        self.words[index] = word;
    }

    pub(crate) const fn nr_system(&self) -> usize {
        self.nr_system as usize
    }

    pub(crate) const fn is_pinned(&self, index: usize) -> bool {
        self.words[index].is_pinned()
    }

    pub(crate) fn pin(&mut self, index: usize, pinned: bool) {
        self.words[index] = self.words[index].pinned(pinned);
    }

    /// The first frame of the large run that the pages are in, in order: a huge page on a device.
    pub(crate) fn large_run(&self) -> Option<Frame> {
        let PageState::Device { frame: first } = self.get(0) else { return None };
        let is_next = |index| {
            let frame = Frame { pfn: first.pfn.add(index), ..first };
            self.get(index) == PageState::Device { frame }
        };
        // The last one first: it tells most that are none.
        let is_run = first.pfn.is_large_start() && (1..BLOCK_PAGES).rev().all(is_next);
        is_run.then_some(first)
    }

    /// Length of the run of pages from `first`, inside `within`, whose state passes the test.
    pub(crate) fn run_while(
        &self,
        first: usize,
        within: &std::ops::Range<usize>,
        test: impl Fn(PageState) -> bool,
    ) -> usize {
        (first..within.end).take_while(|index| test(self.get(*index))).count()
    }
}

impl Block {
    pub(crate) fn lock(&self) -> MutexGuard<'_, States> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    pub(crate) fn new() -> Self {
        let root = (0..FANOUT).map(|_| OnceLock::new()).collect();
        Self { root, bytes: AtomicU64::new((FANOUT * size_of::<OnceLock<Leaf>>()) as u64) }
    }

    /// Memory that the table takes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The block, made if need be. Only for blocks of the 47-bit address space.
    pub(crate) fn block(&self, id: BlockId) -> &Block {
        let (high, low) = Self::split(id);
        let leaf = self.root[high].get_or_init(|| {
            self.bytes.fetch_add((FANOUT * size_of::<OnceLock<Box<Block>>>()) as u64, Ordering::Relaxed);
            (0..FANOUT).map(|_| OnceLock::new()).collect()
        });
        leaf[low].get_or_init(|| {
            self.bytes.fetch_add(size_of::<Block>() as u64, Ordering::Relaxed);
            Box::default()
        })
    }

    /// The block, if it was ever used.
    pub(crate) fn get(&self, id: BlockId) -> Option<&Block> {
        let (high, low) = Self::split(id);
        self.root.get(high)?.get()?[low].get().map(|block| &**block)
    }

    /// The blocks of the range that were ever used, with the indices of their pages in it. Costs a step for each of
    /// the range's blocks whose neighbourhood (16 GiB) was used, and one step for each that was not.
    pub(crate) fn used_blocks(
        &self,
        range: PageRange,
    ) -> impl Iterator<Item = (BlockId, &Block, std::ops::Range<usize>)> {
        let mut next = range.start.block().0;
        std::iter::from_fn(move || {
            while BlockId(next).page(0) < range.end {
                let id = BlockId(next);
                let (high, low) = Self::split(id);
                let Some(leaf) = self.root.get(high)?.get() else {
                    next = ((high as u64) + 1) << FANOUT_SHIFT;
                    continue;
                };
                next += 1;
                if let Some(block) = leaf[low].get() {
                    let part = range.intersect(id.pages());
                    let first = part.start.index();
                    #[expect(clippy::cast_possible_truncation, reason = "at most a block's pages")]
                    return Some((id, &**block, first..first + part.nr_pages() as usize));
                }
            }
            None
        })
    }

    #[expect(clippy::cast_possible_truncation, reason = "block numbers have 26 bits")]
    const fn split(id: BlockId) -> (usize, usize) {
        ((id.0 >> FANOUT_SHIFT) as usize, id.0 as usize & (FANOUT - 1))
    }
}

/// The page behind the last that the table covers.
pub(crate) const END: crate::addr::Vpn = crate::addr::Vpn(1 << (2 * FANOUT_SHIFT + 9));

/// Whether the page is in the part of the address space that the table covers.
pub(crate) const fn covers(page: crate::addr::Vpn) -> bool {
    page.0 < END.0
}
