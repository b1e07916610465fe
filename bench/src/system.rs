//! The systems that are compared, and one measurement on each of them.

use crate::child;
use crate::cost::{CostMeter, Moves, RunCost, carried_bytes};
use crate::price::Medium;
use crate::size::Size;
use crate::worker::{WRONG_BYTES, WorkerArgs, WorkerReport};
use crate::zram::ZramPeer;
use anyhow::{Context, Result, bail};
use hmm::spec::{Backing, DeviceSpec};
use serde_json::Value;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A way to have memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum System {
    /// As much RAM as the program wants.
    Ram,
    /// `hmm run`.
    Hmm,
    /// The kernel's swap on zram, under a memory cgroup.
    Zram,
}

impl System {
    /// In the order in which they take turns.
    pub(crate) const ALL: [Self; 3] = [Self::Ram, Self::Hmm, Self::Zram];

    /// The name on the command line and in the report.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ram => "ram",
            Self::Hmm => "hmm",
            Self::Zram => "zram",
        }
    }

    /// Where it keeps what is not resident; `None` if everything is.
    pub(crate) fn medium(self, budget: &Budget) -> Option<Medium> {
        match self {
            Self::Ram => None,
            Self::Hmm if budget.file_dir().is_some() => Some(Medium::File),
            Self::Hmm | Self::Zram => Some(Medium::Compressed),
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
}

impl Budget {
    /// Limit of the kernel's cgroup. It counts more than hmm's budget does, so it gets that on top: 2 MiB for the worker's
    /// own code, stack and tables and for counters that the kernel keeps for each processor, and the page tables.
    pub(crate) const fn cgroup_bytes(&self, working_set: Size) -> u64 {
        self.ram.bytes + (2 << 20) + working_set.bytes / 512
    }

    /// The directory of the device's file, if it is one.
    pub(crate) fn file_dir(&self) -> Option<PathBuf> {
        // Sizes that are made of the machine's RAM do not matter here; `hmm run` says what is wrong with the text.
        let spec = DeviceSpec::parse(&self.device, 1 << 30).ok()?;
        if let Backing::File { dir, .. } = spec.backing { Some(dir) } else { None }
    }
}

/// One successful measurement.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Repetition {
    /// What the worker said.
    #[serde(flatten)]
    pub(crate) worker: WorkerReport,
    /// RAM beside the budget that held what was away, at its peak.
    pub(crate) device_bytes: Option<u64>,
    /// What it cost from start to end.
    pub(crate) run: RunCost,
    /// What `hmm run --stats` said.
    pub(crate) hmm_stats: Option<Value>,
}

/// How a measurement ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// With figures.
    Done(Box<Repetition>),
    /// The kernel killed the worker for want of memory.
    OutOfMemory,
    /// This system cannot work here, with the reason.
    Unavailable(String),
    /// It could have worked but did not.
    Failed(String),
}

/// Runs one worker on the system.
///
/// # Errors
/// A signal ([`child::Stopped`]), wrong bytes, or something that concerns all systems alike.
pub(crate) fn measure(system: System, budget: &Budget, worker: &WorkerArgs) -> Result<Outcome> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    match system {
        System::Ram => {
            let meter = CostMeter::start(Moves::Unknown)?;
            let output = child::run(Command::new(program).args(worker.to_command_line()), None)?;
            outcome(&output, meter.stop()?, None, None)
        }
        System::Hmm => under_hmm(&program, budget, worker),
        System::Zram => on_zram(&program, budget, worker),
    }
}

fn under_hmm(program: &Path, budget: &Budget, worker: &WorkerArgs) -> Result<Outcome> {
    let stats_file = TemporaryFile::new("stats.json")?;
    let mut command = Command::new(program);
    command.args(["run", "--quiet", &format!("--ram={}", budget.ram.bytes), "--device", &budget.device]);
    command.arg("--stats").arg(&stats_file.0).arg("--").arg(program).args(worker.to_command_line());
    let meter = CostMeter::start(Moves::Unknown)?;
    let output = child::run(&mut command, None)?;
    let mut cost = meter.stop()?;
    // As with env(1), from 125 on it is not the program that failed; 2 says that there is no `run` in this program.
    if matches!(output.status.code(), Some(2 | 125..=127)) {
        return Ok(Outcome::Unavailable(last_words(&output)));
    }
    let text = std::fs::read_to_string(&stats_file.0).context("cannot read the figures of hmm run")?;
    let stats = serde_json::from_str::<Value>(&text).unwrap_or_default();
    if output.status.success()
        && let Some(defect) = hmm_defect(&stats, worker.size > budget.ram)
    {
        return Ok(Outcome::Failed(defect));
    }
    cost.moved_bytes = carried_bytes(&stats);
    outcome(&output, cost, stats["device_bytes"].as_u64(), Some(stats))
}

/// Why a run that succeeded does not count: its figures would compare something else than they claim.
fn hmm_defect(stats: &Value, must_page: bool) -> Option<String> {
    let (Some(peak), Some(budget)) = (stats["peak_resident_bytes"].as_u64(), stats["budget_bytes"].as_u64())
    else {
        return Some("hmm run wrote no figures".to_owned());
    };
    if must_page && stats["counters"]["pgsteal"].as_u64().is_none_or(|pages| pages == 0) {
        return Some("hmm took no page out of the worker's memory: it was not managed".to_owned());
    }
    (peak > budget).then(|| format!("hmm had {peak} bytes resident, with a budget of {budget}"))
}

fn on_zram(program: &Path, budget: &Budget, worker: &WorkerArgs) -> Result<Outcome> {
    let peer = match ZramPeer::set_up(budget.cgroup_bytes(worker.size), 2 * worker.size.bytes) {
        Ok(peer) => peer,
        Err(reason) => return Ok(Outcome::Unavailable(format!("{reason:#}"))),
    };
    let procs = peer.cgroup().procs_file();
    let meter = CostMeter::start(Moves::Swapped)?;
    let output = child::run(Command::new(program).args(worker.to_command_line()), Some(&procs))?;
    let cost = meter.stop()?;
    if output.status.signal() == Some(libc::SIGKILL) && peer.cgroup().oom_kills()? > 0 {
        return Ok(Outcome::OutOfMemory);
    }
    let peak_bytes = peer.peak_bytes()?;
    outcome(&output, cost, Some(peak_bytes), None)
}

/// Reads what the worker left behind.
fn outcome(
    output: &Output,
    run: RunCost,
    device_bytes: Option<u64>,
    hmm_stats: Option<Value>,
) -> Result<Outcome> {
    if output.status.code() == Some(i32::from(WRONG_BYTES)) {
        bail!("{}", last_words(output));
    }
    if !output.status.success() {
        return Ok(Outcome::Failed(format!("{}: {}", output.status, last_words(output))));
    }
    let line = output.stdout.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).unwrap_or_default();
    match serde_json::from_slice::<WorkerReport>(line) {
        Ok(worker) => Ok(Outcome::Done(Box::new(Repetition { worker, device_bytes, run, hmm_stats }))),
        Err(error) => Ok(Outcome::Failed(format!("the worker's report cannot be read: {error}"))),
    }
}

/// What the process wrote on standard error, in one line; the end of it where it is long.
fn last_words(output: &Output) -> String {
    const LINES: usize = 4;
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(LINES)..];
    if last.is_empty() { "nothing on standard error".to_owned() } else { last.join("; ") }
}

/// A file that goes with its name.
#[derive(Debug)]
struct TemporaryFile(PathBuf);

impl TemporaryFile {
    /// Makes an empty file that nobody else has made, in a directory where others may write.
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("hmm-bench-{}-{name}", std::process::id()));
        File::create_new(&path).with_context(|| format!("cannot make the file {}", path.display()))?;
        Ok(Self(path))
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
    fn a_file_device_is_known_by_its_directory() {
        let dir = |device: &str| Budget { ram: Size::mib(1), device: device.to_owned() }.file_dir();
        assert_eq!(dir("lz4"), None);
        assert_eq!(dir("file"), None);
        assert_eq!(dir("file:path=/var/tmp,cap=1G"), Some(PathBuf::from("/var/tmp")));
    }

    #[test]
    fn ends_are_told_apart() {
        let output = |status: i32, stdout: &str, stderr: &str| Output {
            status: std::process::ExitStatus::from_raw(status),
            stdout: stdout.into(),
            stderr: stderr.into(),
        };
        let wrong = output(i32::from(WRONG_BYTES) << 8, "", "one\n wrong bytes: here\n");
        assert_eq!(
            outcome(&wrong, RunCost::default(), None, None).unwrap_err().to_string(),
            "one; wrong bytes: here"
        );
        let failed = outcome(&output(1 << 8, "", ""), RunCost::default(), None, None).unwrap();
        assert!(matches!(failed, Outcome::Failed(why) if why.contains("nothing on standard error")));
        let unread = outcome(&output(0, "{}", ""), RunCost::default(), None, None).unwrap();
        assert!(matches!(unread, Outcome::Failed(why) if why.contains("cannot be read")));
        let report = serde_json::to_string(&crate::sample::repetition(1.0, 2.0).worker).unwrap();
        let done =
            outcome(&output(0, &format!("noise\n{report}\n\n"), ""), RunCost::default(), Some(7), None)
                .unwrap();
        assert!(matches!(done, Outcome::Done(repetition) if repetition.device_bytes == Some(7)));
    }
}
