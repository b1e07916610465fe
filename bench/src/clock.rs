//! The clock that single touches are timed with: cheap enough not to be most of what it measures.
//!
//! On x86-64 the time stamp counter (about 10 ns a reading, against 25 ns and more of `clock_gettime`), elsewhere the
//! system's clock. No fence is needed around the counter: what is measured are page faults, and a fault throws away
//! everything that was executed ahead of it, the second reading included.

use std::time::{Duration, Instant};

/// A reading of the clock, in ticks since some moment.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn ticks() -> u64 {
    // SAFETY: reads a counter that every x86-64 processor has; Linux leaves it open to programs.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// A reading of the clock, in ticks since some moment.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub(crate) fn ticks() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let since = START.get_or_init(Instant::now).elapsed();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// How long a tick is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TickRate {
    ticks_per_ns: f64,
}

impl TickRate {
    /// Compares the counter with the system's clock for a few milliseconds, which is exact to about a part in 10^4.
    pub(crate) fn calibrate() -> Self {
        let (start, start_ticks) = (Instant::now(), ticks());
        while start.elapsed() < Duration::from_millis(5) {
            std::hint::spin_loop();
        }
        let passed_ticks = ticks().wrapping_sub(start_ticks);
        Self { ticks_per_ns: passed_ticks as f64 / start.elapsed().as_nanos() as f64 }
    }

    pub(crate) fn to_ns(self, ticks: u64) -> f64 {
        ticks as f64 / self.ticks_per_ns
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "times far below 2^53 ticks")]
    pub(crate) fn of_ns(self, ns: f64) -> u64 {
        (ns * self.ticks_per_ns) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_time() {
        let rate = TickRate::calibrate();
        let (start, start_ticks) = (Instant::now(), ticks());
        std::thread::sleep(Duration::from_millis(20));
        let (ns, ticks_ns) = (start.elapsed().as_nanos() as f64, rate.to_ns(ticks() - start_ticks));
        assert!(
            (0.9..1.1).contains(&(ticks_ns / ns)),
            "{ticks_ns} ns by ticks, {ns} ns by the system's clock"
        );
        let there_and_back = rate.to_ns(rate.of_ns(1e6));
        assert!((there_and_back - 1e6).abs() < 10.0, "{there_and_back}");
    }
}
