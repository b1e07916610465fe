//! Counts what a device is asked and what it answers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Verb;
use crate::{Caps, Device, DeviceError, DevicePfn, Fetch, LARGE_PAGES, PAGE_SIZE, Store, Transfer, Usage};

#[derive(Debug, Default)]
struct Counters {
    calls: AtomicU64,
    pages: AtomicU64,
    errors: AtomicU64,
}

impl Counters {
    fn count(&self, pages: usize, failed: bool) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.pages.fetch_add(pages as u64, Ordering::Relaxed);
        self.errors.fetch_add(u64::from(failed), Ordering::Relaxed);
    }
}

/// What was counted of one verb.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls, successful or not.
    pub calls: u64,
    /// Pages that were handed out, stored, fetched, freed, or held; those of the calls that failed part way included.
    pub pages: u64,
    /// Calls that did not do all they were asked. For [`Verb::Holds`]: those that said no.
    pub errors: u64,
}

impl Counts {
    /// The bytes of the pages.
    pub const fn bytes(&self) -> u64 {
        self.pages * PAGE_SIZE as u64
    }
}

/// All counts at about one moment: each is exact, but calls that run meanwhile may be in one and not in another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot([Counts; Verb::ALL.len()]);

impl std::ops::Index<Verb> for Snapshot {
    type Output = Counts;

    fn index(&self, verb: Verb) -> &Counts {
        &self.0[verb as usize]
    }
}

/// Any device, with its calls counted.
#[derive(Debug)]
pub struct WithStats<D> {
    inner: D,
    counters: [Counters; Verb::ALL.len()],
}

impl<D> WithStats<D> {
    /// Counts the calls to `inner` from now on.
    pub fn new(inner: D) -> Self {
        Self { inner, counters: std::array::from_fn(|_| Counters::default()) }
    }

    /// The device inside.
    pub const fn inner(&self) -> &D {
        &self.inner
    }

    /// The counts since [`new`](Self::new).
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.counters.each_ref().map(|counters| Counts {
            calls: counters.calls.load(Ordering::Relaxed),
            pages: counters.pages.load(Ordering::Relaxed),
            errors: counters.errors.load(Ordering::Relaxed),
        }))
    }

    fn count(&self, verb: Verb, pages: usize, failed: bool) {
        self.counters[verb as usize].count(pages, failed);
    }
}

impl<D: Device> Device for WithStats<D> {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        let granted = self.inner.alloc(frames);
        self.count(Verb::Alloc, granted, granted < frames.len());
        granted
    }

    fn alloc_large(&self) -> Option<DevicePfn> {
        let first = self.inner.alloc_large();
        self.count(Verb::Alloc, first.map_or(0, |_| LARGE_PAGES), first.is_none());
        first
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        let outcome = self.inner.store(run);
        self.count(Verb::Store, outcome.done, outcome.stop.is_some());
        outcome
    }

    fn fetch(&self, run: Fetch<'_>) -> Transfer {
        let outcome = self.inner.fetch(run);
        self.count(Verb::Fetch, outcome.done, outcome.stop.is_some());
        outcome
    }

    fn free(&self, frames: &[DevicePfn]) {
        self.inner.free(frames);
        self.count(Verb::Free, frames.len(), false);
    }

    fn is_worth_keeping(&self, frame: DevicePfn) -> bool {
        self.inner.is_worth_keeping(frame)
    }

    fn holds(&self, frame: DevicePfn, bytes: &[u8]) -> bool {
        let yes = self.inner.holds(frame, bytes);
        self.count(Verb::Holds, usize::from(yes), !yes);
        yes
    }

    fn patience(&self) -> Option<Duration> {
        self.inner.patience()
    }

    fn memory(&self) -> Option<std::ops::Range<u64>> {
        self.inner.memory()
    }

    fn flush(&self) -> Result<(), DeviceError> {
        let outcome = self.inner.flush();
        self.count(Verb::Flush, 0, outcome.is_err());
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Access;
    use crate::{Ram, conformance};

    #[test]
    fn conforms() {
        conformance::check(|| WithStats::new(Ram::new(700)));
    }

    #[test]
    fn counts_every_verb() {
        let device = WithStats::new(Ram::new(3));
        let mut frames = [DevicePfn(0); 4];
        assert_eq!(device.alloc(&mut frames), 3);
        // The fourth frame was not granted: the run stops in front of it.
        frames[3] = DevicePfn(77);
        let bytes = [5; 4 * PAGE_SIZE];
        let outcome = device.store(Store { frames: &frames, bytes: &bytes, access: Access::Stream });
        assert_eq!(outcome.done, 3);
        let mut back = [0; 2 * PAGE_SIZE];
        assert_eq!(device.fetch(Fetch { frames: &frames[..2], bytes: &mut back }), Transfer::complete(2));
        assert!(device.holds(frames[0], &bytes[..PAGE_SIZE]));
        assert!(!device.holds(frames[0], &[6; PAGE_SIZE]));
        assert_eq!(device.flush(), Ok(()));
        device.free(&frames[..3]);

        let counts = device.snapshot();
        assert_eq!(counts[Verb::Alloc], Counts { calls: 1, pages: 3, errors: 1 });
        assert_eq!(counts[Verb::Store], Counts { calls: 1, pages: 3, errors: 1 });
        assert_eq!(counts[Verb::Fetch], Counts { calls: 1, pages: 2, errors: 0 });
        assert_eq!(counts[Verb::Holds], Counts { calls: 2, pages: 1, errors: 1 });
        assert_eq!(counts[Verb::Flush], Counts { calls: 1, pages: 0, errors: 0 });
        assert_eq!(counts[Verb::Free], Counts { calls: 1, pages: 3, errors: 0 });
        assert_eq!(counts[Verb::Fetch].bytes(), 8192);
    }
}
