//! A report with every case in it, for tests of what is printed.

use crate::cost::RunCost;
use crate::data::Data;
use crate::floors::{FaultFloor, FileFloor, Floor, Floors, Lz4Floor, VerbFloors};
use crate::latency::Percentiles;
use crate::machine::Machine;
use crate::others::Others;
use crate::outcome::Repetition;
use crate::price;
use crate::report::{Cell, Medians, Report, Setup, Skipped, ratios};
use crate::size::Size;
use crate::sweep::{Axis, Point, Sweep};
use crate::system::{Budget, System};
use crate::usage::Usage;
use crate::worker::WorkerReport;
use crate::workload::Workload;

/// A repetition in which 1 GiB was worked on in `seconds`, every second touch faulted, and a fault took `p50_ns`.
pub(crate) fn repetition(seconds: f64, p50_ns: f64) -> Repetition {
    let touches = 1 << 18;
    let latency = Percentiles {
        p50_ns,
        p90_ns: p50_ns * 2.0,
        p99_ns: p50_ns * 10.0,
        p999_ns: p50_ns * 20.0,
        max_ns: p50_ns * 100.0,
    };
    Repetition {
        worker: WorkerReport {
            bytes: 1 << 30,
            mb_per_s: f64::from(1 << 30) / seconds / 1e6,
            touches,
            touches_per_s: Some(f64::from(1 << 18) / seconds),
            faulted: Some(touches / 2),
            fault_latency: Some(latency),
            slow_touches: vec![(p50_ns, touches / 2 - 1), (p50_ns * 100.0, 1)],
            p99_of_all_ns: Some(p50_ns * 9.0),
            hit_ns: 50.0,
            usage: Usage {
                seconds,
                user_seconds: seconds / 4.0,
                system_seconds: seconds / 2.0,
                machine_seconds: seconds,
                minor_faults: 5,
                major_faults: 7,
            },
            max_rss_bytes: 512 << 20,
            space: None,
        },
        device_bytes: Some(100 << 20),
        run: RunCost { machine_seconds: seconds, moved_bytes: Some(2 << 30) },
        note: None,
        hmm_stats: None,
    }
}

fn cell(workload: Workload, system: System, repetitions: Vec<Repetition>) -> Cell {
    let median = Medians::of(&repetitions);
    Cell { median, repetitions, ..Cell::new(Data::Compressible, workload, system) }
}

fn sorting(seconds: f64) -> Repetition {
    let mut repetition = repetition(seconds, 0.0);
    let worker = &mut repetition.worker;
    (worker.touches_per_s, worker.faulted) = (None, None);
    (worker.fault_latency, worker.p99_of_all_ns) = (None, None);
    worker.slow_touches.clear();
    repetition.device_bytes = None;
    repetition
}

fn floors() -> Floors {
    let lz4 = |unit_bytes, decompress_gb_per_s| Lz4Floor {
        data: Data::Compressible,
        unit_bytes,
        ratio: 3.15,
        compress_gb_per_s: 1.0,
        decompress_gb_per_s,
    };
    Floors {
        memcpy_gb_per_s: 10.0,
        first_touch_ns: 1800.0,
        fault: Floor::Measured(FaultFloor { same_cpu_ns: 7300.0, other_cpu_ns: Some(50_000.0) }),
        verbs: Floor::Measured(VerbFloors {
            move_4k_ns: 1000.0,
            move_64k_ns: 2600.0,
            move_2m_ns: 33_000.0,
            copy_4k_ns: 1300.0,
        }),
        lz4: vec![lz4(4096, 3.0), lz4(2 << 20, 4.0)],
        file: Some(Floor::Measured(FileFloor {
            dir: "/var/tmp".into(),
            write_gb_per_s: 0.5,
            read_gb_per_s: 2.0,
            read_4k_ns: 90_000.0,
        })),
    }
}

fn sweep() -> Sweep {
    let at = |x, seconds| {
        let on = |workload, system| cell(workload, system, vec![repetition(seconds, 4000.0)]);
        let works = [Workload::Seqrmw, Workload::Randread];
        let cells = works.into_iter().flat_map(|work| [on(work, System::Ram), on(work, System::Hmm)]);
        Point { x, cells: cells.collect() }
    };
    Sweep {
        axis: Axis::Size,
        ram_bytes: Size::mib(64),
        points: vec![at(0.5, 0.5), at(2.0, 1.0), at(8.0, 8.0)],
    }
}

/// Two workloads: one on all systems, one that failed on hmm and was killed on zram.
pub(crate) fn report() -> Report {
    let mut failed = cell(Workload::Quicksort, System::Hmm, Vec::new());
    failed.failures.push("repetition 1: exit status: 1: no reason".to_owned());
    let mut killed = cell(Workload::Quicksort, System::Zram, vec![sorting(9.0)]);
    killed.oom_kills = 1;
    let three = |seconds, ns| {
        vec![repetition(seconds, ns), repetition(seconds * 3.0, ns), repetition(seconds * 2.0, ns)]
    };
    let mut noted = Repetition { note: Some("something to know".to_owned()), ..repetition(0.5, 2000.0) };
    noted.worker.usage.machine_seconds = 0.875;
    let mut cells = vec![
        cell(Workload::Seqrmw, System::Ram, vec![repetition(0.25, 2000.0)]),
        cell(Workload::Seqrmw, System::HmmFits, vec![noted]),
        cell(Workload::Seqrmw, System::Hmm, three(0.5, 4000.0)),
        cell(Workload::Seqrmw, System::Zram, three(2.0, 8000.0)),
        failed,
        killed,
    ];
    let floors = floors();
    let budget = Budget { ram: Size::mib(512), ..Budget::default() };
    price::set(&mut cells, &floors, &budget, Size::mib(1024));
    let sweeps = vec![sweep()];
    Report {
        version: "0.0.0",
        command: ["hmm", "bench", "--reps", "<MARKUP>"].map(str::to_owned).to_vec(),
        machine: Machine {
            cpu: "Some CPU".to_owned(),
            nr_cpus: 2,
            virtual_machine: true,
            ram_bytes: 8 << 30,
            kernel: "6.18.0".to_owned(),
            huge_pages: "madvise".to_owned(),
            swappiness: "60".to_owned(),
            page_cluster: "3".to_owned(),
        },
        setup: Setup {
            size_bytes: Size::mib(1024),
            ram_bytes: Size::mib(512),
            cgroup_limit_bytes: Size::mib(516),
            device: "lz4".to_owned(),
            dir: Some("/var/tmp".into()),
            adapter: Some("peer {args}".to_owned()),
            reps: 3,
            passes: 1,
            threads: 1,
        },
        floors,
        skipped: vec![Skipped { system: System::Zram, reason: "needs root".to_owned() }],
        ratios: ratios(&cells),
        others: Others::seen(cells.iter().chain(sweeps.iter().flat_map(Sweep::cells)), &budget),
        sweeps,
        cells,
    }
}
