//! What can be asked of the bench.

use crate::applications;
use crate::data::Data;
use crate::mirror;
use crate::mirror::figure::Set;
use crate::report::Setup;
use crate::size::Size;
use crate::system::{ADAPTER_ARGS, Budget, System};
use crate::workload::Workload;
use anyhow::{Result, ensure};
use std::path::PathBuf;
use std::time::Duration;

const RAM: Size = Size::mib(512);
const QUICK_RAM: Size = Size::mib(32);
const REPS: u32 = 3;
const PASSES: u64 = 2;
const PATIENCE_S: u64 = 300;
const QUICK_PATIENCE_S: u64 = 30;
/// Room for everything else that is on the machine.
const SPARE: Size = Size::mib(128);

/// Measure the same work in RAM, under hmm, on the kernel's swap on zram, and on others.
///
/// A worker process fills a working set larger than the budget and works on it; every byte is checked afterwards.
/// Repetitions take turns over the systems. As root, swap and a memory cgroup are set up for each repetition and
/// taken down after it; otherwise the reason why not is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Size of the working set [default: twice --ram].
    #[arg(long, value_name = "SIZE")]
    size: Option<Size>,
    /// RAM that hmm and zram may use for it [default: 512M].
    #[arg(long, value_name = "SIZE")]
    ram: Option<Size>,
    /// Device that hmm keeps the rest on, as in `hmm run --device`.
    #[arg(long, value_name = "SPEC", default_value = "lz4")]
    device: String,
    /// Repetitions on each system [default: 3].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    reps: Option<u32>,
    /// Passes over the working set in each repetition; sorts make one [default: 2].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    passes: Option<u64>,
    /// Threads that share the work, each in a part of the working set; rand2 has two, sorts one.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,
    /// Work to measure [default: all].
    #[arg(long, value_name = "NAMES", value_enum, value_delimiter = ',')]
    workloads: Vec<Workload>,
    /// Compressibility of the data [default: all].
    #[arg(long, value_name = "RATIOS", value_enum, value_delimiter = ',')]
    data: Vec<Data>,
    /// Systems to measure [default: ram,hmm,zram].
    #[arg(long, value_name = "NAMES", value_enum, value_delimiter = ',')]
    systems: Vec<System>,
    /// Measure all systems that there are.
    #[arg(long, conflicts_with = "systems")]
    peers: bool,
    /// Where the files are made that hmm-file, zswap, swapfile and mmap page to; a disk, as a rule.
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/tmp")]
    dir: PathBuf,
    /// Measure any other program, too: a command for sh(1). {args} becomes the worker's arguments; the program does that work
    /// and prints the worker's line of JSON, or runs the worker itself, {worker}, with {ram} bytes of RAM.
    #[arg(long, value_name = "COMMAND {args}", value_parser = adapter)]
    adapter: Option<String>,
    /// Measure what devices cost that mirror a process's memory, instead: migration, snapshots, loads, faults, and too
    /// little memory, each against a floor of the same run. A bar that is missed is a result, no failure.
    #[arg(long, conflicts_with_all = ["size", "ram", "device", "passes", "threads", "workloads", "data", "systems", "peers", "adapter", "patience", "sweep", "report"])]
    mirror: bool,
    /// Measure what it takes to bring memory home, 4 KiB and 2 MiB, against its parts, and to manage 1 TiB of which little is
    /// touched, instead. A bar that is missed is a result, no failure.
    #[arg(
        long,
        conflicts_with_all = ["mirror", "size", "ram", "device", "passes", "threads", "workloads", "data", "systems", "peers", "adapter", "patience", "sweep", "report"]
    )]
    paging: bool,
    /// Run programs that people use in half of the memory that they take, instead: sort, numpy, redis, sqlite3, and a walk
    /// over a graph. Times are over those with all of it; what they print has to be the same.
    #[arg(
        long,
        conflicts_with_all = [
            "mirror", "paging", "size", "ram", "device", "passes", "threads", "workloads", "data", "systems", "peers",
            "adapter", "patience", "sweep", "report"
        ]
    )]
    applications: bool,
    /// Smoke run: 64 MiB over 32 MiB, one repetition of one pass, unless said otherwise.
    #[arg(long)]
    quick: bool,
    /// Give a measurement up that takes longer, with all its repetitions; some peers can take hours [default: 300; 30 with
    /// --quick].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    patience: Option<u64>,
    /// Also measure how figures change with the size of the working set (half to eight times 64 MiB of RAM) and with the number
    /// of threads; some minutes more.
    #[arg(long)]
    sweep: bool,
    /// Write the report as a page for a browser, too, with charts; it needs no network. Implies --sweep.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Print JSON, with all single repetitions, instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is to be measured, every choice made.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) budget: Budget,
    pub(crate) size: Size,
    pub(crate) reps: u32,
    pub(crate) passes: u64,
    pub(crate) threads: u32,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) data: Vec<Data>,
    pub(crate) systems: Vec<System>,
    pub(crate) quick: bool,
    pub(crate) sweep: bool,
}

impl Args {
    /// What is to be measured with `--mirror` or `--paging`; `None` without them.
    pub(crate) fn figures(&self) -> Option<mirror::Plan> {
        let reps = self.reps.unwrap_or(if self.quick { 1 } else { REPS });
        let set = if self.paging { Set::Paging } else { Set::Mirror };
        (self.mirror || self.paging).then_some(mirror::Plan { set, reps, quick: self.quick, json: self.json })
    }

    /// What is to be run with `--applications`; `None` without it.
    pub(crate) fn applications(&self) -> Option<applications::Plan> {
        let reps = self.reps.unwrap_or(if self.quick { 1 } else { REPS });
        self.applications.then_some(applications::Plan { reps, quick: self.quick, json: self.json })
    }

    /// Fills in what was not said.
    ///
    /// # Errors
    /// A size that cannot be measured.
    pub(crate) fn plan(&self) -> Result<Plan> {
        let (ram, reps, passes, patience) =
            if self.quick { (QUICK_RAM, 1, 1, QUICK_PATIENCE_S) } else { (RAM, REPS, PASSES, PATIENCE_S) };
        let ram = self.ram.unwrap_or(ram);
        let size = self.size.unwrap_or(Size { bytes: ram.bytes.saturating_mul(2) });
        ensure!(size >= Size::mib(1), "--size {size}: a working set of less than 1 MiB tells nothing");
        ensure!(ram >= Size::mib(1), "--ram {ram}: no program fits into less than 1 MiB");
        Ok(Plan {
            budget: Budget {
                ram,
                device: self.device.clone(),
                dir: self.dir.clone(),
                adapter: self.adapter.clone(),
                patience: Duration::from_secs(self.patience.unwrap_or(patience)),
            },
            size,
            reps: self.reps.unwrap_or(reps),
            passes: self.passes.unwrap_or(passes),
            threads: self.threads,
            workloads: chosen(&self.workloads, &Workload::ALL),
            data: chosen(&self.data, &[Data::Compressible, Data::Incompressible]),
            systems: self.systems(),
            quick: self.quick,
            sweep: self.sweep || self.report.is_some(),
        })
    }
}

impl Args {
    /// What was asked for, and the adapter if there is one.
    fn systems(&self) -> Vec<System> {
        let mut asked = if self.systems.is_empty() { System::USUAL.to_vec() } else { self.systems.clone() };
        if self.peers {
            asked.extend(System::ALL.into_iter().filter(|system| *system != System::Adapter));
        }
        asked.extend(self.adapter.as_ref().map(|_| System::Adapter));
        chosen(&asked, &System::ALL)
    }
}

fn adapter(text: &str) -> Result<String, String> {
    let has_args = text.contains(ADAPTER_ARGS);
    has_args
        .then(|| text.to_owned())
        .ok_or_else(|| format!("say where the worker's arguments go, by {ADAPTER_ARGS}"))
}

/// All choices that were made, or all there are, in their usual order and each once.
fn chosen<T: Copy + PartialEq>(asked: &[T], all: &[T]) -> Vec<T> {
    all.iter().filter(|choice| asked.is_empty() || asked.contains(choice)).copied().collect()
}

impl Plan {
    /// Makes sure that the machine has RAM for the working set and a device that cannot compress it.
    ///
    /// # Errors
    /// It has not. On a machine that swaps by itself, nothing would be measured but that.
    pub(crate) fn check_fits(&self, available_bytes: Option<u64>) -> Result<()> {
        let beside = self.workloads.iter().map(|work| work.beside_bytes(self.size.bytes)).max().unwrap_or(0);
        let parts = [self.size.bytes, beside, self.budget.ram.bytes, SPARE.bytes];
        let needed = Size { bytes: parts.into_iter().fold(0, u64::saturating_add) };
        let available = Size { bytes: available_bytes.unwrap_or(u64::MAX) };
        ensure!(
            needed <= available,
            "{} of RAM are needed to compare all systems fairly, and only {} are available; choose a smaller --size and --ram",
            needed,
            Size::mib(available.bytes >> 20)
        );
        Ok(())
    }

    /// How many workers will run.
    pub(crate) const fn nr_runs(&self) -> usize {
        self.data.len() * self.workloads.len() * self.systems.len() * self.reps as usize
    }

    /// The choices, as the report tells them.
    pub(crate) fn setup(&self) -> Setup {
        Setup {
            size_bytes: self.size,
            ram_bytes: self.budget.ram,
            cgroup_limit_bytes: Size { bytes: self.budget.cgroup_bytes(self.size) },
            device: self.budget.device.clone(),
            dir: self.budget.file_dir(&self.systems),
            adapter: self.budget.adapter.clone(),
            reps: self.reps,
            passes: self.passes,
            threads: self.threads,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn plan(line: &str) -> Plan {
        let words = ["bench"].into_iter().chain(line.split_whitespace());
        Command::try_parse_from(words).unwrap().args.plan().unwrap()
    }

    #[test]
    fn defaults_are_those_of_the_help() {
        let full = plan("");
        assert_eq!((full.size, full.budget.ram), (Size::mib(1024), Size::mib(512)));
        assert_eq!((full.reps, full.passes, full.nr_runs()), (3, 2, 3 * 7 * 2 * 3));
        let quick = plan("--quick");
        assert_eq!((quick.size, quick.budget.ram), (Size::mib(64), Size::mib(32)));
        assert_eq!((quick.reps, quick.passes), (1, 1));
        let patience = |plan: &Plan| plan.budget.patience.as_secs();
        assert_eq!(
            (patience(&full), patience(&quick), patience(&plan("--quick --patience 9"))),
            (300, 30, 9)
        );
        assert!(!full.sweep && plan("--sweep").sweep && plan("--report x.html").sweep);
    }

    #[test]
    fn what_is_said_wins() {
        let said = plan(
            "--quick --ram 100M --reps 5 --workloads sort,seqread --data 1:1 --systems zram --threads 2",
        );
        assert_eq!((said.size, said.reps, said.threads), (Size::mib(200), 5, 2));
        assert_eq!(said.workloads, [Workload::Seqread, Workload::Quicksort]);
        assert_eq!((said.data, said.systems), (vec![Data::Incompressible], vec![System::Zram]));
        assert!(Command::try_parse_from(["bench", "--reps", "0"]).is_err());
    }

    #[test]
    fn systems_are_the_usual_ones_or_those_that_were_named() {
        assert_eq!(plan("").systems, System::USUAL);
        assert_eq!(plan("--peers").systems, System::ALL[..9]);
        assert_eq!(plan("--systems zswap,ram").systems, [System::Ram, System::Zswap]);
        let words = ["bench", "--systems", "ram", "--adapter", "peer {args}"];
        let adapted = Command::try_parse_from(words).unwrap().args.plan().unwrap();
        assert_eq!(adapted.systems, [System::Ram, System::Adapter]);
        assert_eq!(adapted.setup().adapter.as_deref(), Some("peer {args}"));
        let error = Command::try_parse_from(["bench", "--adapter", "peer"]).err().unwrap().to_string();
        assert!(error.contains("by {args}"), "{error}");
    }

    #[test]
    fn a_machine_that_is_too_small_is_told() {
        let with_merging = plan("--quick").check_fits(Some(Size::mib(64 + 32 + 128).bytes)).unwrap_err();
        assert!(with_merging.to_string().starts_with("256 MiB of RAM"), "{with_merging}");
        let plan = plan("--quick --workloads seqread");
        plan.check_fits(None).unwrap();
        plan.check_fits(Some(Size::mib(64 + 32 + 128).bytes)).unwrap();
        let error = plan.check_fits(Some(Size::mib(200).bytes)).unwrap_err().to_string();
        assert!(error.starts_with("224 MiB of RAM are needed") && error.contains("only 200 MiB"), "{error}");
    }
}
