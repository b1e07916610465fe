//! Room in the device's memory: what came first leaves first.
//!
//! What came is remembered by address. That is only a hint where to look for frames: the program may have moved or
//! unmapped the range since, or touched its pages, and then less leaves than was hoped, or nothing.

use std::collections::VecDeque;

use hmm_core::addr::PageRange;

use crate::device::Shared;
use crate::service::blocks_of;
use crate::thrash::Thrash;

/// Ranges that are remembered at most; older ones are evicted then.
const MAX_RANGES: usize = 1 << 16;

/// What is in the device's memory, oldest first.
#[derive(Debug)]
pub(crate) struct Room {
    came: VecDeque<PageRange>,
}

impl Room {
    pub(crate) fn new() -> Self {
        Self { came: VecDeque::new() }
    }

    /// A range of one block came.
    pub(crate) fn came(&mut self, range: PageRange) {
        match self.came.back_mut() {
            // Pages of one block leave together.
            Some(last) if last.end == range.start && last.start.block() == range.start.block() => {
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
            let Some(range) = self.came.pop_front() else { return };
            leave(device, thrash, range);
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
