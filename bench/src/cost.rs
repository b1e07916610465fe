//! What a worker costs the machine from its start to its end, seen from outside: CPU time, and the bytes that were moved.
//!
//! Filling and checking are in both, so that they belong together.

use crate::usage::machine_seconds;
use anyhow::{Context, Result};
use serde_json::Value;

const PAGE_BYTES: u64 = 4096;
/// Counters of /proc/vmstat, in pages: what swap read and wrote, and what zswap took and gave without that.
const SWAPPED: [&str; 4] = ["pswpin", "pswpout", "zswpin", "zswpout"];
/// What block devices read and wrote, in KiB.
const PAGED: [&str; 2] = ["pgpgin", "pgpgout"];
/// Counters of hmm, in pages: what devices delivered, because of a fault or ahead of it, and what they took.
const CARRIED: [&str; 3] = ["pgfetch", "pgprefetch", "pgstore"];

/// The difference between two moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub(crate) struct RunCost {
    /// CPU time of the whole machine.
    pub(crate) machine_seconds: f64,
    /// Bytes that went to where the rest lives, or came from there; `None` in RAM.
    pub(crate) moved_bytes: Option<u64>,
}

/// Who counts what is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moves {
    /// Nobody, or somebody else.
    Unknown,
    /// The kernel's swap.
    Swapped,
    /// The kernel's block devices.
    Paged,
}

/// A moment to measure from.
#[derive(Debug)]
pub(crate) struct CostMeter {
    machine_seconds: f64,
    moves: Moves,
    moved_bytes: u64,
}

impl CostMeter {
    /// Begins to measure.
    ///
    /// # Errors
    /// A file below /proc cannot be read.
    pub(crate) fn start(moves: Moves) -> Result<Self> {
        Ok(Self { machine_seconds: machine_seconds()?, moves, moved_bytes: moved_bytes(moves)? })
    }

    /// What was used since.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub(crate) fn stop(&self) -> Result<RunCost> {
        let moved = moved_bytes(self.moves)?.saturating_sub(self.moved_bytes);
        Ok(RunCost {
            machine_seconds: machine_seconds()? - self.machine_seconds,
            moved_bytes: (self.moves != Moves::Unknown).then_some(moved),
        })
    }
}

fn moved_bytes(moves: Moves) -> Result<u64> {
    let (names, unit) = match moves {
        Moves::Unknown => return Ok(0),
        Moves::Swapped => (SWAPPED.as_slice(), PAGE_BYTES),
        Moves::Paged => (PAGED.as_slice(), 1024),
    };
    let text = std::fs::read_to_string("/proc/vmstat").context("cannot read /proc/vmstat")?;
    Ok(sum_of(&text, names) * unit)
}

/// A kernel without zswap lacks its counters.
fn sum_of(vmstat: &str, names: &[&str]) -> u64 {
    let counter = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        names.contains(&name).then(|| value.trim().parse::<u64>().ok()).flatten()
    };
    vmstat.lines().filter_map(counter).sum()
}

/// What hmm's own figures say was moved.
pub(crate) fn carried_bytes(stats: &Value) -> Option<u64> {
    let counters = stats.get("counters")?;
    CARRIED
        .iter()
        .map(|name| counters.get(name)?.as_u64())
        .sum::<Option<u64>>()
        .map(|pages| pages * PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_is_named_counts() {
        let vmstat = "pgpgin 7\npgpgout 9\npswpin 1\npswpout 2\nzswpin 4\npswpoutx 99\n";
        assert_eq!(sum_of(vmstat, &SWAPPED), 7);
        assert_eq!(sum_of(vmstat, &PAGED), 16);
        let stats = json!({"counters": {"pgfetch": 1, "pgprefetch": 2, "pgstore": 4, "pgclean": 8}});
        assert_eq!(carried_bytes(&stats), Some(7 * 4096));
        assert_eq!(carried_bytes(&json!({"counters": {"pgfetch": 1}})), None);
        assert_eq!(carried_bytes(&Value::Null), None);
    }

    #[test]
    fn the_kernel_counts_swap_on_every_machine() {
        let vmstat = std::fs::read_to_string("/proc/vmstat").unwrap();
        assert!(SWAPPED[..2].iter().chain(&PAGED).all(|name| vmstat.contains(&format!("\n{name} "))));
        let cost = CostMeter::start(Moves::Swapped).unwrap().stop().unwrap();
        assert!(cost.machine_seconds >= 0.0 && cost.moved_bytes.is_some(), "{cost:?}");
        assert_eq!(CostMeter::start(Moves::Unknown).unwrap().stop().unwrap().moved_bytes, None);
    }
}
