//! The process that does the work: fills memory, works on it, checks it, and says in one line of JSON what that took.
//!
//! It runs unchanged in RAM, under `hmm run` and under the kernel's swap, and knows nothing of either. Only the work is
//! measured, neither the filling nor the checking.

use crate::data::{Data, Generator, PAGE_BYTES};
use crate::latency::{Percentiles, Touches};
use crate::library::{Library, SpaceFigures};
use crate::size::Size;
use crate::usage::{Meter, Usage, peak_resident_bytes};
use crate::verify::verify;
use crate::working_set::WorkingSet;
use crate::workload::Workload;
use anyhow::{Context, Result};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit status of a worker that found wrong bytes.
pub(crate) const WRONG_BYTES: u8 = 3;

/// Arguments of the hidden subcommand [`WorkerArgs::SUBCOMMAND`], which `hmm bench` starts its measurements with.
#[derive(Clone, Debug, clap::Args)]
pub struct WorkerArgs {
    /// The work to do.
    #[arg(long)]
    pub(crate) workload: Workload,
    /// Compressibility of the data.
    #[arg(long)]
    pub(crate) data: Data,
    /// Size of the working set.
    #[arg(long)]
    pub(crate) size: Size,
    /// How often the work is done.
    #[arg(long)]
    pub(crate) passes: u64,
    /// How many threads share the work.
    #[arg(long, default_value_t = 1)]
    pub(crate) threads: u32,
    /// What the data are made from.
    #[arg(long)]
    pub(crate) seed: u64,
    /// The file that the working set is a mapping of; without one it is private memory.
    #[arg(long)]
    pub(crate) file: Option<PathBuf>,
    /// Memory of the library's instead, whose faults the threads serve that have them.
    #[arg(long, value_name = "BYTES,DEVICE", conflicts_with = "file")]
    pub(crate) in_thread: Option<Library>,
}

impl WorkerArgs {
    /// Name that the `hmm` command has to mount [`worker`] under, hidden.
    pub const SUBCOMMAND: &str = "bench-worker";

    /// The command line that these arguments come from.
    pub(crate) fn to_command_line(&self) -> Vec<String> {
        let mut line = vec![Self::SUBCOMMAND.to_owned()];
        line.extend(self.work());
        line.extend(self.file.iter().map(|path| format!("--file={}", path.display())));
        line.extend(self.in_thread.iter().map(|library| format!("--in-thread={library}")));
        line
    }

    /// What the work is, for any program that can do it.
    pub(crate) fn work(&self) -> Vec<String> {
        vec![
            format!("--workload={}", self.workload.name()),
            format!("--data={}", self.data),
            format!("--size={}", self.size.bytes),
            format!("--passes={}", self.passes),
            format!("--threads={}", self.threads),
            format!("--seed={}", self.seed),
        ]
    }
}

/// What a worker says.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct WorkerReport {
    /// Bytes worked on, counted once for every pass.
    pub(crate) bytes: u64,
    /// Bytes worked on in a second, in millions.
    pub(crate) mb_per_s: f64,
    /// First accesses to a page, one for each page and pass. For sorts, only the number of pages.
    pub(crate) touches: u64,
    /// The same in a second; not for sorts, which touch pages in ways of their own.
    pub(crate) touches_per_s: Option<f64>,
    /// How many of the timed touches faulted; not for sorts.
    pub(crate) faulted: Option<u64>,
    /// Distribution over those that did.
    pub(crate) fault_latency: Option<Percentiles>,
    /// How many of them took how long: nanoseconds, and touches.
    #[serde(default)]
    pub(crate) slow_touches: Vec<(f64, u64)>,
    /// 99th percentile over all touches, faulted or not; not for sorts.
    pub(crate) p99_of_all_ns: Option<f64>,
    /// What a touch of a resident page costs.
    pub(crate) hit_ns: f64,
    /// Time and faults of the work.
    #[serde(flatten)]
    pub(crate) usage: Usage,
    /// Most memory that the process had resident, at any time.
    pub(crate) max_rss_bytes: u64,
    /// What the library says, if the memory is the library's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) space: Option<SpaceFigures>,
}

/// Does what the worker is for and prints its report on standard output.
///
/// # Errors
/// When a file below /proc or standard output fails. Wrong bytes are no error but an exit status of their own.
pub fn worker(args: &WorkerArgs) -> Result<ExitCode> {
    let nr_pages = usize::try_from(args.size.bytes)
        .context("the working set is larger than the address space")?
        / PAGE_BYTES;
    let generator = Generator::new(args.data, args.seed);
    let mut set = match (&args.file, &args.in_thread) {
        (Some(path), _) => WorkingSet::mapped(path, args.workload.order())?,
        (None, Some(library)) => WorkingSet::managed(nr_pages, library)?,
        (None, None) => WorkingSet::new(nr_pages),
    };
    let pages = set.pages_mut();
    for (number, page) in pages.iter_mut().enumerate() {
        generator.fill(number, 0, page);
    }
    let passes = args.workload.passes(args.passes);
    let how = (passes, args.workload.threads(args.threads));
    let mut touches = Touches::calibrate();
    let meter = Meter::start()?;
    let read_sums = args.workload.run(pages, &generator, how, &mut touches);
    let usage = meter.stop()?;

    if let Err(wrong) = verify(args.workload, pages, &generator, how, &read_sums) {
        writeln!(std::io::stderr(), "bench worker: {} on {} data: {wrong}", args.workload.name(), args.data)?;
        return Ok(ExitCode::from(WRONG_BYTES));
    }
    let mut report = report(args.workload, passes * nr_pages as u64, usage, &touches)?;
    report.space = set.space_figures();
    let line = serde_json::to_string(&report).context("cannot write the report as JSON")?;
    writeln!(std::io::stdout(), "{line}").context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

fn report(workload: Workload, nr_touches: u64, usage: Usage, touches: &Touches) -> Result<WorkerReport> {
    let bytes = nr_touches * PAGE_BYTES as u64;
    let timed = workload.order().is_some();
    Ok(WorkerReport {
        bytes,
        mb_per_s: bytes as f64 / usage.seconds / 1e6,
        touches: nr_touches,
        touches_per_s: timed.then_some(nr_touches as f64 / usage.seconds),
        faulted: timed.then_some(touches.nr_faulted()),
        fault_latency: touches.percentiles(),
        slow_touches: touches.slow(),
        p99_of_all_ns: timed.then(|| touches.p99_of_all_ns()),
        hit_ns: touches.hit_ns(),
        usage,
        max_rss_bytes: peak_resident_bytes()?,
        space: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: WorkerArgs,
    }

    #[test]
    fn command_line_is_read_as_it_was_written() {
        for workload in Workload::ALL {
            let args = WorkerArgs {
                workload,
                data: Data::Incompressible,
                size: Size::mib(5),
                passes: 2,
                threads: 3,
                seed: 9,
                file: Some("/a/b".into()),
                in_thread: None,
            };
            let in_thread = Library { ram: Size::mib(7), device: "lz4:cap=1G".to_owned() };
            let managed = WorkerArgs { file: None, in_thread: Some(in_thread), ..args.clone() };
            let read = Command::try_parse_from(managed.to_command_line()).unwrap().args;
            assert_eq!(read.in_thread, managed.in_thread);
            let line = args.to_command_line();
            let read = Command::try_parse_from(&line).unwrap().args;
            assert_eq!(read.workload, workload);
            assert_eq!((read.data, read.size, read.passes, read.seed), (args.data, args.size, 2, 9));
            assert_eq!((read.threads, read.file), (3, args.file));
        }
    }
}
