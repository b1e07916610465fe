//! Sums over all processes.

use std::sync::atomic::Ordering;

use hmm::control::{Control, MAX_DEVICES};
use hmm::device::Usage;
use hmm_core::stats::Latency;

/// Counters that go down, too: they are told as [`Gauges`].
const GAUGES: [&str; 2] = ["away", "metadata_bytes"];

/// What is the case now, summed over the living.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Gauges {
    pub(super) away_pages: u64,
    pub(super) metadata_bytes: u64,
    /// How full each device is, in the order in which they are filled.
    pub(super) devices: [Usage; MAX_DEVICES],
}

impl Gauges {
    pub(super) fn of(control: &Control) -> Self {
        let mut sum = Self::default();
        for stats in control.slots().filter(|slot| slot.owner().is_some()).map(|slot| slot.stats()) {
            sum.away_pages += stats.away.load(Ordering::Relaxed);
            sum.metadata_bytes += stats.metadata_bytes.load(Ordering::Relaxed);
            sum.devices.iter_mut().zip(&stats.tiers).for_each(|(sum, tier)| *sum += tier.load());
        }
        sum
    }

    /// Keeps the higher value of each.
    pub(super) fn raise_to(&mut self, other: &Self) {
        self.away_pages = self.away_pages.max(other.away_pages);
        self.metadata_bytes = self.metadata_bytes.max(other.metadata_bytes);
        self.devices.iter_mut().zip(other.devices).for_each(|(mine, theirs)| *mine = mine.max(theirs));
    }

    /// How full all devices are.
    pub(super) fn usage(&self) -> Usage {
        self.devices.iter().copied().sum()
    }
}

/// What has happened since the start, summed over the living and the dead: a slot's counters run on from one process to
/// the next.
#[derive(Debug)]
pub(super) struct Totals {
    /// Every counter with its name.
    pub(super) counters: Vec<(&'static str, u64)>,
    /// Pages that moved down from each device.
    pub(super) demoted: [u64; MAX_DEVICES],
    pub(super) latency: Latency,
}

impl Totals {
    pub(super) fn of(control: &Control) -> Self {
        let mut counters: Vec<(&'static str, u64)> = Vec::new();
        let latency = Latency::default();
        let mut demoted = [0; MAX_DEVICES];
        for stats in control.slots().map(|slot| slot.stats()) {
            let events = stats.counters().filter(|(name, _)| !GAUGES.contains(name));
            if counters.is_empty() {
                counters = events.collect();
            } else {
                counters.iter_mut().zip(events).for_each(|(sum, (_, count))| sum.1 += count);
            }
            let from_each = demoted.iter_mut().zip(&stats.demoted);
            from_each.for_each(|(sum, pages)| *sum += pages.load(Ordering::Relaxed));
            latency.merge(&stats.latency);
        }
        Self { counters, demoted, latency }
    }

    /// A counter by its name; 0 when nobody has counted yet.
    pub(super) fn get(&self, name: &str) -> u64 {
        self.counters.iter().find(|(this, _)| *this == name).map_or(0, |(_, count)| *count)
    }
}

#[cfg(test)]
mod tests {
    use hmm::control::{OnFull, RunConfig};

    use super::*;

    #[test]
    fn counters_add_up_over_processes_and_gauges_are_not_among_them() {
        let config = RunConfig {
            ram_pages: 1,
            per_process: false,
            on_full: OnFull::Kill,
            devices: Vec::new(),
            dmirror: false,
            policy: hmm::PolicyName::default(),
        };
        let (_fd, control) = Control::create(&config).unwrap();
        assert_eq!(Totals::of(&control).get("pgfault"), 0);
        let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        for (pid, pages) in [(std::process::id(), 3), (sleeper.id(), 4)] {
            let stats = control.claim_slot(pid).unwrap().stats();
            stats.pgfault.store(pages, Ordering::Relaxed);
            stats.away.store(10 * pages, Ordering::Relaxed);
            stats.tiers[1].store(Usage { frames: pages, used_bytes: 1, capacity_bytes: 2 });
            stats.demoted[0].store(pages, Ordering::Relaxed);
            stats.latency.record(1000);
        }
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        let totals = Totals::of(&control);
        assert_eq!((totals.get("pgfault"), totals.latency.count()), (7, 2));
        assert_eq!(totals.demoted[..2], [7, 0]);
        assert!(totals.counters.iter().all(|(name, _)| !GAUGES.contains(name)));
        let gauges = Gauges::of(&control);
        assert_eq!(gauges.away_pages, 70);
        assert_eq!(gauges.devices[1], Usage { frames: 7, used_bytes: 2, capacity_bytes: 4 });
        let mut peaks = gauges.clone();
        peaks.raise_to(&Gauges::default());
        assert_eq!((&peaks, peaks.usage().frames), (&gauges, 7));
    }

    #[test]
    fn every_gauge_exists() {
        let stats = hmm_core::stats::Stats::default();
        for name in GAUGES {
            assert!(stats.counters().any(|(this, _)| this == name), "{name}");
        }
    }
}
