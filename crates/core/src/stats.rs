//! Counters of the engine and the distribution of fault latencies.
//!
//! Plain atomics in a fixed layout: in `hmm run` they lie in memory shared with the supervisor, which no histogram crate
//! can place; hence the few lines of our own.

use std::sync::atomic::{AtomicU64, Ordering};

use hmm_device::Usage;

use crate::registry::MAX_DEVICES;

macro_rules! counters {
    ($($(#[$doc:meta])+ $name:ident,)+) => {
        /// Counters since the start, and gauges where it says so. Every one is incremented on exactly one kind of outcome.
        #[derive(Debug, Default)]
        #[repr(C)]
        pub struct Stats {
            $($(#[$doc])+ pub $name: AtomicU64,)+
            /// How full each tier is, by its number.
            pub tiers: [UsageGauge; MAX_DEVICES],
            /// Pages that moved down from each tier, by its number.
            pub demoted: [AtomicU64; MAX_DEVICES],
            /// Time from reading a fault to its resolution.
            pub latency: Latency,
        }

        impl Stats {
            /// Every counter with its name, in order.
            pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name.load(Ordering::Relaxed)),)+].into_iter()
            }
        }
    };
}

counters! {
    /// Faults read from the kernel.
    pgfault,
    /// Faults on pages that a device had to deliver.
    pgmajfault,
    /// Pages given to the program filled with zeroes.
    pgzero,
    /// Pages a device delivered because of a fault.
    pgfetch,
    /// Pages a device delivered ahead of need.
    pgprefetch,
    /// Pages taken out of the program.
    pgsteal,
    /// Pages that came back from staging: their second chance.
    refault,
    /// Pages stored to a device.
    pgstore,
    /// Pages that left without a store because the device still held them.
    pgclean,
    /// Pages that moved from a tier that was nearly full to one below.
    pgdemote,
    /// Pages that a device refused or failed to store and that stayed in RAM.
    pgmigrate_fail,
    /// Pages that were poisoned.
    pgpoison,
    /// Pages found resident that were not of our making.
    pgadopt,
    /// Faults that had to wait for reclaim.
    direct_reclaim,
    /// Pages that the budget was made larger by, because nothing could be reclaimed. Not less when they are taken back.
    overcharged,
    /// Forks that were made again, because the child's copy of the engine was of no use.
    fork_again,
    /// Forks that were refused because there were too many processes, or no descriptors.
    fork_no_place,
    /// Forks that were refused because no device took what had to leave for the child.
    fork_no_room,
    /// Forks that were refused because pages were where a child cannot have them: away without `CAP_SYS_PTRACE`, or in a file that
    /// cannot be shared.
    fork_away,
    /// Forks that were refused because the engine did not come to rest.
    fork_restless,
    /// Forks that were refused because the child's copy of the engine was of no use again and again.
    fork_useless,
    /// Gauge: pages whose home is a device.
    away,
    /// Gauge: bytes of the engine's own tables.
    metadata_bytes,
}

impl Stats {
    /// How full all tiers are.
    pub fn usage(&self) -> Usage {
        self.tiers.iter().map(UsageGauge::load).sum()
    }
}

/// A device's [`Usage`] as it was when somebody looked last. Its three numbers may be of different moments.
#[derive(Debug, Default)]
#[repr(C)]
pub struct UsageGauge {
    frames: AtomicU64,
    used_bytes: AtomicU64,
    capacity_bytes: AtomicU64,
}

impl UsageGauge {
    /// Tells what it is now.
    pub fn store(&self, usage: Usage) {
        self.frames.store(usage.frames, Ordering::Relaxed);
        self.used_bytes.store(usage.used_bytes, Ordering::Relaxed);
        self.capacity_bytes.store(usage.capacity_bytes, Ordering::Relaxed);
    }

    /// What was told last.
    pub fn load(&self) -> Usage {
        Usage {
            frames: self.frames.load(Ordering::Relaxed),
            used_bytes: self.used_bytes.load(Ordering::Relaxed),
            capacity_bytes: self.capacity_bytes.load(Ordering::Relaxed),
        }
    }
}

/// Sub-buckets of each power of two.
const STEPS: u64 = 8;
const NR_BUCKETS: usize = 40 * 8;

/// Histogram of nanoseconds with buckets an eighth of a power of two wide (12 % accurate).
#[derive(Debug)]
#[repr(C)]
pub struct Latency {
    buckets: [AtomicU64; NR_BUCKETS],
}

impl Default for Latency {
    fn default() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; NR_BUCKETS] }
    }
}

impl Latency {
    /// Counts one value.
    pub fn record(&self, ns: u64) {
        self.buckets[Self::bucket(ns)].fetch_add(1, Ordering::Relaxed);
    }

    /// Adds another histogram's counts.
    pub fn merge(&self, other: &Self) {
        for (mine, theirs) in self.buckets.iter().zip(&other.buckets) {
            mine.fetch_add(theirs.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Values counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// Upper bound, in nanoseconds, of the bucket that holds the given quantile (0.5 is the median); 0 when empty.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rank in a histogram; the quantile is clamped"
    )]
    pub fn quantile(&self, quantile: f64) -> u64 {
        let rank = (self.count() as f64 * quantile.clamp(0.0, 1.0)).ceil() as u64;
        let mut seen = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            seen += bucket.load(Ordering::Relaxed);
            if seen >= rank && seen > 0 {
                return Self::upper_bound(index);
            }
        }
        0
    }

    #[expect(clippy::cast_possible_truncation, reason = "bounded by NR_BUCKETS")]
    fn bucket(ns: u64) -> usize {
        if ns < STEPS {
            return ns as usize;
        }
        let exponent = u64::from(ns.ilog2()) - 3;
        let step = (ns >> exponent) - STEPS;
        ((exponent + 1) * STEPS + step).min(NR_BUCKETS as u64 - 1) as usize
    }

    fn upper_bound(index: usize) -> u64 {
        let (exponent, step) = (index as u64 / STEPS, index as u64 % STEPS);
        if exponent == 0 { step + 1 } else { (STEPS + step + 1) << (exponent - 1) }
    }
}
