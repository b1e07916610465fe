//! The systems that are compared, and one measurement on each of them.

use crate::child;
use crate::cost::{CostMeter, Moves, carried_bytes};
use crate::library::Library;
use crate::outcome::{Around, Outcome, last_words, outcome};
use crate::peer::{KernelPeer, Kind, Room};
use crate::price::Medium;
use crate::size::Size;
use crate::worker::WorkerArgs;
use anyhow::{Context, Result};
use hmm::spec::{Backing, DeviceSpec};
use serde_json::Value;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A way to have memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum System {
    /// As much RAM as the program wants.
    Ram,
    /// `hmm run` with a budget that the program never exceeds.
    HmmFits,
    /// `hmm run`.
    Hmm,
    /// The library, with threads that serve their own faults.
    HmmInThread,
    /// `hmm run` with a file for a device.
    HmmFile,
    /// The kernel's swap on zram, under a memory cgroup.
    Zram,
    /// The kernel's swap on a file behind zswap, under a memory cgroup.
    Zswap,
    /// The kernel's swap on a file, under a memory cgroup.
    Swapfile,
    /// A shared mapping of a file instead of private memory, under a memory cgroup.
    Mmap,
    /// The program that `--adapter` names.
    Adapter,
}

impl System {
    /// In the order in which they take turns.
    pub(crate) const ALL: [Self; 10] = [
        Self::Ram,
        Self::HmmFits,
        Self::Hmm,
        Self::HmmInThread,
        Self::HmmFile,
        Self::Zram,
        Self::Zswap,
        Self::Swapfile,
        Self::Mmap,
        Self::Adapter,
    ];
    /// What is measured when nothing else is said.
    pub(crate) const USUAL: [Self; 3] = [Self::Ram, Self::Hmm, Self::Zram];

    /// The name on the command line and in the report.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ram => "ram",
            Self::HmmFits => "hmm-fits",
            Self::Hmm => "hmm",
            Self::HmmInThread => "hmm-in-thread",
            Self::HmmFile => "hmm-file",
            Self::Zram => "zram",
            Self::Zswap => "zswap",
            Self::Swapfile => "swapfile",
            Self::Mmap => "mmap",
            Self::Adapter => "adapter",
        }
    }

    /// Whether all that works for it is in the worker's own processes, and nothing in the kernel's threads.
    pub(crate) fn is_in_processes(self, budget: &Budget) -> bool {
        match self {
            Self::Ram | Self::HmmFits | Self::Hmm | Self::HmmInThread => budget.device_dir().is_none(),
            Self::HmmFile | Self::Zram | Self::Zswap | Self::Swapfile | Self::Mmap | Self::Adapter => false,
        }
    }

    /// Where it keeps what is not resident; `None` if everything is, or nobody knows.
    pub(crate) fn medium(self, budget: &Budget) -> Option<Medium> {
        match self {
            Self::Ram | Self::HmmFits | Self::Adapter => None,
            Self::Hmm if budget.device_dir().is_some() => Some(Medium::File),
            Self::Hmm | Self::HmmInThread | Self::Zram | Self::Zswap => Some(Medium::Compressed),
            Self::HmmFile | Self::Swapfile | Self::Mmap => Some(Medium::File),
        }
    }
}

/// What the worker may use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Budget {
    /// RAM for the working set.
    pub(crate) ram: Size,
    /// Where hmm keeps the rest, as `hmm run --device` takes it.
    pub(crate) device: String,
    /// Where files to page to are made.
    pub(crate) dir: PathBuf,
    /// The command of the adapter, for sh(1).
    pub(crate) adapter: Option<String>,
    /// How long it may take, filling and checking included.
    pub(crate) patience: Duration,
}

impl Budget {
    /// Limit of the kernel's cgroup. It counts more than hmm's budget does, so it gets that on top: 2 MiB for the worker's
    /// own code, stack and tables and for counters that the kernel keeps for each processor, and the page tables.
    pub(crate) const fn cgroup_bytes(&self, working_set: Size) -> u64 {
        self.ram.bytes + (2 << 20) + working_set.bytes / 512
    }

    /// The directory of the device's file, if it is one.
    fn device_dir(&self) -> Option<PathBuf> {
        // Sizes that are made of the machine's RAM do not matter here; `hmm run` says what is wrong with the text.
        let spec = DeviceSpec::parse(&self.device, 1 << 30).ok()?;
        if let Backing::File { dir, .. } = spec.backing { Some(dir) } else { None }
    }

    /// Where the file is that pages go to, if any of the systems has one.
    pub(crate) fn file_dir(&self, systems: &[System]) -> Option<PathBuf> {
        let has_file = systems.iter().any(|system| system.medium(self) == Some(Medium::File));
        has_file.then(|| self.device_dir().unwrap_or_else(|| self.dir.clone()))
    }

    /// More RAM than the worker can use, itself included.
    fn ample_bytes(&self, worker: &WorkerArgs) -> u64 {
        let needed = worker.size.bytes + worker.workload.beside_bytes(worker.size.bytes);
        needed + needed / 4 + (64 << 20)
    }
}

/// Runs one worker on the system.
///
/// # Errors
/// A signal ([`child::Stopped`]), a worker that takes too long ([`child::GivenUp`]), wrong bytes, or something that concerns all systems alike.
pub(crate) fn measure(system: System, budget: &Budget, worker: &WorkerArgs) -> Result<Outcome> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    match system {
        System::Ram => {
            let meter = CostMeter::start(Moves::Unknown)?;
            let output = child::run_within(
                budget.patience,
                Command::new(program).args(worker.to_command_line()),
                None,
            )?;
            outcome(&output, Around { run: meter.stop()?, ..Around::default() })
        }
        System::HmmFits => under_hmm(&program, budget, (budget.ample_bytes(worker), &budget.device), worker),
        System::Hmm => under_hmm(&program, budget, (budget.ram.bytes, &budget.device), worker),
        System::HmmInThread => in_thread(&program, budget, worker),
        System::HmmFile => {
            let device = format!("file:path={}", budget.dir.display());
            under_hmm(&program, budget, (budget.ram.bytes, &device), worker)
        }
        System::Zram => under_kernel(Kind::Zram, &program, budget, worker),
        System::Zswap => under_kernel(Kind::Zswap, &program, budget, worker),
        System::Swapfile => under_kernel(Kind::SwapFile, &program, budget, worker),
        System::Mmap => under_kernel(Kind::Mapped, &program, budget, worker),
        System::Adapter => by_adapter(&program, budget, worker),
    }
}

fn under_hmm(
    program: &Path,
    budget: &Budget,
    (ram_bytes, device): (u64, &str),
    worker: &WorkerArgs,
) -> Result<Outcome> {
    let stats_file = TemporaryFile::new("stats.json")?;
    let mut command = Command::new(program);
    command.args(["run", "--quiet", &format!("--ram={ram_bytes}"), "--device", device]);
    command.arg("--stats").arg(stats_file.path()).arg("--").arg(program).args(worker.to_command_line());
    let meter = CostMeter::start(Moves::Unknown)?;
    let output = child::run_within(budget.patience, &mut command, None)?;
    let mut run = meter.stop()?;
    // As with env(1), from 125 on it is not the program that failed; 2 says that there is no `run` in this program.
    if matches!(output.status.code(), Some(2 | 125..=127)) {
        return Ok(Outcome::Unavailable(last_words(&output)));
    }
    let text = std::fs::read_to_string(stats_file.path()).context("cannot read the figures of hmm run")?;
    let stats = serde_json::from_str::<Value>(&text).unwrap_or_default();
    if output.status.success()
        && let Some(defect) = hmm_defect(&stats, worker.size.bytes > ram_bytes)
    {
        return Ok(Outcome::Failed(defect));
    }
    run.moved_bytes = carried_bytes(&stats);
    let device_bytes = stats["device_bytes"].as_u64();
    outcome(&output, Around { run, device_bytes, hmm_stats: Some(stats), note: None })
}

fn in_thread(program: &Path, budget: &Budget, worker: &WorkerArgs) -> Result<Outcome> {
    if worker.workload.beside_bytes(worker.size.bytes) > 0 {
        let why = "what it needs beside the working set would be the allocator's, and not within the budget";
        return Ok(Outcome::Failed(why.to_owned()));
    }
    let library = Library { ram: budget.ram, device: budget.device.clone() };
    let worker = WorkerArgs { in_thread: Some(library), ..worker.clone() };
    let meter = CostMeter::start(Moves::Unknown)?;
    let output =
        child::run_within(budget.patience, Command::new(program).args(worker.to_command_line()), None)?;
    let run = meter.stop()?;
    let mut outcome = outcome(&output, Around { run, ..Around::default() })?;
    if let Outcome::Done(repetition) = &mut outcome {
        let Some(figures) = repetition.worker.space else {
            return Ok(Outcome::Failed("the worker told nothing of the library".to_owned()));
        };
        if let Some(defect) = figures.defect(worker.size.bytes > budget.ram.bytes) {
            return Ok(Outcome::Failed(defect));
        }
        repetition.run.moved_bytes = Some(figures.moved_bytes);
        repetition.device_bytes = Some(figures.device_bytes);
    }
    Ok(outcome)
}

/// Why a run that succeeded does not count: its figures would compare something else than they claim.
pub(crate) fn hmm_defect(stats: &Value, must_page: bool) -> Option<String> {
    let (Some(peak), Some(budget)) = (stats["peak_resident_bytes"].as_u64(), stats["budget_bytes"].as_u64())
    else {
        return Some("hmm run wrote no figures".to_owned());
    };
    if must_page && stats["counters"]["pgsteal"].as_u64().is_none_or(|pages| pages == 0) {
        return Some("hmm took no page out of the worker's memory: it was not managed".to_owned());
    }
    (peak > budget).then(|| format!("hmm had {peak} bytes resident, with a budget of {budget}"))
}

fn under_kernel(kind: Kind, program: &Path, budget: &Budget, worker: &WorkerArgs) -> Result<Outcome> {
    let size_bytes = worker.size.bytes;
    let room = Room { limit_bytes: budget.cgroup_bytes(worker.size), size_bytes, dir: &budget.dir };
    let peer = match KernelPeer::set_up(kind, room) {
        Ok(peer) => peer,
        Err(reason) => return Ok(Outcome::Unavailable(format!("{reason:#}"))),
    };
    let worker = WorkerArgs { file: peer.mapped_file().map(Path::to_owned), ..worker.clone() };
    let procs = peer.cgroup().procs_file();
    let meter = CostMeter::start(if kind == Kind::Mapped { Moves::Paged } else { Moves::Swapped })?;
    let output = child::run_within(
        budget.patience,
        Command::new(program).args(worker.to_command_line()),
        Some(&procs),
    )?;
    let run = meter.stop()?;
    if output.status.signal() == Some(libc::SIGKILL) && peer.cgroup().oom_kills()? > 0 {
        return Ok(Outcome::OutOfMemory);
    }
    let device_bytes = peer.peak_bytes()?;
    outcome(&output, Around { run, device_bytes, note: peer.note(), hmm_stats: None })
}

/// What `--adapter` may have in it.
pub(crate) const ADAPTER_ARGS: &str = "{args}";

fn by_adapter(program: &Path, budget: &Budget, worker: &WorkerArgs) -> Result<Outcome> {
    let Some(adapter) = &budget.adapter else {
        return Ok(Outcome::Unavailable("say which program, by --adapter 'COMMAND {args}'".to_owned()));
    };
    let meter = CostMeter::start(Moves::Unknown)?;
    let text = adapter_command(adapter, program, budget.ram, worker);
    let output = child::run_within(budget.patience, Command::new("sh").arg("-c").arg(text), None)?;
    let run = meter.stop()?;
    // What a shell says of a command that is not there, or cannot be executed.
    if matches!(output.status.code(), Some(126 | 127)) {
        return Ok(Outcome::Unavailable(last_words(&output)));
    }
    outcome(&output, Around { run, ..Around::default() })
}

/// The adapter's command with everything filled in. The worker's arguments have nothing that a shell would change.
fn adapter_command(adapter: &str, program: &Path, ram: Size, worker: &WorkerArgs) -> String {
    let quoted = format!("'{}'", program.display().to_string().replace('\'', r"'\''"));
    adapter
        .replace(ADAPTER_ARGS, &worker.work().join(" "))
        .replace("{worker}", &format!("{quoted} {}", WorkerArgs::SUBCOMMAND))
        .replace("{ram}", &ram.bytes.to_string())
}

/// A file that goes with its name.
#[derive(Debug)]
pub(crate) struct TemporaryFile(PathBuf);

impl TemporaryFile {
    /// Makes an empty file that nobody else has made, in a directory where others may write.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("hmm-bench-{}-{name}", std::process::id()));
        File::create_new(&path).with_context(|| format!("cannot make the file {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // What cannot be removed from the directory for temporary files is left to whoever cleans that.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Data;
    use crate::workload::Workload;
    use serde_json::json;

    #[test]
    fn runs_that_prove_nothing_do_not_count() {
        let stats = |peak: u64, pgsteal: u64| json!({"peak_resident_bytes": peak, "budget_bytes": 100, "counters": {"pgsteal": pgsteal}});
        assert_eq!(hmm_defect(&stats(100, 1), true), None);
        assert_eq!(hmm_defect(&stats(100, 0), false), None);
        assert!(hmm_defect(&stats(100, 0), true).unwrap().contains("not managed"));
        assert!(hmm_defect(&stats(101, 1), true).unwrap().contains("101 bytes resident"));
        assert!(hmm_defect(&Value::Null, true).unwrap().contains("no figures"));
    }

    #[test]
    fn files_are_where_the_device_or_the_option_says() {
        let budget = |device: &str| Budget {
            ram: Size::mib(1),
            device: device.to_owned(),
            dir: "/elsewhere".into(),
            adapter: None,
            patience: Duration::MAX,
        };
        let dir = |device: &str, systems: &[System]| budget(device).file_dir(systems);
        assert_eq!(dir("lz4", &System::USUAL), None);
        assert_eq!(dir("file", &System::USUAL), None);
        let path = PathBuf::from("/var/tmp");
        assert_eq!(dir("file:path=/var/tmp,cap=1G", &System::USUAL), Some(path));
        assert_eq!(dir("lz4", &[System::Swapfile]), Some(PathBuf::from("/elsewhere")));
        assert_eq!(System::Hmm.medium(&budget("file:path=/var/tmp")), Some(Medium::File));
        assert_eq!(System::HmmFits.medium(&budget("lz4")), None);
    }

    #[test]
    fn an_adapter_gets_what_the_worker_would() {
        let worker = WorkerArgs {
            workload: Workload::Seqread,
            data: Data::Compressible,
            size: Size::mib(1),
            passes: 2,
            threads: 1,
            seed: 3,
            file: None,
            in_thread: None,
        };
        let command = |adapter| adapter_command(adapter, Path::new("/it's/hmm"), Size::mib(4), &worker);
        let work = "--workload=seqread --data=3:1 --size=1048576 --passes=2 --threads=1 --seed=3";
        assert_eq!(command("peer {args}"), format!("peer {work}"));
        assert_eq!(
            command("under --ram {ram} {worker} {args}"),
            format!(r"under --ram 4194304 '/it'\''s/hmm' bench-worker {work}")
        );
    }
}
