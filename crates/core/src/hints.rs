//! What the program says of its memory beforehand: where it should be, who accesses it, and how.
//!
//! Hints change no result, only what it costs. Drivers ask for them when they serve a fault. They belong to a range of
//! addresses; when the mapping goes they are forgotten.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::addr::{PageRange, Vpn};

/// Where pages should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Preferred {
    /// In system memory: devices access them there as long as they can.
    System,
    /// On the device with this index: it fetches what it accesses, reads included.
    Device(u8),
}

/// The hints for a page. The default says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hint {
    /// Where the page should be.
    pub preferred: Option<Preferred>,
    /// It is read by many and rarely written: who reads it makes a copy, or reads it where it is, and leaves it there.
    pub read_mostly: bool,
    /// Devices (a bit for each index) that access it now and then, and should do so where it is.
    pub accessed_by: u16,
}

impl Hint {
    /// Whether the device with this index is said to access the page now and then.
    pub const fn is_accessed_by(self, device: u8) -> bool {
        self.accessed_by >> device & 1 == 1
    }
}

/// What is said of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Where it should be; `None` takes that back.
    Preferred(Option<Preferred>),
    /// Whether it is read by many and rarely written.
    ReadMostly(bool),
    /// The device with this index accesses it now and then, in place.
    AccessedBy(u8),
    /// It does not.
    NotAccessedBy(u8),
    /// Nothing: everything that was said is taken back.
    Nothing,
}

impl Hint {
    fn take(&mut self, advice: Advice) {
        match advice {
            Advice::Preferred(place) => self.preferred = place,
            Advice::ReadMostly(is_so) => self.read_mostly = is_so,
            Advice::AccessedBy(device) => self.accessed_by |= 1 << (device & 15),
            Advice::NotAccessedBy(device) => self.accessed_by &= !(1 << (device & 15)),
            Advice::Nothing => *self = Self::default(),
        }
    }
}

/// The hints of an address space.
///
/// Threads that serve faults forget ranges. So nothing is done under the lock here but on memory of hmm's own (I6).
#[derive(Debug, Default)]
pub struct Hints {
    /// Ranges with hints, by their first page; they do not overlap.
    ranges: RwLock<BTreeMap<Vpn, (Vpn, Hint)>>,
}

impl Hints {
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Vpn, (Vpn, Hint)>> {
        self.ranges.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Vpn, (Vpn, Hint)>> {
        self.ranges.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The hint for a page, and the pages around it for which it is the same.
    pub fn get(&self, page: Vpn) -> (Hint, PageRange) {
        let ranges = self.read();
        let before = ranges.range(..=page).next_back();
        if let Some((start, (end, hint))) = before
            && page < *end
        {
            return (*hint, PageRange { start: *start, end: *end });
        }
        let start = before.map_or(Vpn(0), |(_, (end, _))| *end);
        let end = ranges.range(page..).next().map_or(Vpn(u64::MAX), |(start, _)| *start);
        (Hint::default(), PageRange { start, end })
    }

    /// Says something of a range; what else was said of its parts stays.
    pub fn advise(&self, range: PageRange, advice: Advice) {
        if range.is_empty() {
            return;
        }
        let mut ranges = self.write();
        split(&mut ranges, range.start);
        split(&mut ranges, range.end);
        let mut gap = range.start;
        let parts: Vec<_> =
            ranges.range(range.start..range.end).map(|(start, value)| (*start, *value)).collect();
        let mut put = |start: Vpn, end: Vpn, mut hint: Hint| {
            if start < end {
                hint.take(advice);
                ranges.remove(&start);
                if hint != Hint::default() {
                    ranges.insert(start, (end, hint));
                }
            }
        };
        for (start, (end, hint)) in parts {
            put(gap, start, Hint::default());
            put(start, end, hint);
            gap = end;
        }
        put(gap, range.end, Hint::default());
    }

    /// Forgets what was said of a range.
    pub fn clear(&self, range: PageRange) {
        if !self.read().is_empty() {
            self.advise(range, Advice::Nothing);
        }
    }
}

/// Makes a page the first of its range, if it is in one.
fn split(ranges: &mut BTreeMap<Vpn, (Vpn, Hint)>, at: Vpn) {
    if let Some((_, value)) = ranges.range_mut(..at).next_back()
        && at < value.0
    {
        let (end, hint) = *value;
        value.0 = at;
        ranges.insert(at, (end, hint));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(start: u64, end: u64) -> PageRange {
        PageRange { start: Vpn(start), end: Vpn(end) }
    }

    #[test]
    fn parts_of_ranges_keep_what_was_said_of_them() {
        let hints = Hints::default();
        hints.advise(pages(10, 20), Advice::ReadMostly(true));
        hints.advise(pages(15, 30), Advice::Preferred(Some(Preferred::System)));
        let (both, range) = hints.get(Vpn(17));
        assert_eq!((both.read_mostly, both.preferred, range), (true, Some(Preferred::System), pages(15, 20)));
        assert_eq!(hints.get(Vpn(14)).1, pages(10, 15));
        assert_eq!(hints.get(Vpn(20)).0, Hint { preferred: Some(Preferred::System), ..Hint::default() });
        assert_eq!(hints.get(Vpn(9)), (Hint::default(), pages(0, 10)));
        assert_eq!(hints.get(Vpn(30)), (Hint::default(), pages(30, u64::MAX)));
    }

    #[test]
    fn what_is_cleared_is_gone_and_its_surroundings_are_not() {
        let hints = Hints::default();
        hints.advise(pages(0, 100), Advice::AccessedBy(3));
        hints.clear(pages(40, 60));
        assert!(hints.get(Vpn(39)).0.is_accessed_by(3));
        assert_eq!(hints.get(Vpn(40)), (Hint::default(), pages(40, 60)));
        assert!(hints.get(Vpn(60)).0.is_accessed_by(3));
        hints.clear(pages(0, 1000));
        assert_eq!(hints.get(Vpn(0)).1, pages(0, u64::MAX));
    }

    #[expect(clippy::cast_possible_truncation, reason = "of 64 pages")]
    #[test]
    fn any_order_of_updates_is_what_each_page_was_told() {
        let hints = Hints::default();
        let mut told = [0_u16; 64];
        let mut seed = 1_u64;
        for _ in 0..2000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (one, two, device) = (seed >> 58, seed >> 52 & 63, (seed >> 48 & 15) as u8);
            let range = pages(one.min(two), one.max(two));
            if seed >> 47 & 1 == 0 {
                hints.advise(range, Advice::AccessedBy(device));
                range.iter().for_each(|page| told[page.0 as usize] |= 1 << device);
            } else {
                hints.advise(range, Advice::NotAccessedBy(device));
                range.iter().for_each(|page| told[page.0 as usize] &= !(1 << device));
            }
            assert!((0..64).all(|page| hints.get(Vpn(page)).0.accessed_by == told[page as usize]));
        }
    }
}
