//! `hmm bench --applications`: programs that people use, in half of the memory that they take: how much longer they run than
//! with all of it, under hmm and on the kernel's swap on zram, and whether they say the same.
//!
//! How much memory a program takes is measured by hmm itself, in a run with more than enough: the peak of what hmm manages,
//! over all the program's processes. Half of that is the budget, and the limit of zram's cgroup with an allowance for what
//! that counts besides: page tables, and variables and stacks that hmm does not manage.

mod app;
mod graph;
mod report;

pub use graph::{GraphArgs, graph};

use crate::child::{self, check_stopped};
use crate::machine::{Machine, available_bytes};
use crate::outcome::last_words;
use crate::peer::{KernelPeer, Kind, Room};
use crate::system::{System, TemporaryFile, hmm_defect};
use anyhow::{Context, Result, ensure};
use app::{App, Directory, Start};
use report::{Report, Row};
use serde_json::Value;
use std::io::{IsTerminal, Write};
use std::process::{Command, ExitCode, Output};
use std::time::Instant;

/// The least that `hmm run` takes.
const LEAST_RAM_BYTES: u64 = 16 << 20;
/// What the cgroup gets beside the budget and the page tables. Programs, libraries and files are in memory already, and
/// counted with whoever brought them there.
const ALLOWANCE_BYTES: u64 = 4 << 20;
/// RAM that must be there.
const NEEDED_BYTES: u64 = 2 << 30;
/// How often a program is started again after the kernel has killed it for want of memory.
const RESTARTS: u32 = 2;

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// How often each program runs on each system.
    pub(crate) reps: u32,
    /// Small inputs.
    pub(crate) quick: bool,
    /// JSON instead of a table.
    pub(crate) json: bool,
}

/// Runs all applications and prints the report. The exit status is 1 when one of them failed, or said something else than
/// with all its memory.
///
/// # Errors
/// A signal, or too little RAM.
pub(crate) fn run(plan: Plan) -> Result<ExitCode> {
    let available = available_bytes().unwrap_or(NEEDED_BYTES);
    ensure!(available >= NEEDED_BYTES, "2 GiB of RAM are needed, and less are available: end other programs");
    let mut rows = Vec::new();
    for app in App::ALL {
        rows.push(one(app, plan, available / 2)?);
    }
    progress("");
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        command: std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(),
        machine: Machine::look(),
        reps: plan.reps,
        quick: plan.quick,
        rows,
    };
    let mut out = std::io::stdout().lock();
    let printed = if plan.json {
        serde_json::to_writer_pretty(&mut out, &report).map_err(Into::into).and_then(|()| writeln!(out))
    } else {
        write!(out, "{report}")
    };
    printed.context("cannot write to standard output")?;
    let failed = report.rows.iter().any(Row::has_failed);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn one(app: App, plan: Plan, ample_bytes: u64) -> Result<Row> {
    let mut row = Row::new(app);
    if let Some(why) = app.lacks() {
        row.skipped = Some(why);
        return Ok(row);
    }
    let dir = Directory::new(&std::env::temp_dir(), app.name())?;
    let start = app.prepare(dir.path(), if plan.quick { 1 } else { 4 })?;
    progress(&format!("{}: how much memory it takes", app.name()));
    // In RAM it has to work; what it says there is what it has to say everywhere.
    let expected = match in_ram(&start)? {
        Ended::Done(_, said) => said,
        Ended::Failed(why) | Ended::Unavailable(why) => {
            row.failures.push(format!("ram: {why}"));
            return Ok(row);
        }
        Ended::OutOfMemory => return Ok(row),
    };
    match under_hmm(&start, ample_bytes)? {
        (Ended::Done(_, said), Some(stats)) => {
            row.compare(System::Hmm, &expected, &said);
            row.peak_bytes = stats["peak_resident_bytes"].as_u64().unwrap_or(0);
        }
        (Ended::Failed(why) | Ended::Unavailable(why), _) => {
            row.skipped = Some(format!("hmm: {why}"));
            return Ok(row);
        }
        (Ended::Done(..) | Ended::OutOfMemory, _) => row.failures.push("hmm: no figures".to_owned()),
    }
    row.budget_bytes = (row.peak_bytes / 2).max(LEAST_RAM_BYTES);
    for rep in 0..plan.reps {
        for system in System::USUAL {
            progress(&format!("{} on {}, repetition {}", app.name(), system.name(), rep + 1));
            repeat(&mut row, system, &start, &expected)?;
        }
    }
    row.finish();
    Ok(row)
}

/// One repetition, started again when the kernel kills it.
fn repeat(row: &mut Row, system: System, start: &Start, expected: &[u8]) -> Result<()> {
    if row.run_mut(system).skipped.is_some() {
        return Ok(());
    }
    for _ in 0..=RESTARTS {
        check_stopped()?;
        match measure(system, start, (row.budget_bytes, row.peak_bytes))? {
            Ended::Done(seconds, said) => {
                row.run_mut(system).seconds.push(seconds);
                row.compare(system, expected, &said);
                return Ok(());
            }
            Ended::OutOfMemory => row.run_mut(system).oom_kills += 1,
            Ended::Unavailable(why) if row.run_mut(system).seconds.is_empty() => {
                row.run_mut(system).skipped = Some(why);
                return Ok(());
            }
            Ended::Unavailable(why) | Ended::Failed(why) => {
                row.failures.push(format!("{}: {why}", system.name()));
                return Ok(());
            }
        }
    }
    row.failures.push(format!("{}: killed for want of memory, started again in vain", system.name()));
    Ok(())
}

/// How a run ended.
enum Ended {
    /// After so many seconds, and with these words.
    Done(f64, Vec<u8>),
    /// The kernel killed it for want of memory.
    OutOfMemory,
    /// This system cannot work here.
    Unavailable(String),
    /// In another way.
    Failed(String),
}

fn ended(output: Output, seconds: f64) -> Ended {
    if output.status.success() {
        Ended::Done(seconds, output.stdout)
    } else {
        Ended::Failed(format!("{}: {}", output.status, last_words(&output)))
    }
}

fn measure(system: System, start: &Start, (budget_bytes, peak_bytes): (u64, u64)) -> Result<Ended> {
    if system == System::Ram {
        return in_ram(start);
    }
    if system == System::Zram {
        return on_zram(start, (budget_bytes, peak_bytes));
    }
    let (ended, stats) = under_hmm(start, budget_bytes)?;
    let defect = stats.and_then(|stats| hmm_defect(&stats, peak_bytes > budget_bytes));
    Ok(match (ended, defect) {
        (Ended::Done(..), Some(defect)) => Ended::Failed(defect),
        (ended, _) => ended,
    })
}

fn command(start: &Start) -> Command {
    let mut command = Command::new(&start.words[0]);
    command.args(&start.words[1..]);
    command
}

fn in_ram(start: &Start) -> Result<Ended> {
    let begin = Instant::now();
    let output = child::run(&mut command(start), None)?;
    Ok(ended(output, begin.elapsed().as_secs_f64()))
}

fn under_hmm(start: &Start, ram_bytes: u64) -> Result<(Ended, Option<Value>)> {
    let stats_file = TemporaryFile::new("stats.json")?;
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(program);
    command.args(["run", "--quiet", &format!("--ram={ram_bytes}")]).arg("--stats").arg(stats_file.path());
    command.arg("--").args(&start.words);
    let begin = Instant::now();
    let output = child::run(&mut command, None)?;
    let seconds = begin.elapsed().as_secs_f64();
    // As with env(1), from 125 on it is not the program that failed; 2 says that there is no `run` in this program.
    if matches!(output.status.code(), Some(2 | 125..=127)) {
        return Ok((Ended::Unavailable(last_words(&output)), None));
    }
    let text = std::fs::read_to_string(stats_file.path()).context("cannot read the figures of hmm run")?;
    Ok((ended(output, seconds), serde_json::from_str(&text).ok()))
}

fn on_zram(start: &Start, (budget_bytes, peak_bytes): (u64, u64)) -> Result<Ended> {
    let limit_bytes = budget_bytes + peak_bytes / 512 + ALLOWANCE_BYTES;
    let dir = std::env::temp_dir();
    let room = Room { limit_bytes, size_bytes: peak_bytes.max(LEAST_RAM_BYTES) * 2, dir: &dir };
    let peer = match KernelPeer::set_up(Kind::Zram, room) {
        Ok(peer) => peer,
        Err(why) => return Ok(Ended::Unavailable(format!("{why:#}"))),
    };
    let procs = peer.cgroup().procs_file();
    let begin = Instant::now();
    let output = child::run(&mut command(start), Some(&procs))?;
    let seconds = begin.elapsed().as_secs_f64();
    // Whichever of its processes it was: not every script notices.
    if peer.cgroup().oom_kills()? > 0 {
        return Ok(Ended::OutOfMemory);
    }
    Ok(ended(output, seconds))
}

fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        // Back to the start of the line, and clear it. A line that cannot be shown is no reason to stop.
        let _ = write!(std::io::stderr(), "\r\x1b[K{text}");
    }
}
