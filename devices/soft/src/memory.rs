//! The device's memory: frames that hold pages, and that the CPU is not given.
//!
//! The engine sees it as a [`Device`]. It brings pages home by `fetch`, on its own threads, and never while a unit has an
//! entry for the frame: the notifier is called first. Everything that is touched here is memory of the device's own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hmm_core::addr::{PAGE_SIZE, Vpn};
use hmm_device::{Caps, Device, DeviceError, DevicePfn, Fetch, LARGE_PAGES, MemKind, Store, Transfer, Usage};
use rustix::io::Errno;

use crate::frames::Frames;
use crate::own::{Own, OwnSlice};
use crate::trap::{self, Trapped};

const FREE: u64 = 0;
/// Handed out, not written to.
const EMPTY: u64 = 1;
const FULL: u64 = 2;

/// The memory of a device.
#[derive(Debug)]
pub struct Memory {
    bytes: Own,
    nr_frames: usize,
    states: OwnSlice<AtomicU64>,
    free: Mutex<Frames>,
}

impl Memory {
    pub(crate) fn new(nr_frames: usize) -> Result<Self, Errno> {
        let bytes = Own::huge(nr_frames.checked_mul(PAGE_SIZE).ok_or(Errno::NOMEM)?)?;
        let free = Mutex::new(Frames::new(nr_frames)?);
        Ok(Self { bytes, nr_frames, states: OwnSlice::new(nr_frames)?, free })
    }

    fn free_list(&self) -> MutexGuard<'_, Frames> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Address of the first frame.
    pub(crate) fn addr(&self) -> u64 {
        self.bytes.as_ptr().expose_provenance() as u64
    }

    /// Pages that fit.
    pub(crate) const fn nr_frames(&self) -> usize {
        self.nr_frames
    }

    /// Frames that are free.
    pub(crate) fn nr_free(&self) -> usize {
        self.free_list().nr_free()
    }

    /// Whether a frame is in one of two states, which it leaves for `FULL`.
    fn claim(&self, frame: DevicePfn, from: u64) -> bool {
        let state = self.states.get(frame.0 as usize);
        state.is_some_and(|at| at.compare_exchange(from, FULL, Ordering::AcqRel, Ordering::Acquire).is_ok())
    }

    /// Address of a frame that is in one of two states, which it leaves for `FULL`.
    fn frame(&self, frame: DevicePfn, from: u64) -> Result<*mut u8, DeviceError> {
        let at = || self.bytes.as_ptr().wrapping_add(frame.0 as usize * PAGE_SIZE);
        self.claim(frame, from).then(at).ok_or(DeviceError::Unsupported)
    }

    /// Gives runs of frames that lie side by side and are in one of two states, which they leave for `FULL`: the first one's
    /// number in `frames`, its address, and how many bytes.
    fn transfer(
        &self,
        frames: &[DevicePfn],
        from: u64,
        mut copy: impl FnMut(usize, *mut u8, usize),
    ) -> Transfer {
        let mut done = 0;
        for run in frames.chunk_by(|one, next| one.0.checked_add(1) == Some(next.0)) {
            let Ok(first) = self.frame(run[0], from) else {
                return Transfer::stopped(done, DeviceError::Unsupported);
            };
            let nr = 1 + run[1..].iter().take_while(|frame| self.claim(**frame, from)).count();
            copy(done, first, nr * PAGE_SIZE);
            done += nr;
            if nr < run.len() {
                return Transfer::stopped(done, DeviceError::Unsupported);
            }
        }
        Transfer::complete(done)
    }

    /// Copies a page of the program's, that nobody writes to, if it is there.
    ///
    /// # Safety
    /// If there is memory, it may be read as a thread of the program would.
    pub(crate) unsafe fn copy_system(&self, frame: DevicePfn, page: Vpn) -> Result<(), Trapped> {
        let to = self.frame(frame, EMPTY).map_err(|_| Trapped)?;
        // SAFETY: the frame is a page of our memory, handed out and not written yet; the source is the caller's.
        unsafe { trap::copy(to.expose_provenance() as u64, page.addr(), PAGE_SIZE as u64) }
    }

    /// Copies a page directly from another device of this kind, whose units have no entry for it.
    pub(crate) fn copy_page(
        &self,
        frame: DevicePfn,
        peer: &Self,
        from: DevicePfn,
    ) -> Result<(), DeviceError> {
        let from = peer.frame(from, FULL)?;
        let to = self.frame(frame, EMPTY)?;
        // SAFETY: as in `store` and `fetch`; they are different frames, because one was handed out and not
        // written yet, and the other was written.
        unsafe { std::ptr::copy_nonoverlapping(from, to, PAGE_SIZE) };
        Ok(())
    }
}

impl Device for Memory {
    fn caps(&self) -> Caps {
        Caps {
            kind: MemKind::Private,
            capacity_pages: self.nr_frames as u64,
            preferred_run_pages: 16,
            store_page_ns: 400,
            fetch_page_ns: 400,
            keeps_copies: false,
        }
    }

    fn usage(&self) -> Usage {
        let page = PAGE_SIZE as u64;
        let frames = (self.nr_frames - self.nr_free()) as u64;
        Usage { frames, used_bytes: frames * page, capacity_bytes: self.nr_frames as u64 * page }
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        let granted = self.free_list().take(frames);
        for frame in &frames[..granted] {
            self.states[frame.0 as usize].store(EMPTY, Ordering::Release);
        }
        granted
    }

    fn alloc_large(&self) -> Option<DevicePfn> {
        let first = self.free_list().take_large()?;
        for state in &self.states[first.0 as usize..first.0 as usize + LARGE_PAGES] {
            state.store(EMPTY, Ordering::Release);
        }
        Some(first)
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        let nr = run.frames.len().min(run.bytes.len() / PAGE_SIZE);
        self.transfer(&run.frames[..nr], EMPTY, |number, to, nr_bytes| {
            let from = run.bytes[number * PAGE_SIZE..][..nr_bytes].as_ptr();
            // SAFETY: the frames are pages of our memory side by side; nobody else reads or writes them, because they were
            // handed out and not written yet, and whoever they were handed to stores once; the source is another memory
            // of as many bytes.
            unsafe { std::ptr::copy_nonoverlapping(from, to, nr_bytes) };
        })
    }

    fn fetch(&self, run: Fetch<'_>) -> Transfer {
        let nr = run.frames.len().min(run.bytes.len() / PAGE_SIZE);
        let bytes = run.bytes;
        self.transfer(&run.frames[..nr], FULL, |number, from, nr_bytes| {
            let to = bytes[number * PAGE_SIZE..][..nr_bytes].as_mut_ptr();
            // SAFETY: the frames are pages of our memory side by side; no unit writes them, because the engine fetches only
            // after notifiers dropped their entries; the destination is another memory of as many bytes.
            unsafe { std::ptr::copy_nonoverlapping(from, to, nr_bytes) };
        })
    }

    fn free(&self, frames: &[DevicePfn]) {
        let mut free = self.free_list();
        for frame in frames {
            let was =
                self.states.get(frame.0 as usize).map_or(FREE, |state| state.swap(FREE, Ordering::AcqRel));
            debug_assert!(was != FREE, "{frame:?} freed twice");
            if was != FREE {
                free.give(*frame);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hmm_device::Access;

    hmm_conformance::suite!(conforms, || Memory::new(1024).unwrap());

    #[test]
    fn pages_are_copied_between_devices() {
        let (one, two) = (Memory::new(4).unwrap(), Memory::new(4).unwrap());
        let mut frames = [DevicePfn(0); 2];
        assert_eq!(one.alloc(&mut frames), 2);
        let run = Store { frames: &frames[1..], bytes: &[7; PAGE_SIZE], access: Access::Random };
        assert_eq!(one.store(run), Transfer::complete(1));
        assert_eq!(
            two.copy_page(DevicePfn(3), &one, frames[1]),
            Err(DeviceError::Unsupported),
            "not handed out"
        );
        assert_eq!(two.alloc(&mut frames[..1]), 1);
        two.copy_page(frames[0], &one, frames[1]).unwrap();
        let mut page = [0; PAGE_SIZE];
        assert_eq!(two.fetch(Fetch { frames: &frames[..1], bytes: &mut page }), Transfer::complete(1));
        assert_eq!(page, [7; PAGE_SIZE]);
    }
}
