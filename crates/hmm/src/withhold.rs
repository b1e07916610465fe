//! Managed memory is kept from the children of forks that nobody hears of.
//!
//! The kernel reports forks only to those who may trace (`CAP_SYS_PTRACE`). Without, the child of a fork that was not
//! arranged would read zeroes where pages are away, and nobody would know. Rather no memory there than wrong bytes: what is
//! registered is kept from children (`MADV_DONTFORK`), who get SIGSEGV, and `EFAULT` from system calls. While a fork is
//! arranged no page is away, nor does any leave, and children have all of it, with what comes meanwhile ([`Mm::lend`],
//! [`Mm::withhold_all`]).
//!
//! The kernel has one flag for that, ours and the program's: what the program keeps from its children is noted, and
//! stays kept.

use std::sync::atomic::Ordering;

use hmm_core::addr::{PageRange, Vpn};
use hmm_uapi::mapping::Advice;
use rustix::io::Errno;

use crate::adopt::is_manageable;
use crate::mm::{Mm, range_of};

impl Mm {
    /// Keeps a range from children, before it is registered. Does nothing where forks are heard of.
    ///
    /// # Errors
    /// What `madvise(2)` says; the range must not be registered then.
    pub(crate) fn withhold(&self, range: PageRange) -> Result<(), Errno> {
        if self.reports_forks() || self.is_lent.load(Ordering::Relaxed) {
            return Ok(());
        }
        // SAFETY: nothing changes in this process.
        unsafe { hmm_uapi::sys::madvise(range_of(range), Advice::DontFork) }
    }

    /// Lets children have a range that is not to be registered after all.
    pub(crate) fn lend_range(&self, range: PageRange) {
        if !self.reports_forks() {
            // SAFETY: nothing changes in this process. It fails where nothing is mapped any more.
            let _ = unsafe { hmm_uapi::sys::madvise(range_of(range), Advice::DoFork) };
        }
    }

    /// Lets the children of forks have what is registered, but for what the program keeps from them. For the time in which no
    /// page is away. Does nothing where forks are heard of. To be called where nobody else works on the engine, as all that
    /// comes before [`withhold_all`](Self::withhold_all); again, when events have been read, if mappings were changing.
    ///
    /// A mapping can have grown in place: what is new of it is kept from children as the rest is, and in no extent before it is
    /// found. So mappings are lent, not extents. Those that are lent grow by what is lent as well.
    pub fn lend(&self) {
        self.is_lent.store(true, Ordering::Relaxed);
        if self.reports_forks() {
            return;
        }
        // Where the last one ends: one that has grown since it was looked at goes on there, as a mapping of its own.
        let mut behind = Vpn(0);
        for vma in self.maps().iter_from(0).map_while(Result::ok) {
            let mapping = PageRange::of_bytes(vma.start, vma.end);
            let is_ours = self.extents.next_in(mapping.start, mapping.end).is_some();
            if is_manageable(&vma) && (is_ours || behind == mapping.start) {
                behind = self.lend_mapping(mapping);
            }
        }
    }

    /// Gives where it ends, if its end is lent.
    fn lend_mapping(&self, mapping: PageRange) -> Vpn {
        let mut at = mapping.start;
        loop {
            let kept = self.extents.withheld().next_in(at, mapping.end);
            let next = kept.unwrap_or(PageRange::new(mapping.end, 0));
            self.lend_range(PageRange { start: at, end: next.start });
            match kept {
                None => return mapping.end,
                // What it grows by is kept as it is.
                Some(kept) if kept.end == mapping.end => return Vpn(0),
                Some(kept) => at = kept.end,
            }
        }
    }

    /// Keeps all that is registered from children again, and gives what that is. If mappings were changing it is to be done once
    /// more when events have been read, and what turns out to be others' by then is to be lent.
    #[must_use = "some of it may be others'"]
    pub fn withhold_all(&self) -> Vec<PageRange> {
        self.is_lent.store(false, Ordering::Relaxed);
        let mut all = vec![];
        let mut at = Vpn(0);
        while !self.reports_forks()
            && let Some(extent) = self.extents.next_in(at, Vpn(u64::MAX >> 12))
        {
            at = extent.end;
            // A part that was unmapped meanwhile makes it fail; the rest is done.
            let _ = self.withhold(extent);
            all.push(extent);
        }
        all
    }

    /// Lets children have what is not registered of ranges that were taken for it.
    pub fn lend_others(&self, ranges: &[PageRange]) {
        for range in ranges {
            let mut rest = *range;
            while let Some(gap) = self.extents.first_gap(rest) {
                self.lend_range(gap);
                rest.start = gap.end;
            }
        }
    }

    /// The program keeps a range from its children, or does so no longer (`MADV_DONTFORK`, `MADV_DOFORK`), and has told the
    /// kernel.
    pub fn program_withholds(&self, range: PageRange, withholds: bool) {
        let mut at = range.start;
        while !self.reports_forks()
            && let Some(part) = self.extents.next_in(at, range.end)
        {
            at = part.end;
            if withholds {
                self.extents.withheld().set(part);
            } else {
                self.extents.withheld().remove(part);
                let _ = self.withhold(part);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_moves_and_ends_with_its_mapping() {
        let extents = crate::extents::Extents::default();
        let all = PageRange::new(Vpn(0), 1000);
        let kept = || {
            let mut kept = vec![];
            let mut at = all.start;
            while let Some(part) = extents.withheld().next_in(at, all.end) {
                at = part.end;
                kept.push((part.start.0, part.end.0));
            }
            kept
        };
        extents.set_vma(PageRange::new(Vpn(10), 20));
        extents.withheld().set(PageRange::new(Vpn(12), 6));
        extents.withheld().set(PageRange::new(Vpn(16), 4));
        assert_eq!(kept(), [(12, 16), (16, 20)]);
        extents.moved(PageRange::new(Vpn(14), 10), Vpn(104));
        assert_eq!(kept(), [(12, 16), (16, 20), (104, 106), (106, 110)]);
        extents.remove(PageRange::new(Vpn(14), 10));
        assert_eq!(kept(), [(12, 14), (104, 106), (106, 110)]);
        extents.set_vma(PageRange::new(Vpn(100), 20));
        extents.withheld().remove(PageRange::new(Vpn(105), 2));
        assert_eq!(kept(), [(12, 14), (104, 105), (107, 110)]);
    }
}
