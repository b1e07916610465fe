//! Whether others were at work on the machine while figures were made: those are not to be compared with any others.
//!
//! Only systems whose work is all done by the worker's processes can tell: CPU time that is not theirs is somebody else's.

use crate::report::Cell;
use crate::system::Budget;
use std::fmt::{self, Display};

/// CPUs that others may take before it is told. The kernel's own threads take some always, the bench itself a little.
const BEARABLE_CPUS: f64 = 0.25;
/// CPU time of which that is told: the kernel counts in hundredths of a second.
const CERTAIN_SECONDS: f64 = 0.1;

/// Measurements during which others were at work.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Others {
    /// How many measurements.
    pub(crate) nr_disturbed: usize,
    /// Of how many that can tell.
    pub(crate) nr_measured: usize,
    /// CPUs that were taken in the worst of them.
    pub(crate) most_cpus: f64,
    /// Which that was.
    pub(crate) most_on: String,
}

impl Others {
    /// What these measurements saw of others; `None` if it was little.
    pub(crate) fn seen<'a>(cells: impl Iterator<Item = &'a Cell>, budget: &Budget) -> Option<Self> {
        let (mut nr_measured, mut disturbed) = (0, Vec::new());
        for cell in cells.filter(|cell| cell.system.is_in_processes(budget)) {
            nr_measured += cell.repetitions.len();
            for usage in cell.repetitions.iter().map(|repetition| &repetition.worker.usage) {
                let cpus = usage.others_seconds() / usage.seconds;
                if usage.others_seconds() > CERTAIN_SECONDS && cpus > BEARABLE_CPUS {
                    disturbed.push((cpus, cell));
                }
            }
        }
        let (most_cpus, on) = disturbed.iter().max_by(|one, other| one.0.total_cmp(&other.0))?;
        let most_on = format!("{} on {}", on.workload.name(), on.system.name());
        Some(Self { nr_disturbed: disturbed.len(), nr_measured, most_cpus: *most_cpus, most_on })
    }
}

impl Display for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nr_disturbed, nr_measured, most_cpus, most_on } = self;
        write!(
            f,
            "others were at work in {nr_disturbed} of {nr_measured} measurements, with up to {most_cpus:.1} CPUs ({most_on}): \
             see top(1), and measure again"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Data;
    use crate::sample;
    use crate::system::System;
    use crate::workload::Workload;

    /// A cell with a repetition for each pair of seconds that it took, and of CPU time of others.
    fn cell(system: System, runs: &[(f64, f64)]) -> Cell {
        let repetition = |&(seconds, others_seconds): &(f64, f64)| {
            let mut repetition = sample::repetition(seconds, 1.0);
            repetition.worker.usage.machine_seconds = seconds * 0.75 + others_seconds;
            repetition
        };
        let repetitions = runs.iter().map(repetition).collect();
        Cell { repetitions, ..Cell::new(Data::Compressible, Workload::Quicksort, system) }
    }

    #[test]
    fn what_others_take_is_told_where_it_can_be_told() {
        let seen = |cells: &[Cell], device: &str| {
            Others::seen(cells.iter(), &Budget { device: device.to_owned(), ..Budget::default() })
        };
        let quiet = cell(System::Ram, &[(10.0, 1.9), (0.2, 0.09)]);
        let swapped = cell(System::Zram, &[(10.0, 10.0)]);
        assert_eq!(seen(&[quiet, swapped], "lz4"), None);
        let cells = [
            cell(System::Ram, &[(10.0, 0.0), (10.0, 4.0)]),
            cell(System::Hmm, &[(1.0, 0.5)]),
            cell(System::HmmFile, &[(1.0, 1.0)]),
        ];
        let others = seen(&cells, "lz4").unwrap();
        assert_eq!(
            others.to_string(),
            "others were at work in 2 of 3 measurements, with up to 0.5 CPUs (quicksort on hmm): see top(1), and measure again"
        );
        assert_eq!(seen(&cells, "file:path=/var/tmp"), None);
    }
}
