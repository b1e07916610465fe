//! Which frames are handed out: a free list that is threaded through the frame table.

use hmm_device::{DevicePfn, PAGE_SIZE};

use crate::budget::Budget;
use crate::entry::Entry;

/// Frames whose entries share a page.
const PER_PAGE: usize = PAGE_SIZE / size_of::<Entry>();
/// A table that has become larger than this is given back when the last frame is freed. Smaller ones stay, so that a
/// device that is used for a page now and then does not fault its table in each time.
const KEEP_FRAMES: usize = 16 * PER_PAGE;

/// The free list, and how far the table has been used.
#[derive(Debug, Default)]
pub(crate) struct FrameList {
    /// The first free frame's number plus one; zero for none.
    head: u64,
    /// Frames from here on were never handed out.
    high: usize,
    live: u64,
}

impl FrameList {
    /// Frames handed out and not ended.
    pub(crate) const fn live(&self) -> u64 {
        self.live
    }

    /// Hands out a frame. `None` when there is none left, or the table cannot grow.
    pub(crate) fn pop(&mut self, entries: &[Entry], budget: &Budget) -> Option<DevicePfn> {
        let index = match usize::try_from(self.head).ok()?.checked_sub(1) {
            Some(index) => {
                self.head = entries[index].next_free();
                index
            }
            None => self.grow(entries, budget)?,
        };
        entries[index].hand_out();
        self.live += 1;
        u32::try_from(index).ok().map(DevicePfn)
    }

    /// Takes back a frame that has ended.
    pub(crate) fn push(&mut self, entries: &[Entry], frame: DevicePfn) {
        entries[frame.0 as usize].set_next_free(self.head);
        self.head = u64::from(frame.0) + 1;
        self.live -= 1;
    }

    /// Forgets the table if no frame is handed out and it is large; returns its length in bytes, which have to be
    /// given back before the list is used again.
    pub(crate) fn reset(&mut self, budget: &Budget) -> Option<usize> {
        if self.live > 0 || self.high < KEEP_FRAMES {
            return None;
        }
        let len_bytes = self.high.div_ceil(PER_PAGE) * PAGE_SIZE;
        budget.uncharge(len_bytes as u64);
        *self = Self::default();
        Some(len_bytes)
    }

    fn grow(&mut self, entries: &[Entry], budget: &Budget) -> Option<usize> {
        if self.high == entries.len()
            || (self.high.is_multiple_of(PER_PAGE) && !budget.try_charge(PAGE_SIZE as u64))
        {
            return None;
        }
        self.high += 1;
        Some(self.high - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_once_and_the_table_is_charged_by_pages() {
        let entries: Vec<Entry> = (0..3 * PER_PAGE).map(|_| Entry::default()).collect();
        let budget = Budget::new(2 * PAGE_SIZE as u64, 0);
        let mut list = FrameList::default();
        let frames: Vec<DevicePfn> = std::iter::from_fn(|| list.pop(&entries, &budget)).collect();
        assert_eq!(frames.len(), 2 * PER_PAGE, "the budget ends before the table");
        assert_eq!((list.live(), budget.charged()), (2 * PER_PAGE as u64, 2 * PAGE_SIZE as u64));
        list.push(&entries, frames[7]);
        list.push(&entries, frames[3]);
        assert_eq!(list.pop(&entries, &budget), Some(frames[3]));
        assert_eq!(list.pop(&entries, &budget), Some(frames[7]));
        assert_eq!(list.pop(&entries, &budget), None);
        assert_eq!(list.reset(&budget), None, "frames are live");
    }

    #[test]
    fn a_large_table_is_given_back_when_the_last_frame_ends() {
        let entries: Vec<Entry> = (0..KEEP_FRAMES).map(|_| Entry::default()).collect();
        let budget = Budget::new(1 << 20, 0);
        let mut list = FrameList::default();
        let frames: Vec<DevicePfn> = std::iter::from_fn(|| list.pop(&entries, &budget)).collect();
        frames.iter().for_each(|frame| list.push(&entries, *frame));
        assert_eq!(list.reset(&budget), Some(16 * PAGE_SIZE));
        assert_eq!((budget.charged(), list.live()), (0, 0));
        assert_eq!(list.pop(&entries, &budget), Some(DevicePfn(0)));
    }
}
