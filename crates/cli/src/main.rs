//! `hmm`: programs on more memory than their RAM.
//!
//! What is typed becomes [`args::Args`], checked by clap for form only; each subcommand's module turns its part into
//! something valid before it does anything. Exit codes: those of the program that `hmm run` runs; 125 when hmm itself
//! fails, 126 and 127 as `env` has them; 1 from `doctor` and `demo` when the answer is no.

mod args;
mod demo;
mod doctor;
mod failure;
mod output;
mod pages;
mod replay;
mod run;
mod table;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};
use failure::{Failure, HMM_FAILED};

/// `hmm bench --mirror` has devices in this process, which must not stand on memory that could be managed.
#[global_allocator]
static ALLOCATOR: hmm::Heap = hmm::Heap;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    let result = match args.command {
        Command::Run(args) => run::run(args),
        Command::Trace(args) => run::trace(args),
        Command::Replay(args) => replay::replay(&args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Demo(args) => demo::demo(&args),
        Command::Torture(args) => {
            let is_possible = if args.runs_hmm() { doctor::require_run() } else { Ok(()) };
            let torture =
                || hmm_torture::run(&args).map_err(|error| Failure::of_hmm(format_args!("{error:#}")));
            is_possible.and_then(|()| torture())
        }
        Command::TortureWorker(args) => {
            hmm_torture::worker(&args).map_err(|error| Failure::of_hmm(format_args!("{error:#}")))
        }
        // With its causes.
        Command::Bench(args) => {
            hmm_bench::run(&args).map_err(|error| Failure::of_hmm(format_args!("{error:#}")))
        }
        Command::BenchWorker(args) => {
            hmm_bench::worker(&args).map_err(|error| Failure::of_hmm(format_args!("{error:#}")))
        }
        Command::BenchMirrorWorker(args) => {
            hmm_bench::mirror_worker(&args).map_err(|error| Failure::of_hmm(format_args!("{error:#}")))
        }
        Command::BenchGraph(args) => {
            hmm_bench::graph(&args).map_err(|error| Failure::of_hmm(format_args!("{error:#}")))
        }
    };
    result.unwrap_or_else(|failure| failure.report())
}

/// Help and version are results; anything else is wrong use, which must not look like an exit code of the program.
fn usage(error: &clap::Error) -> ExitCode {
    let _reader_gone = error.print();
    if error.use_stderr() { ExitCode::from(HMM_FAILED) } else { ExitCode::SUCCESS }
}
