//! What a device has done.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, nr: usize) {
        self.0.fetch_add(nr as u64, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// The counters.
        #[derive(Debug, Default)]
        pub(crate) struct Stats {
            $(pub(crate) $name: Counter,)+
        }

        /// Counters of a device at one moment, since it was built.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Snapshot {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl Stats {
            pub(crate) fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.get(),)+ }
            }
        }
    };
}

stats! {
    /// Faults that units put into the buffer.
    faults,
    /// Of them, those dropped because another of the batch is for the same page.
    duplicates,
    /// Batches in which they were served.
    batches,
    /// Faults that failed.
    failed,
    /// Pages that were entered as system memory, where the CPU accesses them, too.
    in_place,
    /// Huge pages that were entered as one, where they are or in the device's memory.
    huge,
    /// Pages that migrated to the device, from system memory or as zeroes.
    migrated,
    /// Pages that were copied, and stayed the system's as well.
    duplicated,
    /// Of them, those given up for lack of room, or because the device was told to.
    uncopied,
    /// Pages copied directly from another device of the group.
    from_peers,
    /// Pages that the device gave up, for lack of room or because it was told to.
    evicted,
    /// Faults that would have migrated a page, which bounced, and stayed in system memory.
    bounced,
    /// Faults that would have brought back what had just left for lack of room, and were served where the pages are.
    crowded,
    /// Pages that were brought ahead of the units.
    ahead,
    /// Times that the device had to start reading a range again, because it changed meanwhile.
    collisions,
    /// Times that somebody waited for units to let go of frames.
    shootdowns,
    /// Accesses of system pages that were not there any more.
    trapped,
}
