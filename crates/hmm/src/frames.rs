//! The memory of coherent devices: frames whose pages are moved into the program and back.
//!
//! It is the device's own memory in this process, registered as staging is: for write protection only, so that touching an
//! empty frame is an ordinary fault, and a page can be moved there.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hmm_core::addr::{PAGE_SIZE, PageRange};
use hmm_core::kernel::{Progress, Stop};
use hmm_uapi::AddrRange;
use hmm_uapi::mapping::Advice;
use hmm_uapi::uffd::{Modes, MoveMode, Userfaultfd};
use rustix::io::Errno;

use crate::mm::{Mm, progress, range_of};

/// What devices have lent.
#[derive(Debug, Default)]
pub(crate) struct LentFrames(Mutex<Vec<AddrRange>>);

impl LentFrames {
    fn lock(&self) -> MutexGuard<'_, Vec<AddrRange>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a device's memory. False if it is none that pages can be moved to.
    pub(crate) fn lend(&self, uffd: &Userfaultfd, memory: Range<u64>) -> bool {
        let range = AddrRange { start: memory.start, end: memory.end };
        // Pages come and go one by one: to take one out of a huge page costs a split. Where that cannot be said it is slow.
        // SAFETY: no byte changes.
        let _ = unsafe { hmm_uapi::sys::madvise(range, Advice::NoHugePage) };
        let is_lent = register(uffd, range).is_ok();
        if is_lent {
            self.lock().push(range);
        }
        is_lent
    }

    /// The memory is the device's alone again.
    pub(crate) fn end(&self, uffd: &Userfaultfd, memory: Range<u64>) {
        let range = AddrRange { start: memory.start, end: memory.end };
        // It fails if the device has unmapped it.
        let _ = uffd.unregister(range);
        self.lock().retain(|lent| *lent != range);
    }

    /// All of it is. Before the devices end: unmapping registered memory would wait for its event to be read.
    pub(crate) fn end_all(&self, uffd: &Userfaultfd) {
        for range in self.lock().drain(..) {
            let _ = uffd.unregister(range);
        }
    }

    /// Registers everything with a userfaultfd that took the place of the one before.
    ///
    /// # Errors
    /// What registering says.
    pub(crate) fn register_again(&self, uffd: &Userfaultfd) -> Result<(), Errno> {
        self.lock().iter().try_for_each(|range| register(uffd, *range))
    }
}

fn register(uffd: &Userfaultfd, range: AddrRange) -> Result<(), Errno> {
    // SAFETY:
    // 1. the device's memory is accessed by nobody but its device, which leaves frames alone whose pages are elsewhere
    //    (`Device::memory`).
    // 2. without the MISSING mode no access to it waits for anybody.
    // 3. nothing is write-protected.
    unsafe { uffd.register(range, Modes::WRITE_PROTECT) }
}

fn bytes(range: PageRange) -> u64 {
    range_of(range).len()
}

/// Moves pages from frames to the program.
pub(crate) fn map(mm: &Mm, src: u64, dst: PageRange) -> Progress {
    let shift = |src, dst: PageRange| {
        // SAFETY: the frames are the engine's, and their device leaves them alone.
        progress(unsafe { mm.shift(dst.start.addr(), src, bytes(dst), MoveMode::empty()) })
    };
    let first = shift(src, dst);
    if first.stop != Some(Stop::Busy) {
        return first;
    }
    // Since a fork the frames are shared with the other process. A write that changes nothing gives us our own.
    let rest = PageRange { start: dst.start.add(first.done as u64), end: dst.end };
    let src = src + (first.done * PAGE_SIZE) as u64;
    let _ = hmm_uapi::sys::populate_write(AddrRange::new(src, bytes(rest)));
    let more = shift(src, rest);
    Progress { done: first.done + more.done, stop: more.stop }
}

/// Moves pages from the program to their frames.
pub(crate) fn unmap(mm: &Mm, src: PageRange, dst: u64) -> Progress {
    let shift = |src: PageRange, dst| {
        // SAFETY: the pages are mapped from these frames by the engine, which says where they are from now on.
        let outcome = unsafe { mm.shift(dst, src.start.addr(), bytes(src), MoveMode::empty()) };
        // The frames are registered: what is not there is the page.
        let is_absent = outcome.stop == Some(Errno::NOENT);
        let progress = progress(outcome);
        Progress { stop: if is_absent { Some(Stop::Absent) } else { progress.stop }, ..progress }
    };
    let first = shift(src, dst);
    if first.stop != Some(Stop::Exists) {
        return first;
    }
    // Somebody has touched the empty frame. What that left has no meaning.
    let rest = PageRange { start: src.start.add(first.done as u64), end: src.end };
    let dst = dst + (first.done * PAGE_SIZE) as u64;
    empty(mm.uffd(), AddrRange::new(dst, bytes(rest)));
    let more = shift(rest, dst);
    Progress { done: first.done + more.done, stop: more.stop }
}

/// Gives back what is in frames whose pages are elsewhere. Unregistered meanwhile: no event is sent to ourselves.
fn empty(uffd: &Userfaultfd, frames: AddrRange) {
    let _ = uffd.unregister(frames);
    // SAFETY: the frames' pages are in the program, so nobody reads what is here.
    let _ = unsafe { hmm_uapi::sys::madvise(frames, Advice::DontNeedLocked) };
    // If that fails pages cannot be moved here any more, and stay in the program.
    let _ = register(uffd, frames);
}
