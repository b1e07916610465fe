//! How long the touches took that faulted.
//!
//! Whether a touch faulted cannot be asked for at this price, so it is told by its time: the cost of a hit is measured
//! beforehand (first words of resident pages; a processor does not wait for such a load before it reads the clock again,
//! so it is little more than two readings), and a touch counts as faulted when it took [`MARGIN_NS`] longer. The cheapest
//! fault a kernel serves takes 1.2 us; an interrupt that falls into a touch is counted, too, which is why even a working
//! set in RAM shows a few.

use crate::clock::{TickRate, ticks};
use crate::data::PAGE_WORDS;
use hdrhistogram::Histogram;
use std::hint::black_box;

/// What a touch must take longer than a hit to count as faulted.
const MARGIN_NS: f64 = 1000.0;
/// Longest time that is told apart, in ticks: minutes.
const LONGEST_TICKS: u64 = 1 << 40;
/// Pages that the cost of a hit is measured on: more than the caches next to a core hold.
const PROBE_PAGES: usize = 1024;

/// Distribution of latencies, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Percentiles {
    pub(crate) p50_ns: f64,
    pub(crate) p90_ns: f64,
    pub(crate) p99_ns: f64,
    pub(crate) p999_ns: f64,
    pub(crate) max_ns: f64,
}

/// Times touches, and keeps those that faulted.
#[derive(Debug)]
pub(crate) struct Touches {
    rate: TickRate,
    hit_ticks: u64,
    threshold_ticks: u64,
    nr_touches: u64,
    faulted: Histogram<u64>,
}

impl Touches {
    /// Measures what a hit costs here.
    pub(crate) fn calibrate() -> Self {
        let rate = TickRate::calibrate();
        let mut probe = vec![1_u64; PROBE_PAGES * PAGE_WORDS];
        probe[0] = 2;
        let mut times: Vec<u64> = probe
            .chunks(PAGE_WORDS)
            .map(|page| {
                let start = ticks();
                black_box(black_box(page)[0]);
                ticks() - start
            })
            .collect();
        times.sort_unstable();
        Self::new(rate, times[times.len() / 2])
    }

    /// Another one that is calibrated as this, and has seen nothing.
    pub(crate) fn fresh(&self) -> Self {
        Self::new(self.rate, self.hit_ticks)
    }

    /// Adds what another one has seen that is calibrated as this.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.nr_touches += other.nr_touches;
        self.faulted.add(&other.faulted).expect("all have the same bounds");
    }

    fn new(rate: TickRate, hit_ticks: u64) -> Self {
        let faulted = Histogram::new_with_bounds(1, LONGEST_TICKS, 3).expect("constant bounds are valid");
        Self { rate, hit_ticks, threshold_ticks: hit_ticks + rate.of_ns(MARGIN_NS), nr_touches: 0, faulted }
    }

    /// Does the touch and times it.
    #[inline]
    pub(crate) fn time<T>(&mut self, touch: impl FnOnce() -> T) -> T {
        let start = ticks();
        let value = black_box(touch());
        let passed = ticks().wrapping_sub(start);
        self.nr_touches += 1;
        if passed > self.threshold_ticks {
            self.faulted.saturating_record(passed);
        }
        value
    }

    /// How many touches faulted.
    pub(crate) fn nr_faulted(&self) -> u64 {
        self.faulted.len()
    }

    /// What a hit costs, in nanoseconds.
    pub(crate) fn hit_ns(&self) -> f64 {
        self.rate.to_ns(self.hit_ticks)
    }

    /// 99th percentile over all touches, in nanoseconds; that of a hit when fewer than one in a hundred faulted.
    pub(crate) fn p99_of_all_ns(&self) -> f64 {
        let slower = self.nr_touches as f64 / 100.0;
        let faulted = self.nr_faulted() as f64;
        if faulted <= slower {
            return self.hit_ns();
        }
        self.rate.to_ns(self.faulted.value_at_quantile(1.0 - slower / faulted))
    }

    /// How many touches took how long, of those that faulted, in steps of a quarter: times in nanoseconds, ascending.
    pub(crate) fn slow(&self) -> Vec<(f64, u64)> {
        let first = self.rate.of_ns(MARGIN_NS).max(1);
        let steps = self.faulted.iter_log(first, 1.25);
        let steps = steps.map(|step| (step.value_iterated_to(), step.count_since_last_iteration()));
        steps.filter(|step| step.1 > 0).map(|(ticks, count)| (self.rate.to_ns(ticks), count)).collect()
    }

    /// The distribution over the touches that faulted; `None` when there was none.
    pub(crate) fn percentiles(&self) -> Option<Percentiles> {
        let at = |quantile| self.rate.to_ns(self.faulted.value_at_quantile(quantile));
        (self.nr_faulted() > 0).then(|| Percentiles {
            p50_ns: at(0.5),
            p90_ns: at(0.9),
            p99_ns: at(0.99),
            p999_ns: at(0.999),
            max_ns: at(1.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn percentiles_are_those_of_the_values() {
        let rate = TickRate::calibrate();
        let mut touches = Touches::new(rate, 0);
        assert_eq!(touches.percentiles(), None);
        for us in 1..=1000 {
            touches.faulted.saturating_record(rate.of_ns(f64::from(us) * 1000.0));
        }
        let seen = touches.percentiles().unwrap();
        for (value, us) in [
            (seen.p50_ns, 500.0),
            (seen.p90_ns, 900.0),
            (seen.p99_ns, 990.0),
            (seen.p999_ns, 999.0),
            (seen.max_ns, 1000.0),
        ] {
            assert!((value / 1000.0 / us - 1.0).abs() < 0.005, "{value} ns instead of {us} us");
        }
    }

    #[test]
    fn the_slowest_hundredth_of_all_touches_is_found_among_those_that_faulted() {
        let rate = TickRate::calibrate();
        let mut touches = Touches::new(rate, rate.of_ns(100.0));
        for us in 1..=100 {
            touches.faulted.saturating_record(rate.of_ns(f64::from(us) * 1000.0));
        }
        for (nr_touches, ns) in
            [(100, 99_000.0), (1000, 90_000.0), (9000, 10_000.0), (10_000, 100.0), (50_000, 100.0)]
        {
            touches.nr_touches = nr_touches;
            let seen = touches.p99_of_all_ns();
            assert!((seen / ns - 1.0).abs() < 0.03, "{seen} ns instead of {ns} of {nr_touches} touches");
        }
    }

    #[test]
    fn all_slow_touches_are_in_the_steps() {
        let rate = TickRate::calibrate();
        let mut touches = Touches::new(rate, 0);
        assert_eq!(touches.slow(), []);
        (1..=1000).for_each(|us| touches.faulted.saturating_record(rate.of_ns(f64::from(us) * 1000.0)));
        let slow = touches.slow();
        assert_eq!(slow.iter().map(|step| step.1).sum::<u64>(), 1000);
        assert!(slow.is_sorted_by(|one, next| one.0 < next.0), "{slow:?}");
        let below =
            |limit_ns: f64| slow.iter().filter(|step| step.0 <= limit_ns).map(|step| step.1).sum::<u64>();
        assert!((80..=125).contains(&below(125_000.0)), "{slow:?}");
    }

    #[test]
    fn what_threads_have_seen_adds_up() {
        let mut touches = Touches::new(TickRate::calibrate(), 100);
        let mut other = touches.fresh();
        touches.faulted.saturating_record(1 << 20);
        other.faulted.saturating_record(1 << 30);
        (touches.nr_touches, other.nr_touches) = (5, 7);
        touches.merge(&other);
        assert_eq!((touches.nr_touches, touches.nr_faulted(), touches.hit_ticks), (12, 2, 100));
        assert_eq!(touches.fresh().nr_touches, 0);
    }

    #[test]
    fn only_slow_touches_count() {
        let mut touches = Touches::calibrate();
        assert!(touches.hit_ns() < 1000.0, "a hit takes {} ns", touches.hit_ns());
        let spin = |time: Duration| {
            let start = Instant::now();
            while start.elapsed() < time {}
        };
        (0..100).for_each(|_| touches.time(|| spin(Duration::from_micros(20))));
        assert_eq!(touches.nr_faulted(), 100);
        let slow = touches.percentiles().unwrap();
        assert!(slow.p50_ns >= 19_000.0, "{slow:?}");
        (0..10_000).for_each(|_| touches.time(|| black_box(())));
        assert!(touches.nr_faulted() < 200, "touches of nothing count as faulted: {}", touches.nr_faulted());
    }
}
