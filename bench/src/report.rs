//! The figures of a whole run, and what is computed from them: medians and ratios.

use crate::data::Data;
use crate::floors::Floors;
use crate::latency::Percentiles;
use crate::machine::Machine;
use crate::others::Others;
use crate::outcome::Repetition;
use crate::price::Price;
use crate::size::Size;
use crate::sweep::Sweep;
use crate::system::System;
use crate::worker::WorkerReport;
use crate::workload::Workload;
use std::path::PathBuf;

/// Everything that a run found out.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Report {
    /// Version of hmm.
    pub(crate) version: &'static str,
    /// The command line.
    pub(crate) command: Vec<String>,
    /// The machine.
    pub(crate) machine: Machine,
    /// What was asked for.
    pub(crate) setup: Setup,
    /// What the machine can do at best.
    pub(crate) floors: Floors,
    /// What others did on the machine meanwhile, if it was enough to change figures.
    pub(crate) others: Option<Others>,
    /// Systems that could not be measured here, with the reason.
    pub(crate) skipped: Vec<Skipped>,
    /// One for each kind of data, workload and system that was measured.
    pub(crate) cells: Vec<Cell>,
    /// One for each kind of data and workload with two systems to compare.
    pub(crate) ratios: Vec<Ratio>,
    /// How figures change with the size of the working set and the number of threads, if that was asked for.
    pub(crate) sweeps: Vec<Sweep>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Setup {
    /// Size of the working set.
    pub(crate) size_bytes: Size,
    /// Budget of hmm.
    pub(crate) ram_bytes: Size,
    /// Limit of the cgroup that zram works under: the budget and an allowance for what the limit counts beyond it.
    pub(crate) cgroup_limit_bytes: Size,
    /// Device of hmm.
    pub(crate) device: String,
    /// Where files to page to are made, if any system has one.
    pub(crate) dir: Option<PathBuf>,
    /// The command of the adapter, if there is one.
    pub(crate) adapter: Option<String>,
    /// Repetitions of each cell.
    pub(crate) reps: u32,
    /// Passes over the working set in each repetition.
    pub(crate) passes: u64,
    /// Threads that share the work, but for sorts and for `rand2`.
    pub(crate) threads: u32,
}

/// A system that could not be measured.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Skipped {
    /// The system.
    pub(crate) system: System,
    /// Why.
    pub(crate) reason: String,
}

/// All measurements of one workload on one system.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Cell {
    /// The data.
    pub(crate) data: Data,
    /// The workload.
    pub(crate) workload: Workload,
    /// The system.
    pub(crate) system: System,
    /// Workers that the kernel killed for want of memory. Each was started again, at most twice a repetition; after the
    /// third kill, the repetition was given up.
    pub(crate) oom_kills: u32,
    /// Whether one took so long that it was given up, and the others with it.
    pub(crate) given_up: bool,
    /// Repetitions that failed in another way.
    pub(crate) failures: Vec<String>,
    /// Medians over the repetitions; `None` when none succeeded.
    pub(crate) median: Option<Medians>,
    /// What paging costs here, and how far that is from the floors; `None` in RAM.
    pub(crate) price: Option<Price>,
    /// The repetitions.
    pub(crate) repetitions: Vec<Repetition>,
}

impl Cell {
    /// Whether any worker was started for it.
    pub(crate) const fn was_tried(&self) -> bool {
        self.oom_kills > 0 || !self.failures.is_empty() || !self.repetitions.is_empty()
    }

    /// A cell without measurements.
    pub(crate) const fn new(data: Data, workload: Workload, system: System) -> Self {
        Self {
            data,
            workload,
            system,
            oom_kills: 0,
            given_up: false,
            failures: Vec::new(),
            median: None,
            price: None,
            repetitions: Vec::new(),
        }
    }
}

/// Medians of the figures, each taken by itself.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Medians {
    /// Bytes worked on in a second, in millions.
    pub(crate) mb_per_s: f64,
    /// First accesses to a page in a second.
    pub(crate) touches_per_s: Option<f64>,
    /// Part of these that faulted, from 0 to 1.
    pub(crate) fault_share: Option<f64>,
    /// Latency of those that faulted. `max_ns` is no median but the worst of all repetitions.
    pub(crate) fault_latency: Option<Percentiles>,
    /// 99th percentile over all touches, faulted or not.
    pub(crate) p99_of_all_ns: Option<f64>,
    /// CPU time of the process.
    pub(crate) cpu_seconds: f64,
    /// CPU time of the whole machine.
    pub(crate) machine_seconds: f64,
    /// CPU time of the whole machine from the start of the worker to its end: filling and checking, too.
    pub(crate) run_machine_seconds: f64,
    /// Bytes that went to where the rest lives, or came from there, in all that time.
    pub(crate) moved_bytes: Option<f64>,
    /// Most resident memory of the process.
    pub(crate) max_rss_bytes: f64,
    /// RAM that held what was away, beside the budget.
    pub(crate) device_bytes: Option<f64>,
}

impl Medians {
    /// Over all repetitions; `None` over none.
    pub(crate) fn of(repetitions: &[Repetition]) -> Option<Self> {
        let over = |figure: &dyn Fn(&WorkerReport) -> Option<f64>| {
            median(repetitions.iter().filter_map(|repetition| figure(&repetition.worker)))
        };
        let always = |figure: &dyn Fn(&WorkerReport) -> f64| over(&|worker| Some(figure(worker)));
        Some(Self {
            mb_per_s: always(&|worker| worker.mb_per_s)?,
            touches_per_s: over(&|worker| worker.touches_per_s),
            fault_share: over(&|worker| Some(worker.faulted? as f64 / worker.touches as f64)),
            fault_latency: median_latency(repetitions),
            p99_of_all_ns: over(&|worker| worker.p99_of_all_ns),
            cpu_seconds: always(&|worker| worker.usage.user_seconds + worker.usage.system_seconds)?,
            machine_seconds: always(&|worker| worker.usage.machine_seconds)?,
            run_machine_seconds: median(repetitions.iter().map(|rep| rep.run.machine_seconds))?,
            moved_bytes: median(
                repetitions.iter().filter_map(|rep| rep.run.moved_bytes.map(|bytes| bytes as f64)),
            ),
            max_rss_bytes: always(&|worker| worker.max_rss_bytes as f64)?,
            device_bytes: median(
                repetitions.iter().filter_map(|rep| rep.device_bytes.map(|bytes| bytes as f64)),
            ),
        })
    }
}

fn median_latency(repetitions: &[Repetition]) -> Option<Percentiles> {
    let seen = || repetitions.iter().filter_map(|repetition| repetition.worker.fault_latency);
    Some(Percentiles {
        p50_ns: median(seen().map(|latency| latency.p50_ns))?,
        p90_ns: median(seen().map(|latency| latency.p90_ns))?,
        p99_ns: median(seen().map(|latency| latency.p99_ns))?,
        p999_ns: median(seen().map(|latency| latency.p999_ns))?,
        max_ns: seen().map(|latency| latency.max_ns).fold(0.0, f64::max),
    })
}

/// The value in the middle, or the mean of the two that are; `None` of none.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    let upper = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[upper]),
        _ => Some(f64::midpoint(values[upper - 1], values[upper])),
    }
}

/// hmm against the others, on one workload.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Ratio {
    /// The data.
    pub(crate) data: Data,
    /// The workload.
    pub(crate) workload: Workload,
    /// Speed of hmm over that of zram: more is better.
    pub(crate) speed_to_zram: Option<f64>,
    /// Speed of hmm over that of RAM: less than 1, and the price of having less RAM.
    pub(crate) speed_to_ram: Option<f64>,
    /// 50th percentile of touches that faulted, hmm over zram: less is better.
    pub(crate) p50_to_zram: Option<f64>,
    /// 99th percentile of touches that faulted, hmm over zram: less is better.
    pub(crate) p99_to_zram: Option<f64>,
    /// Speeds of others that were measured, over each other: more is better.
    pub(crate) speeds: Vec<SpeedRatio>,
    /// The same of all touches, faulted or not: who faults less is not punished for having only hard faults.
    pub(crate) p99_of_all_to_zram: Option<f64>,
    /// CPU time of the machine for the same work, hmm over zram: less is better.
    pub(crate) cpu_to_zram: Option<f64>,
    /// CPU time of the machine for each byte that was moved, beyond what the work takes in RAM, hmm over zram: less is better.
    pub(crate) cpu_of_moving_to_zram: Option<f64>,
}

/// The speed of one system over that of another.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(crate) struct SpeedRatio {
    /// The one.
    pub(crate) of: System,
    /// The other.
    pub(crate) to: System,
    /// What the one does while the other does one.
    pub(crate) ratio: f64,
}

/// Who is compared with whom, beside hmm with zram and RAM: each with what has the same to page to.
const PAIRS: [(System, System); 9] = [
    (System::HmmFits, System::Ram),
    (System::HmmInThread, System::Hmm),
    (System::HmmInThread, System::Zram),
    (System::Hmm, System::Zswap),
    (System::Hmm, System::Swapfile),
    (System::Hmm, System::Mmap),
    (System::Hmm, System::Adapter),
    (System::HmmFile, System::Swapfile),
    (System::HmmFile, System::Mmap),
];

/// The same work on another system.
pub(crate) fn beside<'a>(cells: &'a [Cell], cell: &Cell, system: System) -> Option<&'a Cell> {
    let same =
        |other: &&Cell| (other.data, other.workload, other.system) == (cell.data, cell.workload, system);
    cells.iter().find(same)
}

/// Compares the systems wherever two were measured that are to be compared.
pub(crate) fn ratios(cells: &[Cell]) -> Vec<Ratio> {
    let works = cells.chunk_by(|one, next| (one.data, one.workload) == (next.data, next.workload));
    works.filter_map(ratio).collect()
}

/// Compares the cells of one work; `None` if there is nothing to compare.
fn ratio(cells: &[Cell]) -> Option<Ratio> {
    let cell = |system| cells.iter().find(|cell| cell.system == system);
    let median = |system| cell(system)?.median.as_ref();
    let (hmm, zram, ram) = (median(System::Hmm), median(System::Zram), median(System::Ram));
    let over = |one: Option<f64>, other: Option<f64>| one.zip(other).map(|(one, other)| one / other);
    let speed = |median: Option<&Medians>| median.map(|median| median.mb_per_s);
    let latency = |figure: fn(&Percentiles) -> f64| {
        let of = |median: Option<&Medians>| median?.fault_latency.as_ref().map(figure);
        over(of(hmm), of(zram))
    };
    let of_all = |median: Option<&Medians>| median?.p99_of_all_ns;
    let cpu = |median: Option<&Medians>| median.map(|median| median.machine_seconds);
    let moving = |system| cell(system)?.price.as_ref()?.cpu_seconds_per_gib_moved;
    let pair = |(of, to): (System, System)| {
        Some(SpeedRatio { of, to, ratio: over(speed(median(of)), speed(median(to)))? })
    };
    let ratio = Ratio {
        data: cells[0].data,
        workload: cells[0].workload,
        speed_to_zram: over(speed(hmm), speed(zram)),
        speed_to_ram: over(speed(hmm), speed(ram)),
        p50_to_zram: latency(|latency| latency.p50_ns),
        p99_to_zram: latency(|latency| latency.p99_ns),
        speeds: PAIRS.into_iter().filter_map(pair).collect(),
        p99_of_all_to_zram: over(of_all(hmm), of_all(zram)),
        cpu_to_zram: over(cpu(hmm), cpu(zram)),
        cpu_of_moving_to_zram: over(moving(System::Hmm), moving(System::Zram)),
    };
    let nothing = hmm.is_none_or(|_| zram.is_none() && ram.is_none()) && ratio.speeds.is_empty();
    (!nothing).then_some(ratio)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::sample;

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median([].into_iter()), None);
        assert_eq!(median([3.0].into_iter()), Some(3.0));
        assert_eq!(median([9.0, 1.0, 5.0].into_iter()), Some(5.0));
        assert_eq!(median([8.0, 1.0, 2.0, 4.0].into_iter()), Some(3.0));
    }

    #[test]
    fn figures_are_medians_but_the_worst_touch_is_not() {
        let repetitions = [(1.0, 3000.0), (4.0, 9000.0), (2.0, 5000.0)];
        let repetitions = repetitions.map(|(seconds, ns)| sample::repetition(seconds, ns));
        let medians = Medians::of(&repetitions).unwrap();
        assert_eq!(medians.mb_per_s, f64::from(1 << 30) / 2.0 / 1e6);
        assert_eq!(medians.cpu_seconds, 1.5);
        assert_eq!(medians.fault_share, Some(0.5));
        let latency = medians.fault_latency.unwrap();
        assert_eq!((latency.p50_ns, latency.p99_ns, latency.max_ns), (5000.0, 50_000.0, 900_000.0));
        assert_eq!(Medians::of(&[]), None);
    }

    #[test]
    fn ratios_compare_what_was_measured() {
        let report = sample::report();
        let seqrmw = Ratio {
            data: Data::Compressible,
            workload: Workload::Seqrmw,
            speed_to_zram: Some(4.0),
            speed_to_ram: Some(0.25),
            p50_to_zram: Some(0.5),
            p99_to_zram: Some(0.5),
            speeds: vec![SpeedRatio { of: System::HmmFits, to: System::Ram, ratio: 0.5 }],
            p99_of_all_to_zram: Some(0.5),
            cpu_to_zram: Some(0.25),
            cpu_of_moving_to_zram: Some(0.2),
        };
        assert_eq!(report.ratios, [seqrmw], "sort failed under hmm and has nothing to compare");
    }

    #[test]
    fn json_has_what_machines_look_for() {
        let json = serde_json::to_value(sample::report()).unwrap();
        let at = |path: &str| json.pointer(path).unwrap_or_else(|| panic!("no {path} in {json:#}"));
        assert_eq!(at("/command/1"), "bench");
        assert_eq!(at("/machine/nr_cpus"), 2);
        assert_eq!(at("/setup/size_bytes"), 1 << 30);
        assert_eq!(at("/skipped/0/system"), "zram");
        assert_eq!(at("/cells/2/data"), "3:1");
        assert_eq!(at("/cells/2/workload"), "seqrmw");
        assert_eq!(at("/cells/2/median/fault_latency/p99_ns"), 40_000.0);
        assert_eq!(at("/cells/2/repetitions/2/user_seconds"), 0.25);
        assert_eq!(at("/cells/4/failures/0"), "repetition 1: exit status: 1: no reason");
        assert_eq!(at("/cells/4/median"), &serde_json::Value::Null);
        assert_eq!(at("/cells/5/oom_kills"), 1);
        assert_eq!(at("/ratios/0/speed_to_zram"), 4.0);
    }
}
