//! Room in the device's memory: what came first leaves first, unless that would come back too soon (`gone`).
//!
//! What came is remembered by address. That is only a hint where to look for frames: the program may have moved or
//! unmapped the range since, or touched its pages, and then less leaves than was hoped, or nothing.

use std::collections::VecDeque;

use hmm_core::addr::PageRange;

use crate::device::Shared;
use crate::gone::Gone;
use crate::service::blocks_of;
use crate::thrash::Thrash;

/// Ranges that are remembered at most; older ones are evicted then.
const MAX_RANGES: usize = 1 << 16;

/// Ranges that came last and are in use, for each unit: that it works on, that it came from, that it comes to.
const NR_IN_USE: usize = 3;

/// What is in the device's memory, oldest first.
#[derive(Debug)]
pub(crate) struct Room {
    came: VecDeque<PageRange>,
    /// Pages that leave together at most.
    most_pages: u64,
    pub(crate) gone: Gone,
}

impl Room {
    pub(crate) fn new(nr_frames: usize, most_pages: usize) -> Self {
        Self { came: VecDeque::new(), most_pages: most_pages as u64, gone: Gone::new(nr_frames) }
    }

    /// A range of one block came.
    pub(crate) fn came(&mut self, range: PageRange) {
        match self.came.back_mut() {
            // Pages of one block leave together.
            Some(last)
                if last.end == range.start
                    && last.start.block() == range.start.block()
                    && last.nr_pages() + range.nr_pages() <= self.most_pages =>
            {
                last.end = range.end;
            }
            _ => self.came.push_back(range),
        }
    }

    /// Has pages leave until so many frames are free, or nothing more leaves.
    pub(crate) fn make(&mut self, device: &Shared, thrash: &mut Thrash, nr_frames: usize) {
        if device.memory.nr_free() < nr_frames {
            device.dropped.reap(&device.cores);
        }
        while device.memory.nr_free() < nr_frames || self.came.len() > MAX_RANGES {
            let newest = self.gone.prefers_newest();
            let in_use = (NR_IN_USE * device.cores.len()).min(self.came.len() / 2) + 1;
            let range = match newest {
                true => self.came.remove(self.came.len().saturating_sub(in_use)),
                false => self.came.pop_front(),
            };
            let Some(range) = range else { return };
            let nr_left = leave(device, thrash, range);
            self.gone.left(range, nr_left, !newest);
        }
    }

    /// Has everything leave that is in a range.
    pub(crate) fn evict(&mut self, device: &Shared, thrash: &mut Thrash, range: PageRange) -> usize {
        let mut left = 0;
        for part in blocks_of(range) {
            left += leave(device, thrash, part);
        }
        left
    }
}

/// Copies are given up, everything else goes home. Returns how many pages left.
fn leave(device: &Shared, thrash: &mut Thrash, range: PageRange) -> usize {
    let uncopied = device.drop_copies(range);
    let left = device.host.migrate_home(device.owner, range);
    thrash.evicted(range);
    device.stats.uncopied.add(uncopied);
    device.stats.evicted.add(left);
    uncopied + left
}
