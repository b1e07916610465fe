//! Makes a device slow: a latency for each transfer, and a link that all transfers share.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::{Caps, Device, DeviceError, DevicePfn, Fetch, PAGE_SIZE, Store, Transfer, Usage};

/// How slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttle {
    /// Added to every store, fetch and flush; any number of them wait it out side by side.
    pub latency: Duration,
    /// What the link carries, all transfers together; `None` for any amount.
    pub bytes_per_s: Option<u64>,
}

/// Any device behind a slow link. Calls that move no pages are not slowed down, except [`flush`](Device::flush).
#[derive(Debug)]
pub struct Throttled<D> {
    inner: D,
    throttle: Throttle,
    /// When the link will have carried all that was put on it.
    link_free_at: Mutex<Instant>,
}

impl<D> Throttled<D> {
    /// Puts `inner` behind a link.
    pub fn new(inner: D, throttle: Throttle) -> Self {
        Self { inner, throttle, link_free_at: Mutex::new(Instant::now()) }
    }

    /// The device inside.
    pub const fn inner(&self) -> &D {
        &self.inner
    }

    /// Nanoseconds that the link takes for so many pages.
    fn link_time(&self, pages: usize) -> Duration {
        let Some(bytes_per_s) = self.throttle.bytes_per_s else { return Duration::ZERO };
        let ns = (pages as u128 * PAGE_SIZE as u128 * 1_000_000_000) / u128::from(bytes_per_s.max(1));
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    /// Sleeps until the link has carried the pages and the latency is over. Sleeps are never shorter than that.
    fn carry(&self, pages: usize) {
        let now = Instant::now();
        let carried_at = {
            let mut free_at = self.link_free_at.lock().unwrap_or_else(PoisonError::into_inner);
            *free_at = now.max(*free_at) + self.link_time(pages);
            *free_at
        };
        std::thread::sleep((carried_at + self.throttle.latency).saturating_duration_since(now));
    }
}

impl<D: Device> Device for Throttled<D> {
    fn caps(&self) -> Caps {
        let caps = self.inner.caps();
        let page_ns = u32::try_from(self.link_time(1).as_nanos()).unwrap_or(u32::MAX);
        Caps {
            store_page_ns: caps.store_page_ns.saturating_add(page_ns),
            fetch_page_ns: caps.fetch_page_ns.saturating_add(page_ns),
            ..caps
        }
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        self.inner.alloc(frames)
    }

    fn alloc_large(&self) -> Option<DevicePfn> {
        self.inner.alloc_large()
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        let outcome = self.inner.store(run);
        self.carry(outcome.done);
        outcome
    }

    fn fetch(&self, run: Fetch<'_>) -> Transfer {
        let outcome = self.inner.fetch(run);
        self.carry(outcome.done);
        outcome
    }

    fn free(&self, frames: &[DevicePfn]) {
        self.inner.free(frames);
    }

    fn is_worth_keeping(&self, frame: DevicePfn) -> bool {
        self.inner.is_worth_keeping(frame)
    }

    fn holds(&self, frame: DevicePfn, bytes: &[u8]) -> bool {
        self.inner.holds(frame, bytes)
    }

    fn patience(&self) -> Option<Duration> {
        self.inner.patience()
    }

    fn memory(&self) -> Option<std::ops::Range<u64>> {
        self.inner.memory()
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.carry(0);
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Access;
    use crate::{Ram, conformance};

    fn store_pages(device: &impl Device, pages: usize) {
        let mut frames = vec![DevicePfn(0); pages];
        assert_eq!(device.alloc(&mut frames), pages);
        let bytes = vec![3; pages * PAGE_SIZE];
        let outcome = device.store(Store { frames: &frames, bytes: &bytes, access: Access::Random });
        assert_eq!(outcome, Transfer::complete(pages));
    }

    #[test]
    fn conforms() {
        conformance::check(|| {
            let throttle = Throttle { latency: Duration::from_micros(1), bytes_per_s: Some(4 << 30) };
            Throttled::new(Ram::new(300), throttle)
        });
    }

    #[test]
    fn latency_is_waited_for() {
        let throttle = Throttle { latency: Duration::from_millis(20), bytes_per_s: None };
        let device = Throttled::new(Ram::new(8), throttle);
        let start = Instant::now();
        store_pages(&device, 1);
        assert_eq!(device.flush(), Ok(()));
        assert!(start.elapsed() >= Duration::from_millis(40), "two calls, twice the latency");
    }

    #[test]
    fn threads_share_the_link() {
        // 64 pages at 4 MiB/s take 62.5 ms, whoever sends them.
        let throttle = Throttle { latency: Duration::ZERO, bytes_per_s: Some(4 << 20) };
        let device = Throttled::new(Ram::new(64), throttle);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| store_pages(&device, 16));
            }
        });
        assert!(start.elapsed() >= Duration::from_millis(62));
        assert_eq!(device.caps().store_page_ns, 700 + 976_562);
    }
}
