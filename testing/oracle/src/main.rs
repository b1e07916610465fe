//! The client of the oracle: a seeded random sequence of operations on a small region, through `/dev/hmm_dmirror0..3`
//! and through the CPU, with one line of log for each.
//!
//! Everything that it does and prints depends on its arguments and on the answers it gets, on nothing else: addresses
//! are fixed, nothing is timed, and of parent and child only one runs at a time. So two logs of the same arguments can
//! be compared line by line: one of the kernel's own device, one of ours (`cargo xtask oracle`).
//!
//! ```text
//! hmm-oracle-client --seed 5 --steps 60 [--huge] [--private] [--trace]
//! seed=5 step=12 who=parent op=dev-read dev=0 at=3 n=4 ret=0 cpages=4 faults=1 bytes=0*3,8d51e0aa s0=11*4,00*20
//! ```
//!
//! | field | meaning |
//! |---|---|
//! | `at`, `n` | the pages of the region that the operation is about |
//! | `ret` | 0, or the name of the error |
//! | `cpages`, `faults` | what the device said; `-` if it wrote nothing |
//! | `bytes` | a digest of each page that was read, 0 for a page of zeroes; equal ones are counted |
//! | `sD` | what SNAPSHOT says of the whole region through the descriptor of device D, without a side effect |
//!
//! With `--private` only devices with private memory are used. With `--trace` each operation is also told on standard error before it is done: one that hangs has no line in the log.
//!
//! System calls go through libc, because `hmm run` interposes libc's functions. Reading by the CPU brings pages home, so
//! the whole region is read only every so many steps; how many depends on the seed.

mod child;
mod dmirror;
mod limit;
mod log;
mod op;
mod region;
mod rng;
mod run;
mod sys;

use std::process::ExitCode;

use run::{Options, Runner};

const USAGE: &str = "usage: hmm-oracle-client --seed N --steps N [--huge] [--private] [--trace]";

fn main() -> ExitCode {
    let Some(options) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match Runner::new(options).and_then(Runner::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hmm-oracle-client: seed {}: {error}", options.seed);
            ExitCode::FAILURE
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Option<Options> {
    let (mut seed, mut steps, mut huge, mut private, mut trace) = (None, None, false, false, false);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seed" => seed = Some(args.next()?.parse().ok()?),
            "--steps" => steps = Some(args.next()?.parse().ok()?),
            "--huge" => huge = true,
            "--private" => private = true,
            "--trace" => trace = true,
            _ => return None,
        }
    }
    Some(Options { seed: seed?, steps: steps?, huge, private, trace })
}
