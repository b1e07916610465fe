//! The mappings of the program that are registered, as far as we know.
//!
//! One extent a mapping: resolving verbs fail when they cross the border of two. The program may split mappings without
//! a word (mprotect), so an extent is a guess that is corrected when the kernel refuses ([`set_vma`](Extents::set_vma)),
//! but what is not in any extent is certainly not ours.

use std::sync::{PoisonError, RwLock};

use hmm_core::addr::{PageRange, Vpn};

use crate::unshared::Unshared;
use crate::withhold::Withheld;

/// A set of disjoint extents, sorted.
#[derive(Debug, Default)]
pub struct Extents(RwLock<Vec<PageRange>>, Unshared, Withheld);

impl Extents {
    /// What is known of forks and the pages.
    pub(crate) const fn unshared(&self) -> &Unshared {
        &self.1
    }

    /// What the program keeps from its children.
    pub(crate) const fn withheld(&self) -> &Withheld {
        &self.2
    }

    /// The extent that holds the page.
    pub fn covering(&self, page: Vpn) -> Option<PageRange> {
        let extents = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let after = extents.partition_point(|extent| extent.end <= page);
        extents.get(after).copied().filter(|extent| extent.contains(page))
    }

    /// The next part at or behind `from`, in front of `end`, that is in an extent.
    pub fn next_in(&self, from: Vpn, end: Vpn) -> Option<PageRange> {
        let extents = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let after = extents.partition_point(|extent| extent.end <= from);
        let part = extents.get(after)?.intersect(PageRange { start: from, end });
        (!part.is_empty()).then_some(part)
    }

    /// The first part of the range that is in no extent.
    pub fn first_gap(&self, range: PageRange) -> Option<PageRange> {
        let mut start = range.start;
        while start < range.end {
            match self.next_in(start, range.end) {
                Some(known) if known.start == start => start = known.end,
                Some(known) => return Some(PageRange { start, end: known.start }),
                None => return Some(PageRange { start, end: range.end }),
            }
        }
        None
    }

    /// The range is one mapping, all of it registered.
    pub fn set_vma(&self, range: PageRange) {
        let mut extents = self.0.write().unwrap_or_else(PoisonError::into_inner);
        self.1.forget(range);
        remove(&mut extents, range);
        let at = extents.partition_point(|extent| extent.end <= range.start);
        extents.insert(at, range);
    }

    /// The range is not registered any more.
    pub fn remove(&self, range: PageRange) {
        let mut extents = self.0.write().unwrap_or_else(PoisonError::into_inner);
        self.1.forget(range);
        self.2.end(range);
        remove(&mut extents, range);
    }

    /// What is registered of `from` has come to `to`. It also stays what it is: that it is gone another event tells, unless
    /// the mapping stays, too.
    pub fn moved(&self, from: PageRange, to: Vpn) {
        self.2.moved(from, to);
        let mut at = from.start;
        while let Some(part) = self.next_in(at, from.end) {
            at = part.end;
            self.set_vma(PageRange::new(to.add(part.start.0 - from.start.0), part.nr_pages()));
        }
    }

    /// Pages in all extents.
    pub fn nr_pages(&self) -> u64 {
        let extents = self.0.read().unwrap_or_else(PoisonError::into_inner);
        extents.iter().map(|extent| extent.nr_pages()).sum()
    }
}

/// Takes the range out of a set of ranges.
pub(crate) fn remove(extents: &mut Vec<PageRange>, range: PageRange) {
    let first = extents.partition_point(|extent| extent.end <= range.start);
    let last = extents.partition_point(|extent| extent.start < range.end);
    if first >= last {
        return;
    }
    let before = PageRange { start: extents[first].start, end: range.start };
    let behind = PageRange { start: range.end, end: extents[last - 1].end };
    extents.splice(first..last, [before, behind].into_iter().filter(|part| !part.is_empty()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> PageRange {
        PageRange { start: Vpn(start), end: Vpn(end) }
    }

    #[test]
    fn cuts_and_finds() {
        let extents = Extents::default();
        extents.set_vma(range(10, 20));
        extents.set_vma(range(30, 40));
        extents.remove(range(12, 14));
        assert_eq!(extents.covering(Vpn(11)), Some(range(10, 12)));
        assert_eq!(extents.covering(Vpn(12)), None);
        assert_eq!(extents.next_in(Vpn(12), Vpn(99)), Some(range(14, 20)));
        assert_eq!(extents.first_gap(range(14, 40)), Some(range(20, 30)));
        assert_eq!(extents.first_gap(range(15, 20)), None);
        extents.set_vma(range(10, 40));
        assert_eq!(extents.covering(Vpn(25)), Some(range(10, 40)));
        extents.moved(range(10, 20), Vpn(100));
        assert_eq!(extents.covering(Vpn(105)), Some(range(100, 110)));
        assert_eq!(extents.covering(Vpn(15)), Some(range(10, 40)));
        extents.remove(range(0, 1000));
        assert_eq!(extents.nr_pages(), 0);
    }
}
