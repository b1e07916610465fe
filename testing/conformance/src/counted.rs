//! A device around a device that sees to it that frames are used as they must be: each is stored to once, fetched only
//! when it was stored to, and freed exactly once.
//!
//! What is wrong is noted rather than panicked about, because the caller may be a thread that serves faults.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hmm::device::{Caps, Device, DeviceError, DevicePfn, Fetch, LARGE_PAGES, Store, Transfer, Usage};

#[derive(Debug, Default)]
struct Frames {
    /// Frames that are handed out, and whether they were stored to.
    live: BTreeMap<DevicePfn, bool>,
    wrong: Vec<String>,
    /// Frames that were ever handed out.
    nr_granted: u64,
}

impl Frames {
    #[expect(clippy::print_stderr, reason = "if the test hangs because of it, this is all there is to see")]
    fn note(&mut self, what: String) {
        eprintln!("frames: {what}");
        self.wrong.push(what);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Counted<D> {
    inner: D,
    frames: Mutex<Frames>,
}

impl<D> Counted<D> {
    /// Watches what is done with the frames of `inner`.
    pub fn new(inner: D) -> Self {
        Self { inner, frames: Mutex::default() }
    }

    /// The device inside.
    pub const fn inner(&self) -> &D {
        &self.inner
    }

    fn lock(&self) -> MutexGuard<'_, Frames> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frames that are handed out now.
    pub fn nr_live(&self) -> usize {
        self.lock().live.len()
    }

    /// Frames that were ever handed out.
    pub fn nr_granted(&self) -> u64 {
        self.lock().nr_granted
    }

    /// What was done wrong so far.
    pub fn wrong(&self) -> Vec<String> {
        self.lock().wrong.clone()
    }
}

impl<D: Device> Device for Counted<D> {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        let granted = self.inner.alloc(frames);
        let mut all = self.lock();
        for frame in &frames[..granted] {
            if all.live.insert(*frame, false).is_some() {
                all.note(format!("the device hands {frame:?} out, which is in use"));
            }
        }
        all.nr_granted += granted as u64;
        granted
    }

    fn alloc_large(&self) -> Option<DevicePfn> {
        let first = self.inner.alloc_large()?;
        let mut all = self.lock();
        if !first.is_large_start() {
            all.note(format!("a large run begins at {first:?}"));
        }
        for frame in (0..LARGE_PAGES).map(|number| first.add(number)) {
            if all.live.insert(frame, false).is_some() {
                all.note(format!("the device hands {frame:?} out in a large run, which is in use"));
            }
        }
        all.nr_granted += LARGE_PAGES as u64;
        Some(first)
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        for frame in run.frames {
            let mut all = self.lock();
            if all.live.get(frame) != Some(&false) {
                all.note(format!("{frame:?} is stored to, which is free or was stored to"));
            }
        }
        let frames = run.frames;
        let transfer = self.inner.store(run);
        let mut all = self.lock();
        for frame in &frames[..transfer.done] {
            all.live.insert(*frame, true);
        }
        transfer
    }

    fn fetch(&self, run: Fetch<'_>) -> Transfer {
        for frame in run.frames {
            let mut all = self.lock();
            if all.live.get(frame) != Some(&true) {
                all.note(format!("{frame:?} is fetched, which is free or was never stored to"));
            }
        }
        self.inner.fetch(run)
    }

    fn free(&self, frames: &[DevicePfn]) {
        // Before the device can hand them out again.
        for frame in frames {
            let mut all = self.lock();
            if all.live.remove(frame).is_none() {
                all.note(format!("{frame:?} is freed, which is free"));
            }
        }
        self.inner.free(frames);
    }

    fn holds(&self, frame: DevicePfn, bytes: &[u8]) -> bool {
        self.inner.holds(frame, bytes)
    }

    fn patience(&self) -> Option<std::time::Duration> {
        self.inner.patience()
    }

    fn memory(&self) -> Option<std::ops::Range<u64>> {
        self.inner.memory()
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hmm::device::{Access, Null, PAGE_SIZE};

    #[test]
    fn misuse_is_noted() {
        let device = Counted::new(Null::new(8));
        let mut frames = [DevicePfn(0); 2];
        assert_eq!(device.alloc(&mut frames), 2);
        let bytes = [0; 2 * PAGE_SIZE];
        let store = || device.store(Store { frames: &frames, bytes: &bytes, access: Access::Random });
        assert_eq!(store(), Transfer::complete(2));
        device.free(&frames[..1]);
        assert_eq!((device.nr_live(), device.wrong().len()), (1, 0));
        device.free(&frames[..1]);
        assert_eq!(device.wrong().len(), 1, "freed twice");
        let mut to = [0; PAGE_SIZE];
        let _ = device.fetch(Fetch { frames: &frames[..1], bytes: &mut to });
        assert_eq!(device.wrong().len(), 2, "fetched when it is free");
        let _ = store();
        assert_eq!(device.wrong().len(), 4, "one is free, one was stored to");
    }

    /// Hands the same frame out again and again.
    #[derive(Debug)]
    struct Same(Null);

    impl Device for Same {
        fn caps(&self) -> Caps {
            self.0.caps()
        }

        fn usage(&self) -> Usage {
            self.0.usage()
        }

        fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
            frames.fill(DevicePfn(5));
            frames.len()
        }

        fn store(&self, run: Store<'_>) -> Transfer {
            self.0.store(run)
        }

        fn fetch(&self, run: Fetch<'_>) -> Transfer {
            self.0.fetch(run)
        }

        fn free(&self, frames: &[DevicePfn]) {
            self.0.free(frames);
        }
    }

    #[test]
    fn a_frame_that_is_handed_out_twice_is_noted() {
        let device = Counted::new(Same(Null::new(8)));
        assert_eq!((device.alloc(&mut [DevicePfn(0)]), device.wrong().len()), (1, 0));
        assert_eq!((device.alloc(&mut [DevicePfn(0)]), device.wrong().len()), (1, 1));
    }
}
