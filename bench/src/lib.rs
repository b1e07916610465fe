//! `hmm bench`: the same work in RAM, under hmm, and on the kernel's swap on zram, side by side.
//!
//! Every measurement is a process of its own that runs the `hmm` command's hidden subcommand [`WorkerArgs::SUBCOMMAND`]:
//! it fills plain private memory with data of known compressibility, works on it, checks every byte, and reports. The
//! three systems differ only in what is around it: nothing; `hmm run`; a memory cgroup with swap on zram (lz4), which the
//! bench sets up for each repetition and takes down after it. Repetitions take turns over the systems, and medians are
//! compared. A system that cannot work here is named with its reason, never left out silently.
//!
//! With `--mirror` it measures what devices that mirror this process cost instead, with `--paging` what the parts of paging
//! do, see `mirror`; with `--applications` what programs take that people use, see `applications`.
//!
//! What flows: [`Args`] become a plan, the plan is run measurement by measurement, each one's report becomes part of a
//! cell, cells become medians and ratios, and these a table or JSON.

mod applications;
mod args;
mod cgroup;
mod child;
mod clock;
mod cost;
mod data;
mod floors;
mod latency;
mod library;
mod machine;
mod mirror;
mod others;
mod outcome;
mod page;
mod peer;
mod price;
mod report;
mod run;
#[cfg(test)]
mod sample;
mod size;
mod sweep;
mod system;
mod table;
mod usage;
mod verify;
mod worker;
mod working_set;
mod workload;

pub use applications::{GraphArgs, graph};
pub use args::Args;
pub use mirror::{MirrorWorkerArgs, mirror_worker};
pub use worker::{WorkerArgs, worker};

use anyhow::{Context, Result, anyhow};
use report::Report;
use std::io::Write;
use std::process::ExitCode;

/// Measures what the arguments ask for, and prints the report on standard output.
///
/// The exit status is 0 when everything that can work here was measured, 1 when a measurement failed, and 128 plus its
/// number after a signal.
///
/// # Errors
/// Wrong bytes in a worker's memory, too little RAM on the machine, or a file below /proc that cannot be read.
pub fn run(args: &Args) -> Result<ExitCode> {
    child::heed_signals();
    let done = match (args.figures(), args.applications()) {
        (Some(plan), _) => mirror::run(plan),
        (None, Some(plan)) => applications::run(plan),
        (None, None) => measure_all(args).and_then(|report| conclude(&report, args)),
    };
    match done {
        Err(error) => match error.downcast::<child::Stopped>() {
            Ok(stopped) => Ok(ExitCode::from(128 + u8::try_from(stopped.0).unwrap_or(0))),
            // The causes belong to the message, however it will be printed.
            Err(error) => Err(anyhow!("{error:#}")),
        },
        Ok(status) => Ok(status),
    }
}

fn conclude(report: &Report, args: &Args) -> Result<ExitCode> {
    print(report, args.json).context("cannot write to standard output")?;
    if let Some(path) = &args.report {
        std::fs::write(path, page::page(report))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let failed = report.cells.iter().any(|cell| !cell.failures.is_empty())
        || report.sweeps.iter().any(|sweep| sweep.failures().next().is_some());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn measure_all(args: &Args) -> Result<Report> {
    let plan = args.plan()?;
    plan.check_fits(machine::available_bytes())?;
    if let Some(path) = &args.report {
        // Now, not after all the measurements.
        std::fs::write(path, "").with_context(|| format!("cannot write {}", path.display()))?;
    }
    let floors = floors::Floors::measure(&plan.data, plan.budget.file_dir(&plan.systems).as_deref())?;
    let (mut cells, skipped) = run::run(&plan)?;
    price::set(&mut cells, &floors, &plan.budget, plan.size);
    let sweeps = if plan.sweep { sweep::run(&plan, machine::available_bytes())? } else { Vec::new() };
    let measured = cells.iter().chain(sweeps.iter().flat_map(sweep::Sweep::cells));
    Ok(Report {
        others: others::Others::seen(measured, &plan.budget),
        version: env!("CARGO_PKG_VERSION"),
        command: std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(),
        machine: machine::Machine::look(),
        setup: plan.setup(),
        floors,
        skipped,
        ratios: report::ratios(&cells),
        sweeps,
        cells,
    })
}

fn print(report: &Report, json: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, report)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", table::Table(report))?;
    }
    Ok(())
}
