//! Uncompressed frames in plain memory: the device that others are compared with.
//!
//! Written to be obviously right rather than fast: every frame has its own lock and its own allocation. A frame that is
//! used against the protocol is noticed: a store to one that is stored to, free or unknown, and a fetch from one that
//! was never stored to, fail with [`DeviceError::Unsupported`].

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{
    Caps, Device, DeviceError, DevicePfn, Fetch, LARGE_PAGES, MemKind, PAGE_SIZE, Store, Transfer, Usage,
};

/// What a frame is.
#[derive(Debug, Default)]
enum Frame {
    #[default]
    Free,
    /// Handed out, not stored to.
    Empty,
    /// Stored to.
    Full(Box<[u8]>),
}

/// A device of `capacity_pages` uncompressed frames in memory from the global allocator.
#[derive(Debug)]
pub struct Ram {
    frames: Box<[Mutex<Frame>]>,
    /// Frames that can be handed out, the next one last.
    free: Mutex<Vec<DevicePfn>>,
}

impl Ram {
    /// A device of so many frames (at most 2^32). One of zero frames refuses everything.
    #[expect(clippy::cast_possible_truncation, reason = "cut to what a frame number can name")]
    pub fn new(capacity_pages: usize) -> Self {
        let nr_frames = capacity_pages.min(1 << 32);
        Self {
            frames: (0..nr_frames).map(|_| Mutex::default()).collect(),
            free: Mutex::new((0..nr_frames).rev().map(|index| DevicePfn(index as u32)).collect()),
        }
    }

    fn frame(&self, frame: DevicePfn) -> Option<MutexGuard<'_, Frame>> {
        self.frames.get(frame.0 as usize).map(locked)
    }

    fn store_page(&self, frame: DevicePfn, page: &[u8]) -> Result<(), DeviceError> {
        let mut frame = self.frame(frame).ok_or(DeviceError::Unsupported)?;
        if !matches!(*frame, Frame::Empty) {
            return Err(DeviceError::Unsupported);
        }
        *frame = Frame::Full(page.into());
        Ok(())
    }

    fn fetch_page(&self, frame: DevicePfn, page: &mut [u8]) -> Result<(), DeviceError> {
        match self.frame(frame).as_deref() {
            Some(Frame::Full(bytes)) => {
                page.copy_from_slice(bytes);
                Ok(())
            }
            Some(Frame::Free | Frame::Empty) | None => Err(DeviceError::Unsupported),
        }
    }
}

/// Locks whatever a panicking holder left: each section leaves its data whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device for Ram {
    fn caps(&self) -> Caps {
        Caps {
            kind: MemKind::Private,
            capacity_pages: self.frames.len() as u64,
            preferred_run_pages: 1,
            store_page_ns: 700,
            fetch_page_ns: 400,
            keeps_copies: true,
        }
    }

    fn usage(&self) -> Usage {
        let frames = (self.frames.len() - locked(&self.free).len()) as u64;
        let page = PAGE_SIZE as u64;
        Usage { frames, used_bytes: frames * page, capacity_bytes: self.frames.len() as u64 * page }
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        let mut free = locked(&self.free);
        let granted = frames.len().min(free.len());
        let rest = free.len() - granted;
        for (slot, frame) in frames.iter_mut().zip(free.drain(rest..).rev()) {
            *slot = frame;
            if let Some(mut state) = self.frame(frame) {
                *state = Frame::Empty;
            }
        }
        granted
    }

    fn alloc_large(&self) -> Option<DevicePfn> {
        let mut free = locked(&self.free);
        let mut sorted = free.clone();
        sorted.sort_unstable();
        let is_run = |run: &&[DevicePfn]| {
            run[0].is_large_start() && run[LARGE_PAGES - 1] == run[0].add(LARGE_PAGES - 1)
        };
        let run = sorted.windows(LARGE_PAGES).find(is_run)?;
        let (first, behind) = (run[0], run[0].add(LARGE_PAGES));
        free.retain(|frame| *frame < first || *frame >= behind);
        for frame in run {
            if let Some(mut state) = self.frame(*frame) {
                *state = Frame::Empty;
            }
        }
        Some(first)
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
        for (done, (frame, page)) in run.frames.iter().zip(run.bytes.chunks_exact_mut(PAGE_SIZE)).enumerate()
        {
            if let Err(why) = self.fetch_page(*frame, page) {
                return Transfer::stopped(done, why);
            }
        }
        Transfer::complete(run.frames.len())
    }

    fn free(&self, frames: &[DevicePfn]) {
        for frame in frames {
            let was_used = self
                .frame(*frame)
                .is_some_and(|mut state| !matches!(std::mem::take(&mut *state), Frame::Free));
            debug_assert!(was_used, "{frame:?} freed twice");
            if was_used {
                locked(&self.free).push(*frame);
            }
        }
    }

    fn holds(&self, frame: DevicePfn, bytes: &[u8]) -> bool {
        matches!(self.frame(frame).as_deref(), Some(Frame::Full(stored)) if **stored == *bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, conformance};

    #[test]
    fn conforms() {
        conformance::check(|| Ram::new(700));
    }

    #[test]
    fn refuses_everything_when_empty() {
        let device = Ram::new(0);
        assert_eq!(device.alloc(&mut [DevicePfn(0); 4]), 0);
        assert_eq!(device.usage(), Usage::default());
    }

    #[test]
    fn misuse_is_refused() {
        let device = Ram::new(1);
        let page = [1; PAGE_SIZE];
        let mut frames = [DevicePfn(9)];
        let store =
            |frames: &[DevicePfn]| device.store(Store { frames, bytes: &page, access: Access::Random });
        let refused = Transfer::stopped(0, DeviceError::Unsupported);
        assert_eq!(store(&frames), refused, "unknown frame");
        assert_eq!(device.alloc(&mut frames), 1);
        let mut bytes = [0; PAGE_SIZE];
        assert_eq!(device.fetch(Fetch { frames: &frames, bytes: &mut bytes }), refused, "never stored to");
        assert_eq!(store(&frames), Transfer::complete(1));
        assert_eq!(store(&frames), refused, "stored to twice");
        device.free(&frames);
        assert_eq!(store(&frames), refused, "freed");
    }
}
