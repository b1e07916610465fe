//! `hmm torture`: whatever a program may do to its memory, at random, with every byte predicted, under `hmm run`.
//!
//! The command runs rounds. A round is a [`worker`], the program that is tortured, in a process of its own: the `hmm`
//! command's hidden subcommand [`WorkerArgs::SUBCOMMAND`]. Round number `n` does what follows from the seed plus `n`. The
//! worker knows nothing of hmm; the command watches it from outside: whether it goes on, and how much is resident.

mod args;
mod awake;
mod line;
mod round;
mod worker;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

pub use args::{Args, WorkerArgs};
pub use worker::worker;

use line::Done;
use round::Outcome;

/// How long a round takes at most.
const ROUND: Duration = Duration::from_secs(20);
/// Shorter than this is not worth it.
const SHORTEST: Duration = Duration::from_millis(500);
/// Memory of the worker, as a multiple of the budget.
const TIMES: u64 = 3;

/// All rounds.
#[derive(Debug, Default, Serialize)]
struct Report {
    seed: u64,
    rounds: u64,
    seconds: f64,
    budget_bytes: u64,
    peak_bytes: u64,
    samples: u64,
    pages_stored: u64,
    done: Done,
    findings: Vec<Found>,
}

/// A round that found something.
#[derive(Debug, Serialize)]
struct Found {
    seed: u64,
    what: Vec<String>,
    replay: String,
}

/// Tortures, and prints what came of it. The exit status is 1 if there is a finding.
///
/// # Errors
/// A worker cannot be started, or watched.
pub fn run(args: &Args) -> Result<ExitCode> {
    hmm_programs::procs::adopt_orphans()?;
    let seed = args.seed.unwrap_or_else(by_chance);
    let start = Instant::now();
    let end = start + Duration::from_secs_f64((args.minutes.max(0.0) * 60.0).min(1e7));
    let mut report = Report { seed, budget_bytes: args.ram, ..Report::default() };
    let is_terminal = std::io::stderr().is_terminal();
    loop {
        let time = end.saturating_duration_since(Instant::now()).min(ROUND);
        if time < SHORTEST && report.rounds > 0 {
            break;
        }
        let seed = seed.wrapping_add(report.rounds);
        let worker = worker_args(args, seed, time);
        let outcome = round::run(args, &worker, |nr_done| {
            if is_terminal {
                show(&report, seed, nr_done, start);
            }
        })?;
        if is_terminal {
            eprint!("\r\x1b[K");
        }
        let replay = args.replay(seed, time.as_secs_f64() / 60.0);
        report.add(seed, outcome, replay);
        if !report.findings.is_empty() {
            break;
        }
    }
    report.seconds = start.elapsed().as_secs_f64();
    report.print(args.json)?;
    Ok(if report.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn by_chance() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    (since.as_secs() << 20 | u64::from(since.subsec_micros())) % 1_000_000_007
}

fn worker_args(args: &Args, seed: u64, time: Duration) -> WorkerArgs {
    let by_seed = usize::try_from(seed % 4).unwrap_or(0) + 1;
    WorkerArgs {
        seed,
        millis: u64::try_from(time.max(SHORTEST).as_millis()).unwrap_or(u64::MAX),
        threads: args.threads.map_or(by_seed, usize::from),
        size: args.ram * TIMES,
        may_lose: args.may_lose(),
        may_refuse: args.may_refuse(),
        in_pieces: args.alone,
    }
}

fn show(report: &Report, seed: u64, nr_done: u64, start: Instant) {
    let nr_done = report.done.nr_operations + nr_done;
    let line = format!("seed {seed}, {:.0} s: {nr_done} operations", start.elapsed().as_secs_f64());
    let _reader_gone = write!(std::io::stderr(), "\r{line}\x1b[K");
}

impl Report {
    fn add(&mut self, seed: u64, outcome: Outcome, replay: String) {
        self.rounds += 1;
        self.done.add(outcome.done);
        self.peak_bytes = self.peak_bytes.max(outcome.peak_bytes);
        self.samples += outcome.nr_samples;
        self.pages_stored += outcome.nr_stored;
        if !outcome.findings.is_empty() {
            self.findings.push(Found { seed, what: outcome.findings, replay });
        }
    }

    fn print(&self, json: bool) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if json {
            serde_json::to_writer_pretty(&mut out, self)?;
            writeln!(out)?;
            return Ok(());
        }
        let Done { nr_operations, nr_forks, nr_refused, nr_orphans, nr_lost } = self.done;
        writeln!(
            out,
            "seed {}, {} rounds, {:.0} s: {nr_operations} operations, {nr_forks} forks and {nr_refused} refused, \
            {nr_orphans} orphans, {} pages stored, {nr_lost} lost",
            self.seed, self.rounds, self.seconds, self.pages_stored
        )?;
        writeln!(
            out,
            "at most {} of {} KiB were resident in {} samples",
            self.peak_bytes / 1024,
            self.budget_bytes / 1024,
            self.samples
        )?;
        for found in &self.findings {
            for what in &found.what {
                writeln!(out, "FOUND: {what}")?;
            }
            writeln!(out, "again: {}", found.replay)?;
        }
        Ok(())
    }
}
