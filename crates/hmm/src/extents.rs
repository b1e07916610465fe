//! The mappings of the program that are registered, as far as we know.
//!
//! One extent a mapping: resolving verbs fail when they cross the border of two. The program may split mappings without
//! a word (mprotect), so an extent is a guess that is corrected when the kernel refuses ([`set_vma`](Extents::set_vma)),
//! but what is not in any extent is certainly not ours.

use hmm_core::addr::{PageRange, Vpn};

use crate::ranges::Ranges;
use crate::unshared::Unshared;

/// One range for each extent.
#[derive(Debug, Default)]
pub struct Extents {
    registered: Ranges,
    /// What is known of forks and the pages.
    unshared: Unshared,
    /// What the program keeps from its children.
    withheld: Ranges,
}

impl Extents {
    /// What is known of forks and the pages.
    pub(crate) const fn unshared(&self) -> &Unshared {
        &self.unshared
    }

    /// What the program keeps from its children, of registered memory.
    pub(crate) const fn withheld(&self) -> &Ranges {
        &self.withheld
    }

    /// The extent that holds the page.
    pub fn covering(&self, page: Vpn) -> Option<PageRange> {
        self.registered.covering(page)
    }

    /// The next part at or behind `from`, in front of `end`, that is in an extent.
    pub fn next_in(&self, from: Vpn, end: Vpn) -> Option<PageRange> {
        self.registered.next_in(from, end)
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
        self.unshared.forget(range);
        self.registered.set(range);
    }

    /// The range is not registered any more.
    pub fn remove(&self, range: PageRange) {
        self.unshared.forget(range);
        self.withheld.remove(range);
        self.registered.remove(range);
    }

    /// What is registered of `from` has come to `to`. It also stays what it is: that it is gone another event tells, unless
    /// the mapping stays, too.
    pub fn moved(&self, from: PageRange, to: Vpn) {
        self.withheld.for_moved(from, to, &mut |part| self.withheld.set(part));
        self.registered.for_moved(from, to, &mut |part| self.set_vma(part));
    }

    /// Pages in all extents.
    pub fn nr_pages(&self) -> u64 {
        self.registered.nr_pages()
    }
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
