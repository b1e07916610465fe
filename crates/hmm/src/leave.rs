//! Pages leave the program for staging.
//!
//! They are moved to slots that are empty. Staging is ordinary memory, in which the kernel makes zeroes wherever somebody reads
//! (a debugger, `/proc/PID/mem`) or locks all memory (`mlockall`), and nobody hears of it. So what was moved is told by what was
//! there before, and a slot that is not empty is cleared.

use hmm_core::addr::{Bay, PAGE_SIZE, PageRange, SlotRun};
use hmm_core::bits::PageSet;
use hmm_core::kernel::{Kernel, MovedOut, Stop};
use hmm_uapi::uffd::MoveMode;

use crate::adopt::is_manageable;
use crate::mm::{Mm, progress, range_of};

/// Busy pages in a row after which a block is left alone: after a fork all of its pages are.
const MAX_BUSY: usize = 16;

impl Mm {
    /// See [`Kernel::move_out`].
    pub(crate) fn take_out(&self, src: PageRange, bay: Bay) -> MovedOut {
        let pages = self.scan(range_of(src)).present;
        let stop = self.move_parts(src, bay);
        // What was not taken is still there.
        let left = if stop.is_some() { self.scan(range_of(src)).present } else { PageSet::EMPTY };
        MovedOut { pages: pages.without(&left), stop }
    }

    /// Moves one extent's part of a block out.
    fn move_part(&self, part: PageRange, bay: Bay) -> Option<Stop> {
        let mut stop = None;
        let (mut busy, mut is_cleared) = (0, false);
        let mut at = part.start;
        while at < part.end && busy < MAX_BUSY {
            let len = (part.end.0 - at.0) * PAGE_SIZE as u64;
            let dst = self.slot_addr(bay.slot(at.index()));
            // SAFETY: the range is registered with us, and taking its pages is what its registration allowed (I3: the
            // engine brings them back at the next touch).
            let outcome = unsafe { self.shift(dst, at.addr(), len, MoveMode::ALLOW_SRC_HOLES) };
            let progress = progress(outcome);
            at = at.add(progress.done as u64);
            busy = if progress.done > 0 { 0 } else { busy };
            match progress.stop {
                None => return stop,
                Some(Stop::Busy) => {
                    stop = Some(Stop::Busy);
                    busy += 1;
                    at = at.add(1);
                }
                // The slot should be empty: somebody has read it, and so there are zeroes. Nothing has been moved from here on.
                Some(Stop::Exists) if !is_cleared => {
                    is_cleared = true;
                    let len = usize::try_from(part.end.0 - at.0).unwrap_or(0);
                    self.release(SlotRun { start: bay.slot(at.index()), len });
                }
                other => return other,
            }
        }
        stop
    }

    /// The same, extent by extent.
    fn move_parts(&self, src: PageRange, bay: Bay) -> Option<Stop> {
        let mut stop = None;
        let mut at = src.start;
        while let Some(part) = self.extents.next_in(at, src.end) {
            at = part.end;
            stop = match self.move_part(part, bay) {
                Some(Stop::Unsuited) => self.move_by_vma(part, bay),
                other => other,
            }
            .or(stop);
            if stop == Some(Stop::Changing) {
                break;
            }
        }
        stop
    }

    /// The part is not one mapping any more: goes by what the kernel says now.
    fn move_by_vma(&self, part: PageRange, bay: Bay) -> Option<Stop> {
        let mut stop = None;
        let mut at = part.start;
        while at < part.end {
            let Ok(Some(vma)) = self.maps().next_vma(at.addr()) else { break };
            let piece =
                PageRange::of_bytes(vma.start, vma.end).intersect(PageRange { start: at, end: part.end });
            if piece.is_empty() {
                break;
            }
            at = piece.end;
            stop =
                if is_manageable(&vma) { self.move_part(piece, bay) } else { Some(Stop::Unsuited) }.or(stop);
        }
        stop
    }
}
