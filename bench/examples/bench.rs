//! The bench without the rest of the `hmm` command: hmm itself is skipped, RAM and zram can be measured.

use clap::Parser;
use hmm_bench::{Args, GraphArgs, MirrorWorkerArgs, WorkerArgs};
use std::process::ExitCode;

/// What `--mirror` measures may be any memory of this program.
#[global_allocator]
static ALLOCATOR: hmm::Heap = hmm::Heap;

#[derive(clap::Parser)]
enum Command {
    /// Measure.
    Bench(Args),
    /// What the bench starts.
    #[command(hide = true, name = WorkerArgs::SUBCOMMAND)]
    Worker(WorkerArgs),
    /// What the bench starts with `--mirror`.
    #[command(hide = true, name = MirrorWorkerArgs::SUBCOMMAND)]
    MirrorWorker(MirrorWorkerArgs),
    /// What the bench starts with `--applications`.
    #[command(hide = true, name = GraphArgs::SUBCOMMAND)]
    Graph(GraphArgs),
}

fn main() -> anyhow::Result<ExitCode> {
    match Command::parse() {
        Command::Bench(args) => hmm_bench::run(&args),
        Command::Worker(args) => hmm_bench::worker(&args),
        Command::MirrorWorker(args) => hmm_bench::mirror_worker(&args),
        Command::Graph(args) => hmm_bench::graph(&args),
    }
}
