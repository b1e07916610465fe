//! What the tests with real programs stand on: [`Job`] is a program with its input, run alone or under `hmm run`, never
//! without a watchdog; [`same_within_budgets`] is the test that most of them are.
//!
//! The tests are in `tests/all`, the C programs that they compile in `c`. They need the `hmm` command, which they find
//! beside themselves in the target directory, or by the environment variable `HMM_BIN`. Programs that are not installed
//! are [`skipped`](skip), loudly. `HMM_PROGRAMS_SCALE=N` multiplies the sizes, for runs by hand: at 1 a working set is
//! about 100 MiB.
//!
//! Everything here is for tests, and panics where a test has to fail.

pub mod cc;
pub mod command;
pub mod compare;
pub mod data;
pub mod job;
pub mod procs;
pub mod sampler;
pub mod skip;
pub mod stats;
pub mod temp;

pub use cc::{compile, compile_library, compile_with};
pub use command::{Hmm, can_run};
pub use compare::{assert_healthy, assert_same_output, same_within_budgets};
pub use job::{Done, Job};
pub use stats::Stats;
pub use temp::TempDir;

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;

/// What sizes are multiplied by: `HMM_PROGRAMS_SCALE`, else 1.
///
/// # Panics
/// When it is not a number.
pub fn scale() -> u64 {
    match std::env::var("HMM_PROGRAMS_SCALE") {
        Ok(text) => text.parse().expect("HMM_PROGRAMS_SCALE is a whole number"),
        Err(_) => 1,
    }
}
