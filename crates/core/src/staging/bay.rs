//! A bay, and which of its slots are in which set.

use std::ops::Range;

use crate::addr::{BLOCK_PAGES, Vpn};
use crate::bits::PageSet;

#[derive(Debug)]
pub(super) struct BayState {
    pub(super) stock: PageSet,
    pub(super) spent: PageSet,
    pub(super) blank: PageSet,
    /// Slots whose memory was the program's.
    pub(super) foreign: PageSet,
    pub(super) staged: PageSet,
    pub(super) owners: Box<[Vpn; BLOCK_PAGES]>,
    pub(super) huge: bool,
    /// In the queue of bays to store, or being stored.
    pub(super) queued: bool,
    /// Kept for an eviction under way.
    pub(super) reserved: bool,
}

impl BayState {
    pub(super) fn new() -> Self {
        let mut blank = PageSet::EMPTY;
        blank.insert_range(0..BLOCK_PAGES);
        Self {
            stock: PageSet::EMPTY,
            spent: PageSet::EMPTY,
            blank,
            foreign: PageSet::EMPTY,
            staged: PageSet::EMPTY,
            owners: Box::new([Vpn(0); BLOCK_PAGES]),
            huge: false,
            queued: false,
            reserved: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.blank.len() == BLOCK_PAGES && !self.reserved
    }

    /// Slots with memory that has no meaning.
    pub(super) fn idle(&self) -> PageSet {
        self.stock.or(&self.spent)
    }

    /// The stretch of stock, spent and blank slots with the most memory, from memory to memory, and how much that is.
    pub(super) fn fullest_stretch(&self) -> Option<(Range<usize>, usize)> {
        let mut best: Option<(Range<usize>, usize)> = None;
        let mut current: Option<(Range<usize>, usize)> = None;
        for run in self.idle().runs() {
            let joined = current
                .filter(|(before, _)| (before.end..run.start).all(|index| self.blank.contains(index)))
                .map(|(before, stock)| (before.start..run.end, stock + run.len()));
            let stretch = joined.unwrap_or((run.clone(), run.len()));
            if best.as_ref().is_none_or(|(_, most)| stretch.1 > *most) {
                best = Some(stretch.clone());
            }
            current = Some(stretch);
        }
        best
    }
}
