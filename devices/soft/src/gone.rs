//! What left the device for lack of room, and whether it comes back too soon.
//!
//! Time is counted in pages that left (Linux: the refault distance of a workingset); as many as the memory holds are a turn.
//! What comes back before some turns is wanted as much as what would have to leave for it: every page would come and go
//! each time that the work goes around, and whoever evicts the oldest always evicts what is wanted next. What may stay in system memory does so then (`service`); else what came last leaves first for a while,
//! so that a part of the work stays on the device (`room`).

use std::collections::{BTreeMap, VecDeque};

use hmm_core::addr::{PageRange, Vpn};

/// Turns in which to come back is too soon, and behind which it is seen anew whether the oldest come back.
const NR_TURNS: u64 = 4;

/// When a range left.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    end: Vpn,
    at: u64,
    /// It was the oldest: that it comes back says that there is too much. Of what came last that is nothing new.
    oldest: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Gone {
    /// What is too soon, in pages that left.
    nr_pages: u64,
    /// Pages that ever left.
    clock: u64,
    ranges: BTreeMap<Vpn, Leaving>,
    /// The ranges in the order in which they left.
    order: VecDeque<(Vpn, u64)>,
    /// Until when what came last leaves first.
    newest_until: u64,
}

impl Gone {
    pub(crate) fn new(nr_frames: usize) -> Self {
        let (ranges, order) = (BTreeMap::new(), VecDeque::new());
        Self { nr_pages: NR_TURNS * nr_frames as u64, clock: 0, ranges, order, newest_until: 0 }
    }

    /// So many pages of a range left.
    pub(crate) fn left(&mut self, range: PageRange, nr_pages: usize, oldest: bool) {
        if nr_pages == 0 {
            return;
        }
        self.clock += nr_pages as u64;
        self.ranges.insert(range.start, Leaving { end: range.end, at: self.clock, oldest });
        self.order.push_back((range.start, self.clock));
        while let Some((start, at)) = self.order.front().copied()
            && self.clock - at > self.nr_pages
        {
            self.order.pop_front();
            if self.ranges.get(&start).is_some_and(|leaving| leaving.at == at) {
                self.ranges.remove(&start);
            }
        }
    }

    fn leaving(&self, page: Vpn) -> Option<(Vpn, Leaving)> {
        let (start, leaving) = self.ranges.range(..=page).next_back()?;
        let is_recent = page < leaving.end && self.clock - leaving.at <= self.nr_pages;
        is_recent.then_some((*start, *leaving))
    }

    /// What left together with a page, if the page is wanted again too soon.
    pub(crate) fn too_soon(&self, page: Vpn) -> Option<PageRange> {
        self.leaving(page).map(|(start, leaving)| PageRange { start, end: leaving.end })
    }

    /// A page comes back, whatever that costs.
    pub(crate) fn comes_back(&mut self, page: Vpn) {
        if self.leaving(page).is_some_and(|(_, leaving)| leaving.oldest) {
            self.newest_until = self.clock + self.nr_pages;
        }
    }

    /// Whether what came last is to leave first.
    pub(crate) const fn prefers_newest(&self) -> bool {
        self.clock < self.newest_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(block: u64) -> PageRange {
        PageRange::new(Vpn(block * 512), 512)
    }

    #[test]
    fn what_comes_back_soon_is_known_and_what_comes_later_is_forgotten() {
        let mut gone = Gone::new(256);
        gone.left(range(1), 512, true);
        assert_eq!(gone.too_soon(Vpn(600)), Some(range(1)));
        assert_eq!((gone.too_soon(Vpn(511)), gone.too_soon(Vpn(1024))), (None, None));
        gone.left(range(7), 0, true);
        assert_eq!(gone.too_soon(range(7).start), None, "nothing left");
        gone.left(range(2), 512, true);
        gone.left(range(3), 512, true);
        assert_eq!(gone.too_soon(Vpn(600)), Some(range(1)));
        gone.left(range(4), 1, true);
        assert_eq!(gone.too_soon(Vpn(600)), None);
        assert_eq!((gone.ranges.len(), gone.order.len()), (3, 3));
        // What leaves again is known by the last time.
        gone.left(range(2), 512, true);
        gone.left(range(5), 800, true);
        assert!(gone.too_soon(range(2).start).is_some());
    }

    #[test]
    fn the_newest_leave_until_the_memory_was_turned_over() {
        let mut gone = Gone::new(512);
        gone.left(range(1), 512, true);
        gone.comes_back(range(3).start);
        assert!(!gone.prefers_newest(), "it was never here");
        gone.comes_back(range(1).start);
        assert!(gone.prefers_newest());
        for turn in 0..NR_TURNS {
            assert!(gone.prefers_newest(), "{turn}");
            gone.left(range(9), 512, false);
            gone.comes_back(range(9).start);
        }
        assert!(!gone.prefers_newest(), "the newest coming back is no reason to go on");
    }
}
