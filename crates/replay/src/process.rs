//! The pages of one process of the model, by block.

use std::collections::{BTreeMap, VecDeque};

use hmm_core::addr::{BLOCK_PAGES, BlockId, PageRange, Vpn};
use hmm_core::bits::PageSet;
use hmm_core::past::Past;
use hmm_core::policy::{Name, Note, Policy};
use hmm_core::stream::Streams;

/// Where a page is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere: it was never touched, or given up.
    #[default]
    Hole,
    /// In the program.
    Resident,
    /// In staging.
    Staged,
    /// On a device.
    Device,
}

/// A page.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Page {
    pub(crate) place: Place,
    /// It was read ahead, and not touched since.
    pub(crate) is_ahead: bool,
    /// Touching it is a fault that says how far its stream is.
    pub(crate) is_trigger: bool,
    /// Pages that had left when it did, itself included; 0 if it did not.
    pub(crate) left: u64,
}

impl Page {
    pub(crate) const fn is_in_memory(&self) -> bool {
        matches!(self.place, Place::Resident | Place::Staged)
    }
}

#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) pages: Box<[Page; BLOCK_PAGES]>,
    pub(crate) is_queued: bool,
    pub(crate) note: Note,
    pub(crate) past: Past,
}

impl Block {
    fn new() -> Self {
        let pages = Box::new([Page::default(); BLOCK_PAGES]);
        Self { pages, is_queued: false, note: Note::default(), past: Past::default() }
    }

    /// Length of the run of pages from `first` that are there.
    pub(crate) fn run(&self, first: usize, place: Place) -> usize {
        self.pages[first.min(BLOCK_PAGES)..].iter().take_while(|page| page.place == place).count()
    }
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) policy: Box<dyn Policy>,
    pub(crate) streams: Streams,
    blocks: BTreeMap<u64, Block>,
    /// What is in staging, the oldest in front.
    pub(crate) waiting: VecDeque<(BlockId, PageSet)>,
    /// Pages in memory.
    pub(crate) nr_used: u64,
    /// What is about to be somewhere else.
    pub(crate) moved_from: Option<PageRange>,
}

impl Process {
    pub(crate) fn new(policy: Name, max_window: u32) -> Self {
        Self {
            policy: policy.policy(),
            streams: Streams::new(max_window),
            blocks: BTreeMap::new(),
            waiting: VecDeque::new(),
            nr_used: 0,
            moved_from: None,
        }
    }

    /// The block, made if need be.
    pub(crate) fn block(&mut self, id: BlockId) -> &mut Block {
        self.blocks.entry(id.0).or_insert_with(Block::new)
    }

    /// The page, if its block was ever used.
    pub(crate) fn page(&self, page: Vpn) -> Option<&Page> {
        self.blocks.get(&page.block().0).map(|block| &block.pages[page.index()])
    }

    /// Pages of the range whose blocks were ever used.
    pub(crate) fn known(&self, range: PageRange) -> Vec<Vpn> {
        if range.is_empty() {
            return Vec::new();
        }
        let blocks = self.blocks.range(range.start.block().0..=Vpn(range.end.0 - 1).block().0);
        blocks.flat_map(|(id, _)| range.intersect(BlockId(*id).pages()).iter()).collect()
    }

    /// Replaces a page. Returns what it was.
    pub(crate) fn put(&mut self, at: Vpn, page: Page) -> Page {
        let before = std::mem::replace(&mut self.block(at.block()).pages[at.index()], page);
        self.nr_used += u64::from(page.is_in_memory());
        self.nr_used -= u64::from(before.is_in_memory());
        self.note_resident(at.block());
        before
    }

    /// All pages.
    pub(crate) fn pages(&self) -> impl Iterator<Item = &Page> {
        self.blocks.values().flat_map(|block| block.pages.iter())
    }

    /// Sees to it that the policy knows a block with resident pages.
    pub(crate) fn note_resident(&mut self, id: BlockId) {
        let Some(block) = self.blocks.get_mut(&id.0) else { return };
        if !block.is_queued && block.pages.iter().any(|page| page.place == Place::Resident) {
            block.is_queued = true;
            self.policy.came(id, &mut block.note);
        }
    }
}
