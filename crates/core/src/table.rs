//! The states of all pages: a radix tree over block numbers, whose leaves are made when they are first used.
//!
//! A block's lock covers its 512 words. Address space that was never touched costs nothing; touched blocks cost 8 bytes
//! a page and some 40 bytes.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::addr::{BLOCK_PAGES, BlockId, PageRange};
use crate::past::Past;
use crate::policy::Note;
use crate::state::{Frame, PageState, Word};

/// log2 of the children of the root, of an inner node, and of a leaf: together the 2^26 blocks of a 47-bit address space. Who
/// touches a little here and there in a terabyte pays for a leaf at each place, so leaves are small: 256 MiB, 2 KiB.
const ROOT_SHIFT: u32 = 9;
const INNER_SHIFT: u32 = 10;
const LEAF_SHIFT: u32 = 7;
const ROOT_FANOUT: usize = 1 << ROOT_SHIFT;
const INNER_FANOUT: usize = 1 << INNER_SHIFT;
const LEAF_FANOUT: usize = 1 << LEAF_SHIFT;

type Leaf = Box<[OnceLock<Box<Block>>]>;
type Inner = Box<[OnceLock<Leaf>]>;

/// All blocks.
#[derive(Debug)]
pub(crate) struct Table {
    root: Box<[OnceLock<Inner>]>,
    bytes: AtomicU64,
    nr_blocks: AtomicUsize,
}

/// An empty node.
fn node<C>(fanout: usize) -> Box<[OnceLock<C>]> {
    (0..fanout).map(|_| OnceLock::new()).collect()
}

/// What an empty node takes.
const fn node_bytes<C>(fanout: usize) -> u64 {
    (fanout * size_of::<OnceLock<C>>()) as u64
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
    /// Of those, pages that were there still when all that can leave had left.
    pub(crate) nr_stuck: u16,
    /// Whether the policy has the block among those that may leave.
    pub(crate) queued: bool,
    /// Pages came home from a tier since the block was put into a queue of those that move down.
    pub(crate) came_home: bool,
    /// The tiers in whose queues the block is, a bit for each.
    pub(crate) on_upper: u16,
    /// What is remembered of streams.
    pub(crate) past: Past,
    /// The policy's.
    pub(crate) note: Note,
}

impl Default for States {
    fn default() -> Self {
        Self {
            words: [Word::default(); BLOCK_PAGES],
            nr_system: 0,
            nr_stuck: 0,
            queued: false,
            came_home: false,
            on_upper: 0,
            past: Past::default(),
            note: Note::default(),
        }
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
        let bytes = AtomicU64::new(node_bytes::<Inner>(ROOT_FANOUT));
        Self { root: node(ROOT_FANOUT), bytes, nr_blocks: AtomicUsize::new(0) }
    }

    /// Blocks that were ever used.
    pub(crate) fn nr_blocks(&self) -> usize {
        self.nr_blocks.load(Ordering::Relaxed)
    }

    /// Memory that the table takes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The block, made if need be. Only for blocks of the 47-bit address space.
    pub(crate) fn block(&self, id: BlockId) -> &Block {
        let (high, middle, low) = split(id);
        let count = |bytes| self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let inner = self.root[high].get_or_init(|| {
            count(node_bytes::<Leaf>(INNER_FANOUT));
            node(INNER_FANOUT)
        });
        let leaf = inner[middle].get_or_init(|| {
            count(node_bytes::<Box<Block>>(LEAF_FANOUT));
            node(LEAF_FANOUT)
        });
        leaf[low].get_or_init(|| {
            count(size_of::<Block>() as u64);
            self.nr_blocks.fetch_add(1, Ordering::Relaxed);
            Box::default()
        })
    }

    /// The block, if it was ever used.
    pub(crate) fn get(&self, id: BlockId) -> Option<&Block> {
        let (high, middle, low) = split(id);
        self.root.get(high)?.get()?[middle].get()?[low].get().map(|block| &**block)
    }

    /// The blocks of the range that were ever used, with the indices of their pages in it. Costs a step for each of
    /// the range's blocks whose neighbourhood (256 MiB) was used, and one step for each that was not.
    pub(crate) fn used_blocks(
        &self,
        range: PageRange,
    ) -> impl Iterator<Item = (BlockId, &Block, std::ops::Range<usize>)> {
        let mut next = range.start.block().0;
        std::iter::from_fn(move || {
            while BlockId(next).page(0) < range.end {
                let id = BlockId(next);
                let (high, middle, low) = split(id);
                let Some(inner) = self.root.get(high)?.get() else {
                    next = (high as u64 + 1) << (INNER_SHIFT + LEAF_SHIFT);
                    continue;
                };
                let Some(leaf) = inner[middle].get() else {
                    next = ((next >> LEAF_SHIFT) + 1) << LEAF_SHIFT;
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
}

/// Where a block is: in which inner node, in which leaf of it, and where there.
#[expect(clippy::cast_possible_truncation, reason = "block numbers have 26 bits")]
const fn split(id: BlockId) -> (usize, usize, usize) {
    let number = id.0 as usize;
    (
        number >> (INNER_SHIFT + LEAF_SHIFT),
        (number >> LEAF_SHIFT) & (INNER_FANOUT - 1),
        number & (LEAF_FANOUT - 1),
    )
}

/// The page behind the last that the table covers.
pub(crate) const END: crate::addr::Vpn = crate::addr::Vpn(1 << (ROOT_SHIFT + INNER_SHIFT + LEAF_SHIFT + 9));

/// Whether the page is in the part of the address space that the table covers.
pub(crate) const fn covers(page: crate::addr::Vpn) -> bool {
    page.0 < END.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Vpn;

    const BLOCKS: u64 = 1 << (ROOT_SHIFT + INNER_SHIFT + LEAF_SHIFT);

    #[test]
    fn blocks_are_found_where_they_were_made_and_in_order() {
        let table = Table::new();
        let leaf = 1 << LEAF_SHIFT;
        let inner = leaf << INNER_SHIFT;
        let made = [0, 1, leaf - 1, leaf, 3 * leaf + 5, inner - 1, inner, 5 * inner + 7, BLOCKS - 1];
        made.iter().for_each(|number| table.block(BlockId(*number)).lock().queued = true);
        assert!(made.iter().all(|number| table.get(BlockId(*number)).unwrap().lock().queued));
        let others = [2, leaf + 1, 2 * leaf, inner + 1, 4 * inner, BLOCKS - 2];
        assert!(others.iter().all(|number| table.get(BlockId(*number)).is_none()));
        let all = PageRange { start: Vpn(0), end: END };
        assert!(table.used_blocks(all).map(|(id, _, _)| id.0).eq(made));
        let part = PageRange { start: BlockId(1).page(7), end: BlockId(leaf).page(9) };
        let parts: Vec<_> = table.used_blocks(part).map(|(id, _, part)| (id.0, part)).collect();
        assert_eq!(parts, [(1, 7..BLOCK_PAGES), (leaf - 1, 0..BLOCK_PAGES), (leaf, 0..9)]);
    }

    /// A GiB in pieces of 2 MiB, all over a TiB.
    #[test]
    fn a_little_here_and_there_takes_little() {
        let table = Table::new();
        (0..512).for_each(|piece| drop(table.block(BlockId(piece * 1024)).lock()));
        assert!(table.bytes() < 7 << 19, "{} bytes", table.bytes());
    }
}
