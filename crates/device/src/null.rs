//! A device that takes everything and remembers nothing.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::{Caps, Device, DeviceError, DevicePfn, Fetch, MemKind, PAGE_SIZE, Store, Transfer, Usage};

/// A device whose stores succeed and drop the bytes, and whose fetches fail with [`DeviceError::Unsupported`].
///
/// It shows what everything around a device costs (there is no cheaper store), and what the caller does with pages
/// that never come back. A device that refuses instead of forgetting is [`Ram::new(0)`](crate::Ram::new).
#[derive(Debug)]
pub struct Null {
    capacity_pages: u64,
    live: AtomicU64,
    next: AtomicU32,
}

impl Null {
    /// A device that hands out at most `capacity_pages` frames at a time.
    pub const fn new(capacity_pages: u64) -> Self {
        Self { capacity_pages, live: AtomicU64::new(0), next: AtomicU32::new(0) }
    }
}

impl Device for Null {
    fn caps(&self) -> Caps {
        Caps {
            kind: MemKind::Private,
            capacity_pages: self.capacity_pages,
            preferred_run_pages: 1,
            store_page_ns: 0,
            fetch_page_ns: 0,
            keeps_copies: false,
        }
    }

    fn usage(&self) -> Usage {
        let frames = self.live.load(Ordering::Relaxed);
        Usage { frames, used_bytes: 0, capacity_bytes: self.capacity_pages * PAGE_SIZE as u64 }
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        let mut granted = 0;
        for frame in frames {
            let room = self.live.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |live| {
                (live < self.capacity_pages).then_some(live + 1)
            });
            if room.is_err() {
                break;
            }
            // Names repeat after 2^32 frames; nothing is kept under them, so nothing can be mixed up.
            *frame = DevicePfn(self.next.fetch_add(1, Ordering::Relaxed));
            granted += 1;
        }
        granted
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        Transfer::complete(run.frames.len())
    }

    fn fetch(&self, run: Fetch<'_>) -> Transfer {
        if run.frames.is_empty() {
            return Transfer::complete(0);
        }
        Transfer::stopped(0, DeviceError::Unsupported)
    }

    fn free(&self, frames: &[DevicePfn]) {
        self.live.fetch_sub(frames.len() as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Access;

    #[test]
    fn takes_pages_counts_frames_and_delivers_nothing() {
        let device = Null::new(3);
        let mut frames = [DevicePfn(0); 4];
        assert_eq!(device.alloc(&mut frames), 3, "capacity bounds the frames");
        let run = Store { frames: &frames[..3], bytes: &[7; 3 * PAGE_SIZE], access: Access::Random };
        assert_eq!(device.store(run), Transfer::complete(3));
        let mut bytes = [0; PAGE_SIZE];
        let outcome = device.fetch(Fetch { frames: &frames[..1], bytes: &mut bytes });
        assert_eq!(outcome, Transfer::stopped(0, DeviceError::Unsupported));
        assert_eq!(device.usage().frames, 3);
        device.free(&frames[..3]);
        assert_eq!(device.usage().frames, 0);
    }
}
