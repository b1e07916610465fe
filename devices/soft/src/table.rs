//! The device's page table: four levels of 512 entries, kept in step with the program's by a notifier.
//!
//! Everything here happens under the table's lock, which is the innermost of all (`hmm_core::notifier`): nothing waits,
//! nothing is allocated, and nothing but memory of the device's own is touched.
//!
//! The table is a cache of what the engine knows. When its nodes are used up, all entries are dropped; those that are
//! needed come back by faults.

use std::sync::Arc;

use hmm_core::addr::{BlockId, PAGE_SIZE, PageRange, Vpn};
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
}

type Node = [u64; NODE_ENTRIES];

/// The page table, and the TLBs that are filled from it.
#[derive(Debug)]
pub(crate) struct Table {
    nodes: OwnSlice<Node>,
    /// Nodes in use; the first is the root.
    used: usize,
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
        Ok(Self { nodes, used: 1, cores, dropped, frames, overflowed: false })
    }

    /// What the table says of a page.
    pub(crate) fn get(&self, page: Vpn) -> Entry {
        match self.leaf(page) {
            Some(leaf) => Entry::unpack(self.nodes[leaf][page.index()]),
            None => Entry::None,
        }
    }

    /// Has the table say something else of a page. Whoever takes an entry for a frame away waits afterwards (`tlb::wait`).
    pub(crate) fn set(&mut self, page: Vpn, entry: Entry) {
        let leaf = self.make_leaf(page);
        let before = std::mem::replace(&mut self.nodes[leaf][page.index()], entry.pack());
        if before != 0 && before != entry.pack() {
            self.note_dropped(page, before);
            self.flush(PageRange::new(page, 1));
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

    /// Fills a unit's TLB with a page. What the table says of it.
    pub(crate) fn fill(&self, core: &Core, page: Vpn) -> Entry {
        let entry = self.get(page);
        match entry {
            Entry::System { write } => core.fill(page, None, write),
            Entry::Frame { frame, write } => {
                let at = self.frames + u64::from(frame) * PAGE_SIZE as u64;
                core.fill(page, Some(at), write);
            }
            Entry::Copy { frame } => {
                let at = self.frames + u64::from(frame) * PAGE_SIZE as u64;
                core.fill(page, Some(at), false);
            }
            Entry::None | Entry::Failed(_) => {}
        }
        entry
    }

    /// Takes the copies of a range away; how many there were. One has to wait for units afterwards (`tlb::wait`).
    pub(crate) fn clear_copies(&mut self, range: PageRange) -> usize {
        let mut nr = 0;
        for page in range.intersect(ALL).iter() {
            if matches!(self.get(page), Entry::Copy { .. }) {
                self.set(page, Entry::None);
                nr += 1;
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
        if let Some(leaf) = self.leaf(block.page(0)) {
            for (index, bits) in self.nodes[leaf].iter().enumerate() {
                if matches!(Entry::unpack(*bits), Entry::Frame { .. } | Entry::Copy { .. }) {
                    mask.set(index);
                }
            }
        }
        mask
    }

    fn flush(&self, range: PageRange) {
        self.cores.iter().for_each(|core| core.flush(range));
    }

    fn leaf(&self, page: Vpn) -> Option<usize> {
        let mut node = 0;
        for level in (1..LEVELS).rev() {
            node = child_of(self.nodes[node][index_at(page, level)])?;
        }
        Some(node)
    }

    fn make_leaf(&mut self, page: Vpn) -> usize {
        if let Some(leaf) = self.leaf(page) {
            return leaf;
        }
        if self.used + LEVELS as usize > self.nodes.len() {
            self.start_over();
        }
        let mut node = 0;
        for level in (1..LEVELS).rev() {
            let index = index_at(page, level);
            node = match child_of(self.nodes[node][index]) {
                Some(child) => child,
                None => {
                    let child = self.used;
                    self.used += 1;
                    self.nodes[node][index] = child as u64;
                    child
                }
            };
        }
        node
    }

    /// Drops all entries. Those for frames may still be in use in open access windows: from now on whoever clears a range
    /// has to wait, whether it has entries or not.
    fn start_over(&mut self) {
        self.clear_node(0, LEVELS - 1, Vpn(0), ALL);
        let used = self.used;
        self.nodes[..used].iter_mut().for_each(|node| node.fill(0));
        self.used = 1;
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
            #[expect(clippy::cast_possible_truncation, reason = "an index in a node")]
            let index = index as usize;
            let bits = self.nodes[node][index];
            if level == 0 {
                had_frames |= matches!(Entry::unpack(bits), Entry::Frame { .. } | Entry::Copy { .. });
                self.note_dropped(start, bits);
                self.nodes[node][index] = 0;
            } else if let Some(child) = child_of(bits) {
                had_frames |= self.clear_node(child, level - 1, start, range);
            }
        }
        had_frames
    }
}

fn index_at(page: Vpn, level: u32) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "cut to nine bits")]
    let index = (page.0 >> (level * NODE_BITS)) as usize;
    index % NODE_ENTRIES
}

fn child_of(bits: u64) -> Option<usize> {
    #[expect(clippy::cast_possible_truncation, reason = "an index of ours")]
    (bits != 0).then_some(bits as usize)
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
