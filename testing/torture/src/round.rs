//! One round: a worker under `hmm run`, watched from outside.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result};
use hmm_programs::sampler::Sampler;
use hmm_programs::{Stats, TempDir, procs};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::args::{Args, WorkerArgs};
use crate::awake::Awake;
use crate::line::{Done, Line};
use crate::worker::finding::{FINDING, LOST, ends_what_lost};

/// Between two looks at the memory.
const LOOK: Duration = Duration::from_millis(150);
/// Between two looks at the worker.
const TICK: Duration = Duration::from_millis(20);

/// What came of a round.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// What the worker has done.
    pub(crate) done: Done,
    /// The most bytes that were seen to be resident, from outside: of all processes, or of one where each has a budget.
    pub(crate) peak_bytes: u64,
    /// Looks at the memory.
    pub(crate) nr_samples: u64,
    /// Pages that were stored on devices.
    pub(crate) nr_stored: u64,
    /// What must not be.
    pub(crate) findings: Vec<String>,
}

/// A worker that runs.
struct Running {
    child: Child,
    lines: Receiver<Line>,
    stderr: std::thread::JoinHandle<String>,
}

impl Running {
    fn start(args: &Args, worker: &WorkerArgs, dir: &TempDir) -> Result<Self> {
        let hmm = std::env::current_exe().context("cannot find this program's own file")?;
        let mut words = args.prefix(&hmm, &dir.join("stats.json"));
        words.push(hmm.into());
        words.extend(worker.to_command_line().into_iter().map(Into::into));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        Self::of(command)
    }

    fn of(mut command: Command) -> Result<Self> {
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        die_with_us(&mut command);
        let mut child = command.spawn().context("cannot start the worker")?;
        let (stdout, stderr) = child.stdout.take().zip(child.stderr.take()).context("no pipes")?;
        let (sender, lines) = channel();
        // Both end when all who could write have ended, children that outlive the worker among them.
        std::thread::spawn(move || {
            for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                let Some(line) = Line::read(&text) else { continue };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let stderr = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _partly = BufReader::new(stderr).read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        Ok(Self { child, lines, stderr })
    }

    /// The worker has ended: waits for those that it left behind, who have its pipes. Gives its last word, and who did not
    /// end.
    fn wait_for_the_rest(&self, patience: Duration) -> (Option<Done>, Option<String>) {
        let (mut last, mut awake) = (None, Awake::new());
        loop {
            match self.lines.recv_timeout(TICK) {
                Ok(Line::Done(done)) => last = Some(done),
                Ok(Line::Progress(_)) => {}
                Err(RecvTimeoutError::Disconnected) => return (last, None),
                Err(RecvTimeoutError::Timeout) if awake.now() < patience => {}
                Err(RecvTimeoutError::Timeout) => {
                    let threads = end_all();
                    let what = format!("hang: processes that outlive the worker for {patience:?}");
                    return (last, Some(format!("{what}\n{threads}")));
                }
            }
        }
    }
}

/// Whoever ends us, be it in the moment in which the sampler has all stand still, ends what is started: nobody would have that
/// go on.
fn die_with_us(command: &mut Command) {
    let prepare = || Ok(set_parent_process_death_signal(Some(Signal::KILL))?);
    // SAFETY: a system call, which a child of a fork may make.
    unsafe { command.pre_exec(prepare) };
}

/// Kills all that was started, and says what their threads were waiting for.
fn end_all() -> String {
    let pids = procs::descendants();
    let threads = procs::describe_all(&pids);
    procs::kill_all(&pids);
    threads
}

/// Whether each thread goes on.
struct Watchdog {
    patience: Duration,
    awake: Awake,
    /// What each has done, what it does, and since when.
    threads: Vec<(u64, String, Duration)>,
    heard: Duration,
}

impl Watchdog {
    fn new(patience: Duration) -> Self {
        Self { patience, awake: Awake::new(), threads: Vec::new(), heard: Duration::ZERO }
    }

    fn hear(&mut self, progress: Vec<(u64, u64, String)>) {
        let now = self.awake.now();
        self.heard = now;
        self.threads.resize_with(progress.len(), || (u64::MAX, String::new(), now));
        for ((nr_done, operation, since), (nr_operations, nr_signs, new_operation)) in
            self.threads.iter_mut().zip(progress)
        {
            let new_done = nr_operations + nr_signs;
            if *nr_done != new_done || new_operation == "done" {
                (*nr_done, *since) = (new_done, now);
            }
            *operation = new_operation;
        }
    }

    /// Who does not.
    fn complaint(&mut self) -> Option<String> {
        let now = self.awake.now();
        if now - self.heard > self.patience {
            let last: Vec<_> = self.threads.iter().map(|thread| thread.1.as_str()).collect();
            return Some(format!("hang: not a word for {:?}; the threads' last: {last:?}", self.patience));
        }
        let (number, stuck) =
            self.threads.iter().enumerate().find(|(_, thread)| now - thread.2 > self.patience)?;
        Some(format!("hang: thread {number} does '{}' since {:?}", stuck.1, self.patience))
    }
}

/// Runs a worker to its end.
///
/// # Errors
/// It could not be run.
pub(crate) fn run(args: &Args, worker: &WorkerArgs, mut on_tick: impl FnMut(u64)) -> Result<Outcome> {
    let dir = TempDir::new();
    let mut running = Running::start(args, worker, &dir)?;
    let mut watchdog = Watchdog::new(Duration::from_secs(args.patience));
    let mut sampler = (!args.alone).then(|| Sampler::every(LOOK));
    let mut outcome = Outcome::default();
    let mut is_done = false;
    let status = loop {
        match running.lines.recv_timeout(TICK) {
            Ok(Line::Progress(progress)) => {
                // All that is known of one that ends by a page that was lost.
                outcome.done.nr_operations = progress.iter().map(|(nr_done, ..)| nr_done).sum();
                on_tick(outcome.done.nr_operations);
                watchdog.hear(progress);
            }
            Ok(Line::Done(done)) => (outcome.done, is_done) = (done, true),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(TICK),
        }
        if let Some(status) = running.child.try_wait()? {
            break status;
        }
        if let Some(complaint) = watchdog.complaint() {
            outcome.findings.push(format!("{complaint}\n{}", end_all()));
            break running.child.wait()?;
        }
        if let Some(sampler) = &mut sampler {
            sampler.look(running.child.id());
        }
    };
    let (last, complaint) = running.wait_for_the_rest(watchdog.patience);
    if let Some(done) = last {
        (outcome.done, is_done) = (done, true);
    }
    outcome.findings.extend(complaint);
    let stderr = running.stderr.join().unwrap_or_default();
    procs::reap();
    let stats = Stats::read(&dir.join("stats.json"));
    judge_ending(&mut outcome, status, is_done, &stderr, args.may_lose());
    for sample in sampler.map(Sampler::finish).unwrap_or_default() {
        outcome.nr_samples += 1;
        let resident = if args.per_process { sample.most } else { sample.managed + sample.staging };
        outcome.peak_bytes = outcome.peak_bytes.max(resident);
    }
    if let Some(stats) = stats {
        outcome.nr_stored = stats.count("pgstore");
        judge_budget(&mut outcome, args.ram, &stats);
    }
    Ok(outcome)
}

fn judge_ending(outcome: &mut Outcome, status: ExitStatus, is_done: bool, stderr: &str, may_lose: bool) {
    let (findings, said): (Vec<_>, Vec<_>) = stderr.lines().partition(|line| line.starts_with(FINDING));
    outcome.findings.extend(findings.iter().filter_map(|line| line.strip_prefix(FINDING)).map(str::to_owned));
    let is_lost = may_lose && (status.code() == Some(LOST) || status.signal().is_some_and(ends_what_lost));
    let is_well = status.success() && is_done;
    if outcome.findings.is_empty() && !is_well && !is_lost {
        outcome.findings.push(format!("the worker ended by {status}"));
    }
    // A child that hmm had to end, perhaps.
    if !outcome.findings.is_empty() && !said.is_empty() {
        outcome.findings.push(format!("it had said: {}", said.join("\n")));
    }
}

fn judge_budget(outcome: &mut Outcome, ram: u64, stats: &Stats) {
    // What was granted beyond the budget, because nothing could leave, is counted.
    let granted = stats.count("overcharged") * 4096;
    if outcome.peak_bytes > ram + granted {
        outcome.findings.push(format!(
            "the budget of {ram} bytes does not hold: {} bytes were resident, and {granted} granted beyond it",
            outcome.peak_bytes
        ));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn shell(script: &str) -> Running {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Running::of(command).unwrap()
    }

    /// One test, because it ends whatever this process has started.
    #[test]
    fn who_outlives_the_worker_and_hangs_is_found_and_ended() {
        procs::adopt_orphans().unwrap();
        // An orphan of an orphan, which nobody waits for.
        let mut hanging = shell("sh -c 'sleep 1000 & exec sleep 0.1' & exit 3");
        assert_eq!(hanging.child.wait().unwrap().code(), Some(3));
        let (_, complaint) = hanging.wait_for_the_rest(Duration::from_millis(500));
        let complaint = complaint.unwrap();
        assert!(complaint.contains("hang") && complaint.contains(" sleep S "), "{complaint}");
        hanging.stderr.join().unwrap();
        let begin = Instant::now();
        while !procs::descendants().is_empty() {
            assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", procs::descendants());
            procs::reap();
        }

        let mut late = shell("sleep 0.2 & exit 0");
        assert!(late.child.wait().unwrap().success());
        assert_eq!(late.wait_for_the_rest(Duration::from_secs(20)).1, None);
    }
}
