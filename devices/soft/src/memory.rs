//! The device's memory: frames that hold pages, and that the CPU is not given.
//!
//! The engine sees it as a [`Device`]. It brings pages home by `fetch`, on its own threads, and never while a unit has an
//! entry for the frame: the notifier is called first. Everything that is touched here is memory of the device's own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hmm_core::addr::{PAGE_SIZE, Vpn};
use hmm_device::{Caps, Device, DeviceError, DevicePfn, Fetch, MemKind, Store, Transfer, Usage};
use rustix::io::Errno;

use crate::own::{Own, OwnSlice};
use crate::trap::{self, Trapped};

const FREE: u64 = 0;
/// Handed out, not written to.
const EMPTY: u64 = 1;
const FULL: u64 = 2;

/// Frames that can be handed out.
#[derive(Debug)]
struct Free {
    frames: OwnSlice<u64>,
    nr: usize,
}

/// The memory of a device.
#[derive(Debug)]
pub struct Memory {
    bytes: Own,
    nr_frames: usize,
    states: OwnSlice<AtomicU64>,
    free: Mutex<Free>,
}

impl Memory {
    pub(crate) fn new(nr_frames: usize) -> Result<Self, Errno> {
        let bytes = Own::new(nr_frames.checked_mul(PAGE_SIZE).ok_or(Errno::NOMEM)?)?;
        bytes.prefer_huge();
        let mut frames = OwnSlice::<u64>::new(nr_frames)?;
        // The first frame is handed out first.
        for (slot, frame) in frames.iter_mut().zip((0..nr_frames as u64).rev()) {
            *slot = frame;
        }
        let free = Mutex::new(Free { frames, nr: nr_frames });
        Ok(Self { bytes, nr_frames, states: OwnSlice::new(nr_frames)?, free })
    }

    fn free_list(&self) -> MutexGuard<'_, Free> {
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
        self.free_list().nr
    }

    /// Address of a frame that is in one of two states, which it leaves for `FULL`.
    fn frame(&self, frame: DevicePfn, from: u64) -> Result<*mut u8, DeviceError> {
        let state = self.states.get(frame.0 as usize).ok_or(DeviceError::Unsupported)?;
        match state.compare_exchange(from, FULL, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(self.bytes.as_ptr().wrapping_add(frame.0 as usize * PAGE_SIZE)),
            Err(_) => Err(DeviceError::Unsupported),
        }
    }

    fn store_page(&self, frame: DevicePfn, page: &[u8]) -> Result<(), DeviceError> {
        let to = self.frame(frame, EMPTY)?;
        // SAFETY: the frame is a page of our memory; nobody else reads or writes it, because it was handed out and not
        // written yet, and whoever it was handed to stores once; the source is another memory of a page.
        unsafe { std::ptr::copy_nonoverlapping(page.as_ptr(), to, PAGE_SIZE.min(page.len())) };
        Ok(())
    }

    fn fetch_page(&self, frame: DevicePfn, page: &mut [u8]) -> Result<(), DeviceError> {
        let from = self.frame(frame, FULL)?;
        // SAFETY: the frame is a page of our memory; no unit writes it, because the engine fetches only after notifiers
        // dropped their entries; the destination is another memory of a page.
        unsafe { std::ptr::copy_nonoverlapping(from, page.as_mut_ptr(), PAGE_SIZE.min(page.len())) };
        Ok(())
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
        // SAFETY: as in `store_page` and `fetch_page`; they are different frames, because one was handed out and not
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
        let mut free = self.free_list();
        let granted = frames.len().min(free.nr);
        for slot in &mut frames[..granted] {
            free.nr -= 1;
            #[expect(clippy::cast_possible_truncation, reason = "a frame number")]
            let frame = DevicePfn(free.frames[free.nr] as u32);
            self.states[frame.0 as usize].store(EMPTY, Ordering::Release);
            *slot = frame;
        }
        granted
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        for (done, (frame, page)) in run.frames.iter().zip(run.bytes.chunks_exact(PAGE_SIZE)).enumerate() {
            if let Err(why) = self.store_page(*frame, page) {
                return Transfer::stopped(done, why);
            }
        }
        Transfer::complete(run.frames.len())
    }

    fn fetch(&self, run: Fetch<'_>) -> Transfer {
        let pages = run.bytes.chunks_exact_mut(PAGE_SIZE);
        for (done, (frame, page)) in run.frames.iter().zip(pages).enumerate() {
            if let Err(why) = self.fetch_page(*frame, page) {
                return Transfer::stopped(done, why);
            }
        }
        Transfer::complete(run.frames.len())
    }

    fn free(&self, frames: &[DevicePfn]) {
        let mut free = self.free_list();
        for frame in frames {
            let was =
                self.states.get(frame.0 as usize).map_or(FREE, |state| state.swap(FREE, Ordering::AcqRel));
            debug_assert!(was != FREE, "{frame:?} freed twice");
            if was != FREE {
                let nr = free.nr;
                free.frames[nr] = u64::from(frame.0);
                free.nr += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    hmm_conformance::suite!(conforms, || Memory::new(1024).unwrap());

    #[test]
    fn pages_are_copied_between_devices() {
        let (one, two) = (Memory::new(4).unwrap(), Memory::new(4).unwrap());
        let mut frames = [DevicePfn(0); 2];
        assert_eq!(one.alloc(&mut frames), 2);
        one.store_page(frames[1], &[7; PAGE_SIZE]).unwrap();
        assert_eq!(
            two.copy_page(DevicePfn(3), &one, frames[1]),
            Err(DeviceError::Unsupported),
            "not handed out"
        );
        assert_eq!(two.alloc(&mut frames[..1]), 1);
        two.copy_page(frames[0], &one, frames[1]).unwrap();
        let mut page = [0; PAGE_SIZE];
        two.fetch_page(frames[0], &mut page).unwrap();
        assert_eq!(page, [7; PAGE_SIZE]);
    }
}
