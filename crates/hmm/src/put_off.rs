//! Faults that were read and cannot be served now: their threads sleep on, until they are woken to fault again.
//!
//! The kernel gives faults before events, and serves nothing while an event is unread. So threads that are woken at once, each to
//! fault again, can keep an event from being read for ever, if there are more of them than fit into a buffer. They are
//! woken when there is nothing left to be read; or after some time, because others may fault all the time, but not
//! while an event is unread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hmm_core::addr::PageRange;
use hmm_core::kernel::Kernel;

use crate::mm::Mm;

/// How long a fault is put off while others are served.
const LATE: Duration = Duration::from_millis(2);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct PutOff {
    /// From the first to the last of their pages, and since when there are any.
    hull: Mutex<Option<(PageRange, Instant)>>,
    any: AtomicBool,
}

impl PutOff {
    fn hull(&self) -> MutexGuard<'_, Option<(PageRange, Instant)>> {
        self.hull.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, range: PageRange, now: impl FnOnce() -> Instant) {
        let mut hull = self.hull();
        let (others, since) = hull.unwrap_or_else(|| (range, now()));
        let (start, end) = (others.start.min(range.start), others.end.max(range.end));
        *hull = Some((PageRange { start, end }, since));
        self.any.store(true, Ordering::Release);
    }

    /// Whether there are any.
    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    fn take(&self, is_time: impl FnOnce(Instant) -> bool) -> Option<PageRange> {
        let mut hull = self.hull();
        let (range, _) = hull.take_if(|(_, since)| is_time(*since))?;
        self.any.store(false, Ordering::Release);
        Some(range)
    }

    /// In the child of a fork, whose only thread has no fault.
    pub(crate) fn reset(&self) {
        let _ = self.take(|_| true);
    }
}

impl Mm {
    /// Leaves those asleep who fault in the range.
    pub(crate) fn put_off(&self, range: PageRange) {
        self.put_off.add(range, Instant::now);
    }

    /// Wakes who was put off, if it is time. `drained`: there was nothing to be read.
    pub fn wake_put_off(&self, drained: bool) {
        if !self.put_off.any() {
            return;
        }
        let is_time = |since: Instant| drained || since.elapsed() > LATE && !self.is_changing();
        if let Some(range) = self.put_off.take(is_time) {
            self.wake(range);
        }
    }
}

#[cfg(test)]
mod tests {
    use hmm_core::addr::Vpn;

    use super::*;

    #[test]
    fn who_was_put_off_is_woken_once_and_all_together() {
        let (put_off, now) = (PutOff::default(), Instant::now());
        assert!(!put_off.any());
        for page in [700, 3, 90] {
            put_off.add(PageRange::new(Vpn(page), 1), || now);
        }
        assert!(put_off.any());
        assert_eq!(put_off.take(|since| since > now), None, "it is not time");
        assert!(put_off.any());
        let all = PageRange { start: Vpn(3), end: Vpn(701) };
        assert_eq!(put_off.take(|since| since == now), Some(all));
        assert_eq!((put_off.any(), put_off.take(|_| true)), (false, None));
    }
}
