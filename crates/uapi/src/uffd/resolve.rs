//! The verbs that answer faults.
//!
//! The kernel reports progress in a field of the argument: bytes done, or a negated error, or nothing at all when it
//! gave up early. After partial progress it only says `EAGAIN`, whatever the reason was. So the verbs go on behind what
//! is done until all is done, or until a call makes no progress at all, whose error is the real reason. Every turn but
//! the last makes at least a page of progress, which bounds the loop.

use linux_raw_sys::general::{
    self as raw, uffdio_copy, uffdio_move, uffdio_poison, uffdio_writeprotect, uffdio_zeropage,
};
use linux_raw_sys::ioctl::{UFFDIO_COPY, UFFDIO_WRITEPROTECT, UFFDIO_ZEROPAGE};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, opcode};

use super::{IOC_GROUP, Userfaultfd, raw as raw_range};
use crate::ioc;
use crate::range::AddrRange;

// The bindings lack these two, and the constants of their modes.
const UFFDIO_MOVE: Opcode = opcode::read_write::<uffdio_move>(IOC_GROUP, 5);
const UFFDIO_POISON: Opcode = opcode::read_write::<uffdio_poison>(IOC_GROUP, 8);
const _: () = assert!(raw::_UFFDIO_MOVE == 5 && raw::_UFFDIO_POISON == 8);
const UFFDIO_MOVE_MODE_DONTWAKE: u64 = 1 << 0;
const UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES: u64 = 1 << 1;
const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1 << 0;

bitflags::bitflags! {
    /// How to copy.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct CopyMode: u64 {
        /// Let who waits wait on.
        const DONTWAKE = raw::UFFDIO_COPY_MODE_DONTWAKE as u64;
        /// Map the pages write-protected. The range is registered for that.
        const WRITE_PROTECT = raw::UFFDIO_COPY_MODE_WP as u64;
    }

    /// How to move.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct MoveMode: u64 {
        /// Let who waits wait on.
        const DONTWAKE = UFFDIO_MOVE_MODE_DONTWAKE;
        /// Holes of the source are skipped and count as done.
        const ALLOW_SRC_HOLES = UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES;
    }
}

/// How far a verb came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "bytes behind `done_bytes` were not resolved"]
pub struct Outcome {
    /// Bytes done, from the front.
    pub done_bytes: u64,
    /// Why the page behind them was not; `None` when all are done.
    pub stop: Option<Errno>,
}

impl Outcome {
    /// Whether everything asked for was done.
    pub const fn is_complete(self) -> bool {
        self.stop.is_none()
    }
}

/// Repeats `step` behind what is done. It makes the ioctl for the bytes from the given offset, and gives its result
/// with the field that tells the progress.
fn advance(len: u64, mut step: impl FnMut(u64) -> (Result<(), Errno>, i64)) -> Outcome {
    let mut done_bytes = 0;
    while done_bytes < len {
        let (Err(errno), field) = step(done_bytes) else { break };
        match u64::try_from(field) {
            Ok(bytes) if bytes > 0 => done_bytes = done_bytes.saturating_add(bytes),
            _ => return Outcome { done_bytes, stop: Some(errno) },
        }
    }
    Outcome { done_bytes: len, stop: None }
}

impl Userfaultfd {
    /// Fills holes at `dst` with copies of the `len` bytes at `src`, and wakes who waits for them. Works in read-only
    /// mappings, too. Safe by the contract of [`register`](Self::register): nothing but holes of registered ranges is
    /// written; `src` is only read, by the kernel, which does not mind if it changes or is not there.
    ///
    /// Stops with `EEXIST` at a page that is there, `EAGAIN` while an event is unread, `EFAULT` where `src` cannot be
    /// read, `ENOENT` where the destination is not registered, `ENOMEM`, `EINVAL` (unaligned), or `ESRCH` when the
    /// address space is gone.
    pub fn copy(&self, src: u64, dst: u64, len: u64, mode: CopyMode) -> Outcome {
        advance(len, |done| {
            let mut arg = uffdio_copy {
                dst: dst.wrapping_add(done),
                src: src.wrapping_add(done),
                len: len - done,
                mode: mode.bits(),
                copy: 0,
            };
            // SAFETY:
            // 1. the opcode takes a `uffdio_copy`.
            // 2. it writes to holes of registered ranges only, which their registrar allowed.
            let result = unsafe { ioc::call(self, UFFDIO_COPY, &mut arg) };
            (result.map(drop), arg.copy)
        })
    }

    /// Maps the shared zero page into the range's holes (it takes no memory until written to), and wakes who waits.
    /// Stops as [`copy`](Self::copy) does.
    pub fn zero(&self, range: AddrRange) -> Outcome {
        advance(range.len(), |done| {
            let mut arg = uffdio_zeropage { range: raw_range(behind(range, done)), mode: 0, zeropage: 0 };
            // SAFETY:
            // 1. the opcode takes a `uffdio_zeropage`.
            // 2. it fills holes of registered ranges only, which their registrar allowed.
            let result = unsafe { ioc::call(self, UFFDIO_ZEROPAGE, &mut arg) };
            (result.map(drop), arg.zeropage)
        })
    }

    /// Makes every access to the range's holes raise SIGBUS, and wakes who waits. Stops as [`copy`](Self::copy) does.
    /// Undone by `MADV_DONTNEED`.
    pub fn poison(&self, range: AddrRange) -> Outcome {
        advance(range.len(), |done| {
            let mut arg = uffdio_poison { range: raw_range(behind(range, done)), mode: 0, updated: 0 };
            // SAFETY:
            // 1. the opcode takes a `uffdio_poison`.
            // 2. it changes holes of registered ranges only, which their registrar allowed.
            let result = unsafe { ioc::call(self, UFFDIO_POISON, &mut arg) };
            (result.map(drop), arg.updated)
        })
    }

    /// Moves the pages at `src` into holes at `dst`, without copying, and wakes who waits for them. A huge page stays
    /// one when both sides are aligned to it. The destination is registered with this userfaultfd; source and
    /// destination are private anonymous memory of the calling process, writable, with equal protection and locking.
    ///
    /// Stops with `EEXIST` at a destination page that is there; also at one that the call itself has moved there without counting
    /// it, as seen on Linux 6.18: then it is not at its source any more. Stops with `ENOENT` at a hole of the source (unless allowed),
    /// `EBUSY` at a page that is shared by fork or pinned, `EAGAIN` while an event is unread, `EINVAL` when the ranges
    /// overlap or are not as said above.
    ///
    /// # Safety
    /// The source's bytes are the caller's to take: nobody holds a reference into `src..src + len`, and whoever reads
    /// there afterwards expects zeroes, or a fault if the range is registered.
    pub unsafe fn r#move(&self, dst: u64, src: u64, len: u64, mode: MoveMode) -> Outcome {
        advance(len, |done| {
            let mut arg = uffdio_move {
                dst: dst.wrapping_add(done),
                src: src.wrapping_add(done),
                len: len - done,
                mode: mode.bits(),
                move_: 0,
            };
            // SAFETY:
            // 1. the opcode takes a `uffdio_move`.
            // 2. it fills holes of registered ranges only, which their registrar allowed.
            // 3. that the source may be emptied is the caller's promise.
            let result = unsafe { ioc::call(self, UFFDIO_MOVE, &mut arg) };
            (result.map(drop), arg.move_)
        })
    }

    /// Protects the range's pages from writing, or lifts that and wakes who waits to write. The kernel does not tell
    /// how far it came: after an error, repeat the whole.
    ///
    /// # Errors
    /// `EAGAIN` while an event is unread. `ENOENT`: part of the range is not registered for it. `EINVAL`: unaligned.
    pub fn write_protect(&self, range: AddrRange, protect: bool) -> Result<(), Errno> {
        let mode = if protect { UFFDIO_WRITEPROTECT_MODE_WP } else { 0 };
        let mut arg = uffdio_writeprotect { range: raw_range(range), mode };
        // SAFETY:
        // 1. the opcode takes a `uffdio_writeprotect`.
        // 2. it changes no bytes, and delays only writers of registered ranges, which their registrar allowed.
        unsafe { ioc::call(self, UFFDIO_WRITEPROTECT, &mut arg) }.map(drop)
    }

    /// Whether a change of registered mappings is under way: a call has made it, or is about to, and its event is unread,
    /// or was read so shortly ago that its thread has not gone on yet. The verbs stop with `EAGAIN` as long.
    pub fn is_changing(&self) -> bool {
        // An empty range, which no verb accepts: but that is looked at behind what we ask for.
        self.write_protect(AddrRange { start: 0, end: 0 }, false) == Err(Errno::AGAIN)
    }

    /// Whether the address space is gone that it is of: its process has ended, or executed another program. `not_registered` is a
    /// page of that address space that is registered nowhere.
    pub fn is_orphaned(&self, not_registered: AddrRange) -> bool {
        // Nothing is to be done there, which the kernel says if there is an address space to look at.
        self.write_protect(not_registered, false) == Err(Errno::SRCH)
    }
}

const fn behind(range: AddrRange, done: u64) -> AddrRange {
    AddrRange { start: range.start.wrapping_add(done), end: range.end }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advance_goes_on_after_partial_progress_and_gives_the_real_reason() {
        let mut offsets = Vec::new();
        let outcome = advance(3 * 4096, |done| {
            offsets.push(done);
            match done {
                0 => (Err(Errno::AGAIN), 4096),
                _ => (Err(Errno::EXIST), -17),
            }
        });
        assert_eq!(offsets, [0, 4096]);
        assert_eq!(outcome, Outcome { done_bytes: 4096, stop: Some(Errno::EXIST) });
    }

    #[test]
    fn advance_takes_an_untouched_field_for_no_progress() {
        let outcome = advance(4096, |_| (Err(Errno::AGAIN), 0));
        assert_eq!(outcome, Outcome { done_bytes: 0, stop: Some(Errno::AGAIN) });
    }

    #[test]
    fn advance_completes() {
        assert_eq!(advance(8192, |_| (Ok(()), 8192)), Outcome { done_bytes: 8192, stop: None });
        assert_eq!(advance(0, |_| (Err(Errno::INVAL), 0)), Outcome { done_bytes: 0, stop: None });
        let in_parts = advance(8192, |_| (Err(Errno::AGAIN), 4096));
        assert_eq!(in_parts, Outcome { done_bytes: 8192, stop: None });
    }
}
