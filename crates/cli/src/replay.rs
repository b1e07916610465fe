//! `hmm replay`: what a recorded program would have met under other policies.
//!
//! Nothing is run and nothing is measured: what is printed follows from the file and the options alone.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::ExitCode;

use hmm::PolicyName as Name;
use hmm::spec::{ByteSize, parse_size};
use hmm_core::addr::PAGE_SIZE;
use hmm_replay::file::Trace;
use hmm_replay::{Counts, Least, Recorded, least, recorded, replay as replay_trace};
use serde::Serialize;

use crate::failure::{Attempt, Failure};
use crate::output;
use crate::pages::{bytes, pages};
use crate::table::{Align, Table};

/// The least that `hmm run` takes: figures are of something that could be run.
const MIN_RAM_BYTES: u64 = 16 << 20;

/// Compare policies on a recorded trace.
///
/// The touches of the trace are replayed in a simple model of memory, once for each policy; the same file gives the same
/// figures. A trace has the touches that were faults when it was recorded, not those between: record with less memory than
/// is to be compared. With as much or less, there would be more faults than are counted. Pages that leave are counted as
/// stored even where a device had them still.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Columns:
  faults     touches of pages that were not there: those that found a hole, those that found the page in memory
             (2nd chance), and those that had to wait for a device
  fetched    pages that came from a device
  ahead      those of them that no fault had asked for; useful: touched before they left; useless: not
  stored     pages that went to a device
  came back  pages touched again before as many others had left as memory holds: with twice the memory they would
             have been there

The first row is what was done when the trace was recorded, as far as that is known. The last is what no policy can be
below: what is fetched if what is touched again last of all leaves, which nobody knows while a program runs, and what is
evicted then.")]
pub(crate) struct ReplayArgs {
    /// A trace that `hmm trace` has written.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// The policies to compare, with commas between: round, clock, fifo, twice [default: all].
    #[arg(long = "policy", value_name = "NAMES", value_delimiter = ',')]
    policies: Vec<Name>,

    /// The memory to replay with, at least 16M [default: what it was recorded with].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    ram: Option<u64>,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Json {
    recorded_ram_bytes: u64,
    recorded_policy: &'static str,
    recorded: Recorded,
    ram_bytes: u64,
    policies: Vec<PolicyJson>,
    /// What no policy can be below.
    least: Least,
}

#[derive(Debug, Serialize)]
struct PolicyJson {
    policy: &'static str,
    #[serde(flatten)]
    counts: Counts,
}

/// Replays a trace, and prints what came of it.
pub(crate) fn replay(args: &ReplayArgs) -> Result<ExitCode, Failure> {
    if let Some(given) = args.ram.filter(|ram| *ram < MIN_RAM_BYTES) {
        return Err(Failure::of_hmm(format_args!(
            "--ram {}: no program can be run with that, {} is the least",
            ByteSize(given),
            ByteSize(MIN_RAM_BYTES)
        )));
    }
    let what = format!("read the trace {}", args.file.display());
    let file = File::open(&args.file).attempt(&what)?;
    let trace = Trace::read(BufReader::with_capacity(1 << 18, file)).attempt(&what)?;
    let ram_pages = args.ram.map_or(trace.header.ram_pages, |ram| ram / PAGE_SIZE as u64);
    let policies = if args.policies.is_empty() { &Name::ALL[..] } else { &args.policies };
    let counts: Vec<_> =
        policies.iter().map(|name| (*name, replay_trace(&trace, *name, ram_pages))).collect();
    let least = least(&trace, ram_pages);
    if args.json {
        print_json(&trace, ram_pages, &counts, least)?;
    } else {
        print_text(&trace, ram_pages, &counts, least);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_json(trace: &Trace, ram_pages: u64, counts: &[(Name, Counts)], least: Least) -> Result<(), Failure> {
    let policy = |(name, counts): &(Name, Counts)| PolicyJson { policy: name.as_str(), counts: *counts };
    let json = Json {
        recorded_ram_bytes: bytes(trace.header.ram_pages),
        recorded_policy: trace.header.policy.as_str(),
        recorded: recorded(trace),
        ram_bytes: bytes(ram_pages),
        policies: counts.iter().map(policy).collect(),
        least,
    };
    let text = serde_json::to_string_pretty(&json).attempt("write JSON")?;
    output::print(format_args!("{text}\n"));
    Ok(())
}

fn print_text(trace: &Trace, ram_pages: u64, counts: &[(Name, Counts)], least: Least) {
    let sums = recorded(trace);
    output::print(format_args!(
        "{} touches of {} process{}, recorded with {} under {}; replayed with {}\n",
        sums.touches,
        sums.processes,
        if sums.processes == 1 { "" } else { "es" },
        pages(trace.header.ram_pages),
        trace.header.policy,
        pages(ram_pages)
    ));
    if sums.lost > 0 {
        output::print(format_args!("{} events were lost when it was recorded\n", sums.lost));
    }
    let mut table =
        Table::new(std::array::from_fn(|column| if column == 0 { Align::Left } else { Align::Right }));
    table.row(
        [
            "",
            "faults",
            "holes",
            "2nd chance",
            "device",
            "fetched",
            "ahead",
            "useful",
            "useless",
            "evicted",
            "stored",
            "came back",
        ]
        .map(str::to_owned),
    );
    table.row(recorded_row(&sums));
    counts.iter().for_each(|(name, counts)| table.row(row(*name, counts)));
    table.row(least_row(least));
    output::print(format_args!("\n{table}"));
    if ram_pages <= trace.header.ram_pages {
        output::print(format_args!(
            "\nThere would be more faults than these: of pages that were there when the trace was recorded. Replay with more \
             memory (--ram), or record with less.\n"
        ));
    }
}

fn recorded_row(sums: &Recorded) -> [String; 12] {
    known_row(
        "(recorded)",
        [
            Some(sums.touches),
            Some(sums.first_touches),
            Some(sums.second_chances + sums.copied),
            Some(sums.device_faults + sums.waited),
            Some(sums.fetched),
            Some(sums.read_ahead),
            None,
            None,
            Some(sums.evicted),
            Some(sums.stored),
            None,
        ],
    )
}

fn least_row(least: Least) -> [String; 12] {
    let mut numbers = [None; 11];
    (numbers[4], numbers[8]) = (Some(least.fetched), Some(least.evicted));
    known_row("(least)", numbers)
}

/// A row of which not everything is known.
fn known_row(name: &str, numbers: [Option<u64>; 11]) -> [String; 12] {
    std::array::from_fn(|column| match column {
        0 => name.to_owned(),
        number => numbers[number - 1].map_or_else(|| "-".to_owned(), |number| number.to_string()),
    })
}

fn row(name: Name, counts: &Counts) -> [String; 12] {
    let numbers = [
        counts.faults,
        counts.first_touches,
        counts.second_chances,
        counts.device_faults,
        counts.fetched,
        counts.read_ahead,
        counts.useful,
        counts.useless,
        counts.evicted,
        counts.stored,
        counts.came_back_soon,
    ];
    known_row(name.as_str(), numbers.map(Some))
}
