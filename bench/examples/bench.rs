//! The bench without the rest of the `hmm` command: hmm itself is skipped, RAM and zram can be measured.

use clap::Parser;
use hmm_bench::{Args, WorkerArgs};
use std::process::ExitCode;

#[derive(clap::Parser)]
enum Command {
    /// Measure.
    Bench(Args),
    /// What the bench starts.
    #[command(hide = true, name = WorkerArgs::SUBCOMMAND)]
    Worker(WorkerArgs),
}

fn main() -> anyhow::Result<ExitCode> {
    match Command::parse() {
        Command::Bench(args) => hmm_bench::run(&args),
        Command::Worker(args) => hmm_bench::worker(&args),
    }
}
