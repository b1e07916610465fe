//! The same work at several sizes, or by several threads: how figures change, not only what they are.
//!
//! A point is a plan of its own with a smaller budget than usual, one repetition, and two kinds of work, so that all of them
//! take minutes.

use crate::args::Plan;
use crate::data::Data;
use crate::report::Cell;
use crate::size::Size;
use crate::system::System;
use crate::workload::Workload;
use anyhow::Result;
use std::fmt;

const WORKLOADS: [Workload; 2] = [Workload::Seqrmw, Workload::Randread];
const RAM: Size = Size::mib(64);
/// Working sets in halves of the budget.
const HALVES: [u64; 8] = [1, 2, 3, 4, 6, 8, 12, 16];
const THREADS: [u32; 4] = [1, 2, 4, 8];
/// For a smoke run, which is to show that it works.
const QUICK_RAM: Size = Size::mib(16);
const QUICK_HALVES: [u64; 3] = [1, 4, 8];
const QUICK_THREADS: [u32; 2] = [1, 2];

/// What changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Axis {
    /// The working set, as a multiple of the budget.
    Size,
    /// How many threads share the work.
    Threads,
}

/// One value on the axis.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Point {
    /// The value.
    pub(crate) x: f64,
    /// What was measured there.
    pub(crate) cells: Vec<Cell>,
}

/// All points.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Sweep {
    /// What changes.
    pub(crate) axis: Axis,
    /// The budget, which is the same everywhere.
    pub(crate) ram_bytes: Size,
    /// From the least value to the greatest.
    pub(crate) points: Vec<Point>,
}

/// The plans of a sweep.
struct Planned {
    axis: Axis,
    plans: Vec<(f64, Plan)>,
}

fn planned(plan: &Plan) -> [Planned; 2] {
    let quick = plan.quick;
    let ram = if quick { QUICK_RAM } else { RAM };
    let at = |halves: u64, threads: u32| {
        let mut point = plan.clone();
        point.budget.ram = ram;
        point.size = Size { bytes: ram.bytes / 2 * halves };
        (point.threads, point.reps) = (threads, 1);
        point.workloads = WORKLOADS.to_vec();
        point.data.truncate(1);
        point.systems.retain(|system| *system != System::HmmFits);
        point
    };
    let halves = if quick { QUICK_HALVES.as_slice() } else { &HALVES };
    let threads = if quick { QUICK_THREADS.as_slice() } else { &THREADS };
    let sizes = halves.iter().map(|halves| (*halves as f64 / 2.0, at(*halves, 1)));
    let threads = threads.iter().map(|threads| (f64::from(*threads), at(4, *threads)));
    [
        Planned { axis: Axis::Size, plans: sizes.collect() },
        Planned { axis: Axis::Threads, plans: threads.collect() },
    ]
}

/// Makes all measurements of both axes.
///
/// # Errors
/// As [`crate::run::run`]; or too little RAM for the largest working set.
pub(crate) fn run(plan: &Plan, available_bytes: Option<u64>) -> Result<Vec<Sweep>> {
    let planned = planned(plan);
    let all = || planned.iter().flat_map(|sweep| &sweep.plans);
    all().try_for_each(|(_, plan)| plan.check_fits(available_bytes))?;
    let mut sweeps = Vec::new();
    for Planned { axis, plans } in &planned {
        let mut points = Vec::new();
        for (x, plan) in plans {
            // What is skipped there is skipped everywhere, and told by the main measurement.
            let (cells, _) = crate::run::run(plan)?;
            points.push(Point { x: *x, cells });
        }
        let ram_bytes = plans.first().map_or(Size::default(), |(_, plan)| plan.budget.ram);
        sweeps.push(Sweep { axis: *axis, ram_bytes, points });
    }
    Ok(sweeps)
}

impl Sweep {
    /// All that was measured.
    pub(crate) fn cells(&self) -> impl Iterator<Item = &Cell> {
        self.points.iter().flat_map(|point| &point.cells)
    }

    /// Kinds of data and work that were measured.
    pub(crate) fn works(&self) -> Vec<(Data, Workload)> {
        let mut works = Vec::new();
        for cell in self.cells() {
            if !works.contains(&(cell.data, cell.workload)) {
                works.push((cell.data, cell.workload));
            }
        }
        works
    }

    /// Systems that were measured, in their usual order.
    pub(crate) fn systems(&self) -> Vec<System> {
        let has = |system: &System| self.cells().any(|cell| cell.system == *system);
        System::ALL.into_iter().filter(has).collect()
    }

    /// Measurements that failed.
    pub(crate) fn failures(&self) -> impl Iterator<Item = &String> {
        self.cells().flat_map(|cell| &cell.failures)
    }
}

impl fmt::Display for Sweep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, unit) = match self.axis {
            Axis::Size => ("working set over RAM", "x"),
            Axis::Threads => ("threads, twice the RAM", ""),
        };
        writeln!(f, "\nMB/s by {what} ({})", self.ram_bytes)?;
        write!(f, "{:19}", "")?;
        self.points.iter().try_for_each(|point| write!(f, "{:>8}", format!("{}{unit}", point.x)))?;
        writeln!(f)?;
        for (data, workload) in self.works() {
            for system in self.systems() {
                write!(f, "{:<10}{:<9}", workload.name(), system.name())?;
                for point in &self.points {
                    let same =
                        |cell: &&Cell| (cell.data, cell.workload, cell.system) == (data, workload, system);
                    let median = point.cells.iter().find(same).and_then(|cell| cell.median.as_ref());
                    match median {
                        Some(median) => write!(f, "{:>8.0}", median.mb_per_s)?,
                        None => write!(f, "{:>8}", "-")?,
                    }
                }
                writeln!(f)?;
            }
        }
        self.failures().try_for_each(|why| writeln!(f, "{:19} failed: {why}", ""))
    }
}
