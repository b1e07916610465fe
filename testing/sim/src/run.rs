//! Running worlds, many of them, so that a failure names what is needed to see it again.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use hmm_model::{Generator, Mix, Op, Seeded};

use crate::setup::Setup;
use crate::shared::Shared;
use crate::world::{Report, World};

/// A world in which nothing happens for so long is stuck: the engine waits for a lock that it holds.
const STUCK: Duration = Duration::from_secs(30);
/// Tries to look at a world that is at work.
const LOOKS: u32 = 1000;
const PAUSE: Duration = Duration::from_millis(1);

/// The operations that follow from a seed.
pub fn ops_of(setup: &Setup, nr_ops: usize) -> Vec<Op> {
    let generator = Generator { arena: setup.arena, mix: Mix::ALL };
    generator.ops(&mut Seeded::new(setup.seed ^ 0x0b5), nr_ops)
}

/// Runs one world to its end. On a failure prints the setup and what happened last, and panics.
pub fn run(setup: &Setup, ops: &[Op]) -> Report {
    let world = World::new(setup.clone());
    let watch = watch(setup.clone(), world.shared());
    let outcome = catch_unwind(AssertUnwindSafe(|| world.run(ops)));
    drop(watch);
    if let Err(panic) = outcome {
        eprintln!("{}", report(setup, &world.shared()));
        resume_unwind(panic);
    }
    world.report()
}

/// The seeds to run: `HMM_SIM_SEED` names one; else there are `HMM_SIM_SEEDS`, or `default`, from `HMM_SIM_FIRST` on.
///
/// # Panics
/// If one of the variables is no number.
pub fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name| {
        let value = std::env::var(name).ok()?;
        Some(value.parse::<u64>().unwrap_or_else(|_| panic!("{name} is {value:?}: give a number")))
    };
    match number("HMM_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = number("HMM_SIM_FIRST").unwrap_or(0);
            first..first + number("HMM_SIM_SEEDS").unwrap_or(default)
        }
    }
}

/// Ends the process with a report if the world is stuck; until what is returned is dropped.
fn watch(setup: Setup, shared: Arc<Shared>) -> Sender<()> {
    let (alive, watch) = channel();
    std::thread::spawn(move || {
        let mut before = 0;
        while watch.recv_timeout(STUCK) == Err(RecvTimeoutError::Timeout) {
            let now = nr_lines(&shared);
            if now.is_none_or(|now| now == before) {
                // Not by `eprintln`, whose lines a test's harness keeps to itself until the test ends.
                let report = format!("{}\nthe world is stuck\n", report(&setup, &shared));
                let _ = std::io::stderr().write_all(report.as_bytes());
                std::process::abort();
            }
            before = now.unwrap_or(0);
        }
    });
    alive
}

/// How much has happened. `None`: the world is locked, and stays so.
fn nr_lines(shared: &Shared) -> Option<usize> {
    (0..LOOKS).find_map(|_| {
        let lines = shared.try_lock().map(|machine| machine.trace.nr_lines());
        if lines.is_none() {
            std::thread::sleep(PAUSE);
        }
        lines
    })
}

fn report(setup: &Setup, shared: &Shared) -> String {
    let trace = shared
        .try_lock()
        .map_or_else(|| "(the world is locked)".to_owned(), |machine| machine.trace.report());
    format!("{trace}\n{setup:?}\nseed {0}: run this test again with HMM_SIM_SEED={0}", setup.seed)
}
