//! `hmm demo`: work on a few times more memory than may be resident, in this process, with every byte verified.
//!
//! The same [`Work`] is done twice: on plain memory for comparison, and on managed memory of an address space with an
//! lz4 device. What the words must be at any time is a function of their place alone ([`data`]), so whatever comes
//! back from the device is checked against a computation that has never seen the memory.

mod data;
mod progress;
mod report;
mod work;

use std::process::ExitCode;
use std::sync::Arc;

use hmm::AddressSpace;
use hmm::device::Device;
use hmm::lz4::{Lz4, Lz4Config};
use hmm::spec::{ByteSize, parse_size};

use crate::failure::{Attempt, Failure};
use crate::output;
use progress::Progress;
use report::Report;
use work::{Phase, WordMemory, Work, Wrong};

/// See it work: verified work on more memory than may be resident.
///
/// Needs no other program and no privilege beyond a userfaultfd of user mode. Exit status: 0 if every byte was as it
/// must be, 1 if not.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Memory that may be resident.
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_size)]
    ram: u64,

    /// The working set.
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    size: u64,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// More than enough for a demo, and the least to be seen.
const SIZES: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 40;

/// Does the work and tells how it went.
pub(crate) fn demo(args: &DemoArgs) -> Result<ExitCode, Failure> {
    let nr_words = nr_words(args.size)?;
    let mut progress = Progress::new();
    let result = compare(args, nr_words, &mut progress);
    progress.clear();
    match result? {
        Ok(report) if args.json => output::print(format_args!("{}\n", report.to_json()?)),
        Ok(report) => output::print(format_args!("{report}")),
        Err(wrong) => {
            output::note(format_args!("{wrong}"));
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn nr_words(size: u64) -> Result<usize, Failure> {
    match usize::try_from(size / size_of::<u64>() as u64) {
        Ok(nr_words) if SIZES.contains(&size) => Ok(nr_words / data::GROUP * data::GROUP),
        _ => Err(Failure::of_hmm(format_args!("--size {}: choose from 1 MiB to 1 TiB", ByteSize(size)))),
    }
}

/// In plain memory first: it is gone when the managed memory comes, so that both find the same machine.
fn compare(
    args: &DemoArgs,
    nr_words: usize,
    progress: &mut Progress,
) -> Result<Result<Report, Wrong>, Failure> {
    // The pool is as large as the working set, so that the demo ends well whatever the data compresses to.
    let capacity_bytes = usize::try_from(args.size).attempt("have so large a device")?;
    let pool = Arc::new(Lz4::new(Lz4Config::new(capacity_bytes.max(64 << 20))).map_err(Failure::of_hmm)?);
    let space = AddressSpace::builder()
        .ram(args.ram)
        .device(Arc::clone(&pool) as Arc<dyn Device>)
        .build()
        .map_err(|error| {
            Failure::of_hmm(format_args!("{error}\n  `hmm doctor` says what works here and what does not"))
        })?;

    let plain = if fits_in_ram(args.size) {
        let mut memory = vec![0; nr_words];
        match run(&mut memory.as_mut_slice(), "in RAM", progress, |_| {}) {
            Ok(phases) => Some(phases),
            Err(wrong) => return Ok(Err(wrong)),
        }
    } else {
        None
    };
    let mut memory = space.alloc(nr_words * size_of::<u64>()).attempt("have managed memory")?;
    let mut peak = report::Peak::default();
    let words = &mut memory.as_mut_slice::<u64>();
    let managed = run(words, "under hmm", progress, |_| peak.raise_to(&space.stats(), pool.usage()));
    Ok(managed.map(|managed| Report::new(args.size, &space, peak, plain, managed)))
}

fn run(
    memory: &mut impl WordMemory,
    place: &str,
    progress: &mut Progress,
    mut after_phase: impl FnMut(Phase),
) -> Result<Vec<report::Timed>, Wrong> {
    let mut work = Work::new(memory);
    let mut phases = Vec::new();
    for phase in Phase::ALL {
        let time = work.run(phase, |done| progress.show(place, phase, done))?;
        phases.push(report::Timed { phase, work: work.amount(phase), time });
        after_phase(phase);
    }
    Ok(phases)
}

/// Whether there is RAM for the working set without any device, with some to spare.
fn fits_in_ram(size: u64) -> bool {
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    // Where the kernel does not tell, the comparison is the smaller loss.
    available.is_some_and(|kib| size.saturating_add(size / 4) < kib.saturating_mul(1024))
}
