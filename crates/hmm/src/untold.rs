//! Pages that the kernel moves, and does not count.
//!
//! A page whose entry in the page table changes while `UFFDIO_MOVE` is at it (a CPU has noted that the page was accessed, a copy
//! was made of it after a fork) is tried again by the kernel. Since 6.18, which moves many pages at a time, what the second try
//! moves is not counted: the call goes on at the first page of it, finds that its place is taken, and stops there with `EEXIST`.
//! (That is what was seen, of a bare userfaultfd as well; as if the second try did not take the first one's error back.) Nor does it
//! wake who waits for these pages. Whoever took that for a place that somebody else had filled, and emptied it, would lose the
//! program's bytes.
//!
//! So `EEXIST` counts only at a page that is still at its source.

use hmm_uapi::AddrRange;
use hmm_uapi::pagemap::{PageRegion, ScanArgs};
use hmm_uapi::uffd::{MoveMode, Outcome};
use rustix::io::Errno;

use crate::mm::{Mm, OCCUPIED};

impl Mm {
    /// As [`Userfaultfd::move`](hmm_uapi::uffd::Userfaultfd::move), and all that was moved counts. With it counts what was not at
    /// the source, if there is something at its destination.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn shift(&self, dst: u64, src: u64, len: u64, mode: MoveMode) -> Outcome {
        let mut done = 0;
        while done < len {
            // SAFETY: the caller's promise, for a part of the range.
            let outcome = unsafe { self.uffd().r#move(dst + done, src + done, len - done, mode) };
            done += outcome.done_bytes;
            let rest = AddrRange { start: src + done, end: src + len };
            let untold = match outcome.stop {
                Some(Errno::EXIST) => self.first_occupied(rest) - rest.start,
                _ => 0,
            };
            if untold == 0 {
                return Outcome { done_bytes: done, stop: outcome.stop };
            }
            // It fails only for ranges that are not memory; then nobody waits there.
            let _ = self.uffd().wake(AddrRange::new(dst + done, untold));
            done += untold;
        }
        Outcome { done_bytes: len, stop: None }
    }

    /// Where the first page of the range is that is no hole; the range's end if there is none. If that cannot be told it is the
    /// first one.
    fn first_occupied(&self, range: AddrRange) -> u64 {
        let mut first = [PageRegion::default()];
        match self.pagemap().scan(range, ScanArgs::any(OCCUPIED), &mut first) {
            Ok(scanned) if scanned.nr_regions > 0 => first[0].range().start,
            Ok(scanned) => scanned.walk_end,
            Err(_) => range.start,
        }
    }
}
