//! `hmm bench --mirror`: what devices that mirror this process cost, each figure against a floor of the same run. And
//! `--paging`: what it costs to bring memory home, and to manage much of which little is used, in the same way.
//!
//! As the other measurements, each is a process of its own ([`worker`]), a hidden subcommand. It measures a group of figures
//! together with their floors, in turns, and checks all bytes. Groups take turns, too, so that whatever changes on the
//! machine over time hits all alike. The bench takes medians: of the figures, of the floors, and of the ratios of those that
//! were measured beside each other. What cannot be measured here is named with the reason.
//!
//! Everything is in one process: the device is hmm's software accelerator, or one block of RAM. No root is needed; a
//! userfaultfd of user mode is enough.

pub(crate) mod figure;
mod flat;
mod kernels;
pub(crate) mod memory;
mod migrate;
mod paging;
mod report;
mod sample;
mod snapshot;
mod space;
mod worker;

pub use worker::{MirrorWorkerArgs, mirror_worker};

use crate::child::{self, check_stopped};
use crate::machine::{Machine, available_bytes};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use figure::{Figure, Group, Set};
use report::{Report, Row};
use sample::{Found, Sample};
use std::io::{IsTerminal, Write};
use std::process::{Command, ExitCode};

/// RAM that the largest group takes.
const NEEDED_BYTES: u64 = 1 << 30;
const NEEDED_QUICK_BYTES: u64 = 128 << 20;

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Which figures.
    pub(crate) set: Set,
    /// How often each group is measured.
    pub(crate) reps: u32,
    /// Small sizes.
    pub(crate) quick: bool,
    /// JSON instead of a table.
    pub(crate) json: bool,
}

/// Measures everything and prints the report. The exit status is 1 when a measurement failed; a bar that is missed is a
/// result.
///
/// # Errors
/// A signal, or too little RAM.
pub(crate) fn run(plan: Plan) -> Result<ExitCode> {
    let needed = if plan.quick { NEEDED_QUICK_BYTES } else { NEEDED_BYTES };
    ensure!(
        available_bytes().is_none_or(|available| available >= needed),
        "{} MiB of RAM are needed, and less are available: end other programs, or try --quick",
        needed >> 20
    );
    let mut rows: Vec<Row> = plan.set.figures().map(Row::new).collect();
    for rep in 0..plan.reps {
        for group in Group::value_variants().iter().filter(|group| group.set() == plan.set) {
            check_stopped()?;
            progress(&format!("repetition {}: {group:?}", rep + 1));
            let found = measure(*group, plan.quick)?;
            rows.iter_mut().filter(|row| row.figure.group() == *group).for_each(|row| row.add(&found));
        }
    }
    progress("");
    rows.iter_mut().for_each(Row::finish);
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        option: plan.set.option(),
        machine: Machine::look(),
        reps: plan.reps,
        quick: plan.quick,
        rows,
    };
    print(&report, plan.json).context("cannot write to standard output")?;
    Ok(if report.rows.iter().any(|row| row.failed.is_some()) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// One process: what it found, or why it failed.
fn measure(group: Group, quick: bool) -> Result<Result<Found, String>> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let args = MirrorWorkerArgs { group, quick };
    let output = child::run(Command::new(program).args(args.to_command_line()), None)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        // A backtrace may follow.
        return Ok(Err(format!("{}: {}", output.status, said.lines().next().unwrap_or("no reason"))));
    }
    Ok(serde_json::from_slice(&output.stdout).map_err(|why| format!("the worker said no JSON: {why}")))
}

/// The samples of one figure.
fn samples_of(found: &[Sample], figure: Figure) -> impl Iterator<Item = Sample> {
    found.iter().filter(move |sample| sample.of == figure).copied()
}

fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        // Back to the start of the line, and clear it. A line that cannot be shown is no reason to stop.
        let _ = write!(std::io::stderr(), "\r\x1b[K{text}");
    }
}

fn print(report: &Report, json: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, report)?;
        writeln!(out)?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(())
}
