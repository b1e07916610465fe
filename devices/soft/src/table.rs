//! The device's page table: four levels of 512 entries, kept in step with the program's by a notifier.
//!
//! Everything here happens under the table's lock, which is the innermost of all (`hmm_core::notifier`): nothing waits,
//! nothing is allocated, and nothing but memory of the device's own is touched.
//!
//! A huge page has one entry, in the place of the node that would have entries for its pages. When a part of it changes the
//! entry is split into these, or dropped if there is no node left. It means what 512 entries would mean, no more.
//!
//! The table is a cache of what the engine knows. When its nodes are used up, all entries are dropped; those that are
//! needed come back by faults.

use std::sync::Arc;

use hmm_core::addr::{BLOCK_PAGES, BlockId, PAGE_SIZE, PageRange, Vpn};
use rustix::io::Errno;

use crate::dropped::Dropped;
use crate::error::Why;
use crate::grow::Mask;
use crate::own::OwnSlice;
use crate::tlb::Core;

const LEVELS: u32 = 4;
const NODE_BITS: u32 = 9;
const NODE_ENTRIES: usize = 1 << NODE_BITS;

/// What the table says of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Nothing: ask.
    None,
    /// It is in system memory, or where the CPU can access it, too.
    System { write: bool },
    /// It is in a frame of this device.
    Frame { frame: u32, write: bool },
    /// It is in system memory, write-protected, and a frame of this device has a copy.
    Copy { frame: u32 },
    /// Asking failed. The unit that reads this takes it away.
    Failed(Why),
}

impl Entry {
    fn pack(self) -> u64 {
        match self {
            Self::None => 0,
            Self::System { write } => 1 | u64::from(write) << 8,
            Self::Frame { frame, write } => 2 | u64::from(write) << 8 | u64::from(frame) << 9,
            Self::Copy { frame } => 4 | u64::from(frame) << 9,
            Self::Failed(why) => 3 | why.code() << 8,
        }
    }

    fn unpack(bits: u64) -> Self {
        match bits & 0xff {
            1 => Self::System { write: bits >> 8 == 1 },
            #[expect(clippy::cast_possible_truncation, reason = "packed from 32 bits")]
            2 => Self::Frame { frame: (bits >> 9) as u32, write: bits >> 8 & 1 == 1 },
            #[expect(clippy::cast_possible_truncation, reason = "packed from 32 bits")]
            4 => Self::Copy { frame: (bits >> 9) as u32 },
            3 => Self::Failed(Why::of_code(bits >> 8)),
            _ => Self::None,
        }
    }

    /// What it says of another page if it is the first one's of a huge page.
    pub(crate) fn part(self, index: usize) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "an index in a block")]
        let index = index as u32;
        match self {
            Self::Frame { frame, write } => Self::Frame { frame: frame.wrapping_add(index), write },
            same @ (Self::None | Self::System { .. } | Self::Copy { .. } | Self::Failed(_)) => same,
        }
    }
}

type Node = [u64; NODE_ENTRIES];

/// Marks the entry of a huge page, where others are numbers of nodes.
const LARGE: u64 = 1 << 63;

/// The page table, and the TLBs that are filled from it.
#[derive(Debug)]
pub(crate) struct Table {
    nodes: OwnSlice<Node>,
    /// Nodes that were ever in use; the first is the root.
    used: usize,
    /// The first of those that are not any more, each of which begins with the number of the next; 0 is none.
    spare: usize,
    nr_spare: usize,
    cores: Arc<OwnSlice<Core>>,
    /// Where frames of copies go whose entries are taken away.
    dropped: Arc<Dropped>,
    /// The first byte of the device's memory.
    frames: u64,
    /// Whether all entries were dropped once, unseen by who waits for units.
    overflowed: bool,
}

/// All pages that a table can have entries for.
pub(crate) const ALL: PageRange = PageRange { start: Vpn(0), end: Vpn(1 << (LEVELS * NODE_BITS)) };

impl Table {
    /// An empty table of at most `nr_nodes` nodes, each for 2 MiB or for more nodes; for frames from address `frames` on.
    pub(crate) fn new(
        nr_nodes: usize,
        cores: Arc<OwnSlice<Core>>,
        dropped: Arc<Dropped>,
        frames: u64,
    ) -> Result<Self, Errno> {
        // A path to one page has to fit.
        let nodes = OwnSlice::new(nr_nodes.max(LEVELS as usize))?;
        Ok(Self { nodes, used: 1, spare: 0, nr_spare: 0, cores, dropped, frames, overflowed: false })
    }

    /// What the table says of a page.
    pub(crate) fn get(&self, page: Vpn) -> Entry {
        self.look(page).0
    }

    /// What the table says of a page, and whether it says it of a huge page.
    fn look(&self, page: Vpn) -> (Entry, bool) {
        match self.below(page) {
            Below::Nothing => (Entry::None, false),
            Below::Leaf(leaf) => (Entry::unpack(self.nodes[leaf][page.index()]), false),
            Below::Huge(first) => (first.part(page.index()), true),
        }
    }

    /// Has the table say something else of a page. Whoever takes an entry for a frame away waits afterwards (`tlb::wait`).
    pub(crate) fn set(&mut self, page: Vpn, entry: Entry) {
        if self.get(page) == entry {
            return;
        }
        let leaf = self.make_leaf(page);
        let before = std::mem::replace(&mut self.nodes[leaf][page.index()], entry.pack());
        if before != 0 {
            self.note_dropped(page, before);
            self.flush(PageRange::new(page, 1));
        }
    }

    /// Enters a block as a huge page: what the table shall say of its first page. As [`set`](Self::set).
    pub(crate) fn set_huge(&mut self, block: BlockId, first: Entry) {
        let page = block.page(0);
        let parent = self.make_parent(page);
        let bits = first.pack() | LARGE;
        let before = std::mem::replace(&mut self.nodes[parent][index_at(page, 1)], bits);
        if let Below::Leaf(leaf) = Below::of(before) {
            for (page, bits) in block.pages().iter().zip(self.nodes[leaf]) {
                self.note_dropped(page, bits);
            }
            self.nodes[leaf][0] = self.spare as u64;
            self.spare = leaf;
            self.nr_spare += 1;
        }
        if before != 0 && before != bits {
            self.flush(block.pages());
        }
    }

    /// Takes the entries of a range away. Whether there were any for frames, for which one has to wait (`tlb::wait`).
    pub(crate) fn clear(&mut self, range: PageRange) -> bool {
        let range = range.intersect(ALL);
        if range.is_empty() {
            return false;
        }
        let had_frames = self.clear_node(0, LEVELS - 1, Vpn(0), range);
        self.flush(range);
        had_frames || self.overflowed
    }

    /// Fills a unit's TLB with a page, or with the huge page that it is part of. What the table says of it.
    pub(crate) fn fill(&self, core: &Core, page: Vpn) -> Entry {
        let (entry, large) = self.look(page);
        let at = |frame: u32| self.frames + u64::from(frame) * PAGE_SIZE as u64;
        match entry {
            Entry::System { write } => core.fill(page, None, write, large),
            Entry::Frame { frame, write } => core.fill(page, Some(at(frame)), write, large),
            Entry::Copy { frame } => core.fill(page, Some(at(frame)), false, large),
            Entry::None | Entry::Failed(_) => {}
        }
        entry
    }

    /// Takes the copies of a range away; how many there were. One has to wait for units afterwards (`tlb::wait`).
    pub(crate) fn clear_copies(&mut self, range: PageRange) -> usize {
        let mut nr = 0;
        for (block, part) in range.intersect(ALL).blocks() {
            if !matches!(self.below(block.page(0)), Below::Leaf(_)) {
                continue;
            }
            for page in part.map(|index| block.page(index)) {
                if matches!(self.get(page), Entry::Copy { .. }) {
                    self.set(page, Entry::None);
                    nr += 1;
                }
            }
        }
        nr
    }

    /// An entry was taken away.
    fn note_dropped(&self, page: Vpn, bits: u64) {
        if let Entry::Copy { frame } = Entry::unpack(bits) {
            self.dropped.push(page, frame);
        }
    }

    /// Which pages of a block are in frames, or have copies.
    pub(crate) fn frames_of(&self, block: BlockId) -> Mask {
        let mut mask = Mask::default();
        for page in block.pages().iter() {
            if matches!(self.get(page), Entry::Frame { .. } | Entry::Copy { .. }) {
                mask.set(page.index());
            }
        }
        mask
    }

    fn flush(&self, range: PageRange) {
        self.cores.iter().for_each(|core| core.flush(range));
    }

    /// What is below the last level but one.
    fn below(&self, page: Vpn) -> Below {
        let mut node = 0;
        for level in (2..LEVELS).rev() {
            match self.nodes[node][index_at(page, level)] {
                0 => return Below::Nothing,
                child => node = number(child),
            }
        }
        Below::of(self.nodes[node][index_at(page, 1)])
    }

    /// The node of the last level but one, with a node to spare.
    fn make_parent(&mut self, page: Vpn) -> usize {
        if self.used + LEVELS as usize > self.nodes.len() + self.nr_spare {
            self.start_over();
        }
        let mut node = 0;
        for level in (2..LEVELS).rev() {
            let index = index_at(page, level);
            if self.nodes[node][index] == 0 {
                self.nodes[node][index] = self.take_node().unwrap_or(0) as u64;
            }
            node = number(self.nodes[node][index]);
        }
        node
    }

    fn make_leaf(&mut self, page: Vpn) -> usize {
        if let Below::Leaf(leaf) = self.below(page) {
            return leaf;
        }
        let parent = self.make_parent(page);
        let at = index_at(page, 1);
        // There is one: see `make_parent`.
        let leaf = self.take_node().unwrap_or(0);
        self.split(parent, at, leaf);
        leaf
    }

    /// Puts an empty leaf in the place of nothing or of a huge page, and has it say the same.
    fn split(&mut self, parent: usize, at: usize, leaf: usize) {
        if let Below::Huge(first) = Below::of(self.nodes[parent][at]) {
            let parts = self.nodes[leaf].iter_mut().enumerate();
            parts.for_each(|(index, bits)| *bits = first.part(index).pack());
        }
        self.nodes[parent][at] = leaf as u64;
    }

    fn take_node(&mut self) -> Option<usize> {
        if self.spare != 0 {
            let node = self.spare;
            self.spare = number(self.nodes[node][0]);
            self.nr_spare -= 1;
            self.nodes[node].fill(0);
            return Some(node);
        }
        let node = self.used;
        self.used += usize::from(node < self.nodes.len());
        (node < self.nodes.len()).then_some(node)
    }

    /// Drops all entries. Those for frames may still be in use in open access windows: from now on whoever clears a range
    /// has to wait, whether it has entries or not.
    fn start_over(&mut self) {
        self.clear_node(0, LEVELS - 1, Vpn(0), ALL);
        let used = self.used;
        self.nodes[..used].iter_mut().for_each(|node| node.fill(0));
        (self.used, self.spare, self.nr_spare) = (1, 0, 0);
        self.overflowed = true;
        self.cores.iter().for_each(Core::reset);
    }

    fn clear_node(&mut self, node: usize, level: u32, base: Vpn, range: PageRange) -> bool {
        let pages = 1 << (level * NODE_BITS);
        let first = range.start.0.saturating_sub(base.0) / pages;
        let mut had_frames = false;
        for index in first..NODE_ENTRIES as u64 {
            let start = base.add(index * pages);
            if start >= range.end {
                break;
            }
            let index = number(index);
            let bits = self.nodes[node][index];
            if level == 0 {
                had_frames |= matches!(Entry::unpack(bits), Entry::Frame { .. } | Entry::Copy { .. });
                self.note_dropped(start, bits);
                self.nodes[node][index] = 0;
            } else if level == 1 && bits & LARGE != 0 {
                had_frames |= self.clear_huge(node, index, start, range);
            } else if bits != 0 {
                had_frames |= self.clear_node(number(bits), level - 1, start, range);
            }
        }
        had_frames
    }

    /// Takes a huge page's entry away, or what of it is in the range. The TLBs lose all of it.
    fn clear_huge(&mut self, parent: usize, at: usize, first: Vpn, range: PageRange) -> bool {
        let is_frame = matches!(Below::of(self.nodes[parent][at]), Below::Huge(Entry::Frame { .. }));
        let is_whole = range.start <= first && first.add(BLOCK_PAGES as u64) <= range.end;
        match if is_whole { None } else { self.take_node() } {
            Some(leaf) => {
                self.split(parent, at, leaf);
                self.clear_node(leaf, 0, first, range);
            }
            None => {
                self.nodes[parent][at] = 0;
                // Others may still be at pages of it that the range does not have.
                self.overflowed |= !is_whole && is_frame;
            }
        }
        is_frame
    }
}

/// What is below an entry of the last level but one.
#[derive(Clone, Copy, Debug)]
enum Below {
    Nothing,
    /// The node with entries for pages.
    Leaf(usize),
    /// A huge page: what the table says of its first page.
    Huge(Entry),
}

impl Below {
    fn of(bits: u64) -> Self {
        match bits {
            0 => Self::Nothing,
            bits if bits & LARGE != 0 => Self::Huge(Entry::unpack(bits & !LARGE)),
            leaf => Self::Leaf(number(leaf)),
        }
    }
}

fn index_at(page: Vpn, level: u32) -> usize {
    number(page.0 >> (level * NODE_BITS)) % NODE_ENTRIES
}

/// The number of a node, or of an entry in one.
fn number(bits: u64) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "numbers of ours have 64 bits")]
    let number = bits as usize;
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(nr_nodes: usize) -> Table {
        let cores = OwnSlice::<Core>::new(1).unwrap();
        cores[0].reset();
        let dropped = Dropped::new(Arc::new(crate::memory::Memory::new(8).unwrap())).unwrap();
        Table::new(nr_nodes, Arc::new(cores), Arc::new(dropped), 0x1000).unwrap()
    }

    const FAR: Vpn = Vpn((1 << 35) - 1);

    #[test]
    fn entries_are_what_was_set() {
        let mut table = table(64);
        let all = [
            Entry::System { write: false },
            Entry::System { write: true },
            Entry::Frame { frame: u32::MAX, write: true },
            Entry::Frame { frame: 0, write: false },
            Entry::Copy { frame: 7 },
            Entry::Failed(Why::Permission),
        ];
        for (page, entry) in (0..).map(|nr| FAR.add(nr)).zip(all) {
            assert_eq!(table.get(page), Entry::None);
            table.set(page, entry);
            assert_eq!(table.get(page), entry);
        }
        assert_eq!(table.frames_of(FAR.block()).count(0..512), 0);
        assert_eq!(table.frames_of(FAR.add(1).block()).count(0..512), 3);
    }

    #[test]
    fn only_the_range_is_cleared_and_frames_are_noticed() {
        let mut table = table(64);
        table.set(Vpn(511), Entry::System { write: true });
        table.set(Vpn(512), Entry::Frame { frame: 3, write: true });
        table.set(Vpn(513), Entry::Frame { frame: 4, write: true });
        assert!(!table.clear(PageRange::new(Vpn(0), 512)));
        assert_eq!(table.get(Vpn(511)), Entry::None);
        assert!(table.clear(PageRange::new(Vpn(512), 1)));
        assert_eq!(
            (table.get(Vpn(512)), table.get(Vpn(513))),
            (Entry::None, Entry::Frame { frame: 4, write: true })
        );
        assert!(table.clear(ALL));
        assert_eq!(table.get(Vpn(513)), Entry::None);
        assert!(!table.clear(ALL));
    }

    #[test]
    fn a_changed_entry_leaves_the_tlbs() {
        let mut table = table(64);
        table.set(FAR, Entry::System { write: true });
        let cores = Arc::clone(&table.cores);
        assert_eq!(table.fill(&cores[0], FAR), Entry::System { write: true });
        assert!(cores[0].enter(FAR.addr(), 8, true).is_some());
        table.set(FAR, Entry::System { write: false });
        assert_eq!(cores[0].enter(FAR.addr(), 8, true), None);
    }

    const HUGE: Entry = Entry::Frame { frame: 512, write: true };

    #[test]
    fn a_part_of_a_huge_page_goes_and_the_rest_stays() {
        let mut table = table(64);
        let block = FAR.block();
        table.set(block.page(9), Entry::System { write: true });
        table.set_huge(block, HUGE);
        assert_eq!(table.get(block.page(511)), Entry::Frame { frame: 1023, write: true });
        assert_eq!(table.frames_of(block).count(0..512), 512);
        let cores = Arc::clone(&table.cores);
        table.fill(&cores[0], block.page(3));
        let hits = |page| {
            let hit = cores[0].enter(block.page(page).addr(), 8, true).is_some();
            cores[0].leave();
            hit
        };
        assert!(hits(0) && hits(511), "one entry for all");
        assert!(!table.clear(PageRange::new(block.page(0).add(512), 512)), "another block");
        assert!(hits(77));
        assert!(table.clear(PageRange::new(block.page(5), 2)));
        assert!(!hits(0) && !hits(511));
        assert_eq!((table.get(block.page(5)), table.get(block.page(6))), (Entry::None, Entry::None));
        assert_eq!(table.frames_of(block).count(0..512), 510);
        assert_eq!(table.get(block.page(7)), Entry::Frame { frame: 519, write: true });
        assert!(table.clear(block.pages()), "those that are left are noticed");
        // The same by an entry of another kind.
        table.set_huge(block, HUGE);
        table.fill(&cores[0], block.page(3));
        table.set(block.page(8), Entry::System { write: false });
        assert!(!hits(9));
        assert_eq!(table.get(block.page(9)), Entry::Frame { frame: 521, write: true });
    }

    #[test]
    fn copies_make_place_for_a_huge_page() {
        let mut table = table(64);
        let block = FAR.block();
        table.set(block.page(9), Entry::Copy { frame: 1 });
        table.set_huge(block, Entry::System { write: false });
        assert_eq!(table.get(block.page(9)), Entry::System { write: false });
        assert_eq!(table.clear_copies(block.pages()), 0);
        assert!(!table.clear(block.pages()), "system pages need no wait");
    }

    #[test]
    fn a_huge_page_that_cannot_be_split_is_dropped() {
        // As many nodes as one path needs.
        let mut table = table(4);
        let block = FAR.block();
        table.set_huge(block, HUGE);
        table.used = table.nodes.len();
        assert!(table.clear(PageRange::new(block.page(5), 1)));
        assert_eq!(table.frames_of(block).count(0..512), 0);
        assert!(table.clear(PageRange::new(block.page(6), 1)), "units may still be at other parts of it");
    }

    #[test]
    fn nodes_that_huge_pages_replace_are_used_again() {
        let mut table = table(8);
        for round in 0..100 {
            table.set(FAR, Entry::System { write: round % 2 == 0 });
            table.set_huge(FAR.block(), HUGE);
        }
        assert!(!table.overflowed);
        assert!(table.clear(ALL) && !table.clear(ALL));
    }

    #[test]
    fn a_full_table_starts_over() {
        let mut table = table(8);
        for block in 0..100 {
            let page = BlockId(block).page(7);
            table.set(page, Entry::Frame { frame: 1, write: true });
            assert_eq!(table.get(page), Entry::Frame { frame: 1, write: true });
        }
        assert!(table.clear(PageRange::new(FAR, 1)), "who clears anything has to wait now");
    }
}
