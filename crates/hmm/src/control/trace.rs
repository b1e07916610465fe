//! What happens to pages, on its way from the processes of a run to the supervisor.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hmm_core::addr::Vpn;
use hmm_core::trace::{Event, PLACES, Record, Ring, What};
use rustix::time::{ClockId, clock_gettime};

/// The ring, and when it began.
#[derive(Debug)]
#[repr(C)]
pub struct Trace {
    ring: Ring<PLACES>,
    /// In nanoseconds of the monotonic clock, which is one for all processes.
    began_ns: AtomicU64,
}

impl Trace {
    /// From now on what happens is recorded. To be called before there is a process that it could happen to.
    pub fn begin(&self) {
        self.began_ns.store(now_ns(), Ordering::Relaxed);
        self.ring.turn(true);
    }

    /// What happens is not recorded any more.
    pub fn end(&self) {
        self.ring.turn(false);
    }

    /// Whether it is.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.ring.is_on()
    }

    /// For the one that writes the records down.
    pub const fn ring(&self) -> &Ring<PLACES> {
        &self.ring
    }

    /// Records what happened in the process with that slot. Waits for nobody, allocates nothing.
    pub fn record(&self, slot: usize, event: Event) {
        let time_us = now_ns().saturating_sub(self.began_ns.load(Ordering::Relaxed)) / 1000;
        self.ring.put(&Record { time_us, process: u16::try_from(slot).unwrap_or(u16::MAX), event });
    }

    /// Records that another process has that slot from now on.
    pub fn record_beginning(&self, slot: usize) {
        let event = Event { what: What::Began, page: Vpn(0), nr_pages: 0, before: 0, detail: 0 };
        self.record(slot, event);
    }
}

fn now_ns() -> u64 {
    let now = Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
