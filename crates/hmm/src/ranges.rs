//! A set of pages as disjoint ranges, sorted. What was added as one range stays one, until a part of it is taken out.

use std::sync::{PoisonError, RwLock};

use hmm_core::addr::{PageRange, Vpn};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Ranges(RwLock<Vec<PageRange>>);

impl Ranges {
    /// The range that holds the page.
    pub(crate) fn covering(&self, page: Vpn) -> Option<PageRange> {
        let ranges = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let after = ranges.partition_point(|range| range.end <= page);
        ranges.get(after).copied().filter(|range| range.contains(page))
    }

    /// The next part at or behind `from`, in front of `end`, that is in a range.
    pub(crate) fn next_in(&self, from: Vpn, end: Vpn) -> Option<PageRange> {
        let ranges = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let after = ranges.partition_point(|range| range.end <= from);
        let part = ranges.get(after)?.intersect(PageRange { start: from, end });
        (!part.is_empty()).then_some(part)
    }

    /// Adds a range, as one.
    pub(crate) fn set(&self, range: PageRange) {
        let mut ranges = self.0.write().unwrap_or_else(PoisonError::into_inner);
        remove(&mut ranges, range);
        let at = ranges.partition_point(|known| known.end <= range.start);
        ranges.insert(at, range);
    }

    /// Takes a range out.
    pub(crate) fn remove(&self, range: PageRange) {
        remove(&mut self.0.write().unwrap_or_else(PoisonError::into_inner), range);
    }

    /// Calls `each` for the parts of `from`, where they would be if it were at `to`.
    pub(crate) fn for_moved(&self, from: PageRange, to: Vpn, each: &mut dyn FnMut(PageRange)) {
        let mut at = from.start;
        while let Some(part) = self.next_in(at, from.end) {
            at = part.end;
            each(PageRange::new(to.add(part.start.0 - from.start.0), part.nr_pages()));
        }
    }

    /// Pages in all ranges.
    pub(crate) fn nr_pages(&self) -> u64 {
        let ranges = self.0.read().unwrap_or_else(PoisonError::into_inner);
        ranges.iter().map(|range| range.nr_pages()).sum()
    }
}

fn remove(ranges: &mut Vec<PageRange>, range: PageRange) {
    let first = ranges.partition_point(|known| known.end <= range.start);
    let last = ranges.partition_point(|known| known.start < range.end);
    if first >= last {
        return;
    }
    let before = PageRange { start: ranges[first].start, end: range.start };
    let behind = PageRange { start: range.end, end: ranges[last - 1].end };
    ranges.splice(first..last, [before, behind].into_iter().filter(|part| !part.is_empty()));
}
