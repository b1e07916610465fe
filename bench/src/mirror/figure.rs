//! What `hmm bench --mirror` and `--paging` measure: each figure with its floor and its bar.

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Figure {
    /// Migration of 4 KiB pages from system memory to a device.
    ToDevice4k,
    /// And back.
    ToSystem4k,
    /// Migration of huge pages from system memory to a device.
    ToDeviceHuge,
    /// And back.
    ToSystemHuge,
    /// Looking at resident memory without faulting anything in.
    Snapshot,
    /// A load of a unit from a system page, by the TLB.
    LoadInPlace,
    /// A load of a unit from the device's memory, by the TLB.
    LoadFrame,
    /// Summing whole pages where the CPU has them.
    SumInPlace,
    /// Summing whole pages in the device's memory.
    SumFrames,
    /// Copying whole pages from where the CPU has them.
    CopyInPlace,
    /// Copying whole pages from the device's memory.
    CopyFrames,
    /// A fault of the device on a resident page.
    Fault,
    /// Work on twice the device's memory, word by word.
    TwiceByWords,
    /// Work on twice the device's memory, page by page.
    TwiceByPages,
    /// The same two, on pages that have to be on the device to be accessed.
    TwiceMovedByWords,
    /// See above.
    TwiceMovedByPages,
    /// A touch of a page that is away.
    FaultHome4k,
    /// A touch of every page of 2 MiB that are away.
    FaultHome2m,
    /// Work on a small part of what is managed.
    SparseWork,
    /// The tables for that.
    SparseTables,
}

/// What is asked for together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    /// Devices that mirror a process.
    Mirror,
    /// Memory that comes home by itself.
    Paging,
}

impl Set {
    /// The option that asks for it.
    pub(crate) const fn option(self) -> &'static str {
        match self {
            Self::Mirror => "--mirror",
            Self::Paging => "--paging",
        }
    }

    /// Its figures, in the order of the table.
    pub(crate) fn figures(self) -> impl Iterator<Item = Figure> {
        Figure::ALL.into_iter().filter(move |figure| figure.group().set() == self)
    }
}

/// Figures that one worker process measures together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Group {
    /// Both ways, 4 KiB pages.
    Migrate4k,
    /// Both ways, huge pages.
    MigrateHuge,
    /// The snapshot.
    Snapshot,
    /// Loads.
    Loads,
    /// Sums and copies.
    Slices,
    /// Faults.
    Faults,
    /// Twice the memory.
    Twice,
    /// Faults that bring memory home.
    Home,
    /// A small part of much memory.
    Sparse,
}

impl Group {
    /// What it belongs to.
    pub(crate) const fn set(self) -> Set {
        match self {
            Self::Migrate4k
            | Self::MigrateHuge
            | Self::Snapshot
            | Self::Loads
            | Self::Slices
            | Self::Faults
            | Self::Twice => Set::Mirror,
            Self::Home | Self::Sparse => Set::Paging,
        }
    }
}

/// When a figure is good enough.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Bar {
    /// Figure over floor is at least this: figures that are speeds.
    RatioAtLeast(f64),
    /// Figure over floor is at most this: figures that are times.
    RatioAtMost(f64),
    /// The figure itself is at most this, whatever the floor.
    FigureAtMost(f64),
}

impl Bar {
    /// Whether the figure meets it.
    pub(crate) fn is_met(self, figure: f64, ratio: f64) -> bool {
        match self {
            Self::RatioAtLeast(least) => ratio >= least,
            Self::RatioAtMost(most) => ratio <= most,
            Self::FigureAtMost(most) => figure <= most,
        }
    }
}

/// What is told of a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spec {
    /// What is measured.
    pub(crate) what: &'static str,
    /// What it is compared with, measured in turns with it.
    pub(crate) floor: &'static str,
    /// Unit of figure and floor.
    pub(crate) unit: &'static str,
    /// What is good enough.
    pub(crate) bar: Bar,
}

const GB_PER_S: &str = "GB/s";
const NS: &str = "ns";
const US: &str = "us";
/// What "at memory speed" is taken for: a page is copied once more than the CPU would.
const SLICE_BAR: f64 = 0.8;
const MEMCPY: &str = "memcpy of the same bytes";

impl Figure {
    /// All figures, in the order of the table.
    pub(crate) const ALL: [Self; 20] = [
        Self::ToDevice4k,
        Self::ToSystem4k,
        Self::ToDeviceHuge,
        Self::ToSystemHuge,
        Self::Snapshot,
        Self::LoadInPlace,
        Self::LoadFrame,
        Self::SumInPlace,
        Self::SumFrames,
        Self::CopyInPlace,
        Self::CopyFrames,
        Self::Fault,
        Self::TwiceByWords,
        Self::TwiceByPages,
        Self::TwiceMovedByWords,
        Self::TwiceMovedByPages,
        Self::FaultHome4k,
        Self::FaultHome2m,
        Self::SparseWork,
        Self::SparseTables,
    ];

    /// Who measures it.
    pub(crate) const fn group(self) -> Group {
        match self {
            Self::ToDevice4k | Self::ToSystem4k => Group::Migrate4k,
            Self::ToDeviceHuge | Self::ToSystemHuge => Group::MigrateHuge,
            Self::Snapshot => Group::Snapshot,
            Self::LoadInPlace | Self::LoadFrame => Group::Loads,
            Self::SumInPlace | Self::SumFrames | Self::CopyInPlace | Self::CopyFrames => Group::Slices,
            Self::Fault => Group::Faults,
            Self::TwiceByWords | Self::TwiceByPages | Self::TwiceMovedByWords | Self::TwiceMovedByPages => {
                Group::Twice
            }
            Self::FaultHome4k | Self::FaultHome2m => Group::Home,
            Self::SparseWork | Self::SparseTables => Group::Sparse,
        }
    }

    /// What is told of it.
    pub(crate) fn spec(self) -> Spec {
        let speed = |what, floor, least| Spec { what, floor, unit: GB_PER_S, bar: Bar::RatioAtLeast(least) };
        let load = |what| Spec { what, floor: "a plain load", unit: NS, bar: Bar::RatioAtMost(4.0) };
        match self {
            Self::ToDevice4k => speed("migrate to a device, 4 KiB pages", MEMCPY, 0.4),
            Self::ToSystem4k => speed("migrate to system memory, 4 KiB pages", MEMCPY, 0.4),
            Self::ToDeviceHuge => speed("migrate to a device, huge pages", MEMCPY, 0.7),
            Self::ToSystemHuge => speed("migrate to system memory, huge pages", MEMCPY, 0.7),
            Self::Snapshot => Spec {
                what: "snapshot of resident 4 KiB pages",
                floor: "PAGEMAP_SCAN and writing the result",
                unit: "Mpages/s",
                bar: Bar::RatioAtLeast(0.5),
            },
            Self::LoadInPlace => load("dependent load, TLB hit, in place"),
            Self::LoadFrame => load("dependent load, TLB hit, device memory"),
            Self::SumInPlace => speed("sum by pages, in place", "plain sum", SLICE_BAR),
            Self::SumFrames => speed("sum by pages, device memory", "plain sum", SLICE_BAR),
            Self::CopyInPlace => speed("copy by pages, in place", MEMCPY, SLICE_BAR),
            Self::CopyFrames => speed("copy by pages, device memory", MEMCPY, SLICE_BAR),
            Self::Fault => Spec {
                what: "device fault and read of a resident page",
                floor: "first touch of fresh memory",
                unit: US,
                bar: Bar::FigureAtMost(3.0),
            },
            Self::TwiceByWords => speed("change all words, twice the memory", "all of it fits", 0.5),
            Self::TwiceByPages => speed("change all pages, twice the memory", "all of it fits", 0.5),
            Self::TwiceMovedByWords => speed("the same by words, all on the device", "all of it fits", 0.5),
            Self::TwiceMovedByPages => speed("the same by pages, all on the device", "all of it fits", 0.5),
            Self::FaultHome4k => Spec {
                what: "fault home of 4 KiB, at random",
                floor: "a bare fault in userland and lz4 of 4 KiB",
                unit: US,
                bar: Bar::RatioAtMost(1.25),
            },
            Self::FaultHome2m => Spec {
                what: "fault home of 2 MiB that are away",
                floor: "lz4 of 2 MiB and UFFDIO_MOVE of 2 MiB",
                unit: US,
                bar: Bar::RatioAtMost(1.15),
            },
            // No slower, within what two runs of the same differ by.
            Self::SparseWork => speed("change what is touched of 1 TiB managed", "no more is managed", 0.95),
            Self::SparseTables => Spec {
                what: "tables for it",
                floor: "tables when no more is managed",
                unit: "MiB",
                bar: Bar::FigureAtMost(4.0),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_met_on_the_right_side() {
        assert!(Bar::RatioAtLeast(0.5).is_met(9.0, 0.5) && !Bar::RatioAtLeast(0.5).is_met(9.0, 0.49));
        assert!(Bar::RatioAtMost(4.0).is_met(9.0, 4.0) && !Bar::RatioAtMost(4.0).is_met(0.1, 4.1));
        assert!(Bar::FigureAtMost(3.0).is_met(3.0, 99.0) && !Bar::FigureAtMost(3.0).is_met(3.1, 0.1));
    }
}
