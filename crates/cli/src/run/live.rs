//! The line that shows a run's state while it works.
//!
//! It is drawn only where it disturbs nobody: on a terminal of which the program is in the foreground and which is in
//! its ordinary mode (an editor or a shell's line editing is not), and only when memory has moved since the last time.
//! The cursor goes back to the line's begin, so that what the program prints next takes its place.

use std::time::{Duration, Instant};

use hmm::control::{Control, RunConfig};
use hmm::spec::ByteSize;
use hmm_core::addr::PAGE_SIZE;
use rustix::process::Pid;
use rustix::stdio::stderr;
use rustix::termios::{LocalModes, tcgetattr, tcgetpgrp, tcgetwinsize};

use super::summary::{Microseconds, device_names};
use super::totals::{Gauges, Totals};
use crate::output;

const INTERVAL: Duration = Duration::from_millis(500);
const DEFAULT_COLUMNS: usize = 80;

/// What the line shows.
#[derive(Debug)]
struct State {
    resident_pages: u64,
    budget_pages: u64,
    gauges: Gauges,
    devices: String,
    faults_per_second: u64,
    p50_ns: u64,
    p99_ns: u64,
}

/// The line, and when it was drawn.
#[derive(Debug)]
pub(super) struct Live {
    config: RunConfig,
    /// The program's process group.
    group: Pid,
    last: Instant,
    /// Faults and pages moved, up to `last`.
    last_activity: (u64, u64),
    drawn: bool,
}

impl Live {
    pub(super) fn new(config: RunConfig, group: Pid) -> Self {
        Self { config, group, last: Instant::now(), last_activity: (0, 0), drawn: false }
    }

    /// Draws the line, if it is time.
    pub(super) fn draw(&mut self, control: &Control) {
        let elapsed = self.last.elapsed();
        if elapsed < INTERVAL {
            return;
        }
        let totals = Totals::of(control);
        let activity = (totals.get("pgfault"), totals.get("pgsteal"));
        let faults = activity.0.saturating_sub(self.last_activity.0);
        let moved = activity != std::mem::replace(&mut self.last_activity, activity);
        self.last = Instant::now();
        // A program within its budget is not talked about.
        if !moved || totals.get("pgsteal") == 0 || !self.may_draw() {
            return;
        }
        let state = State {
            resident_pages: control.ledger().charged(),
            budget_pages: control.ledger().budget(),
            gauges: Gauges::of(control),
            devices: device_names(&self.config),
            faults_per_second: per_second(faults, elapsed),
            p50_ns: totals.latency.quantile(0.5),
            p99_ns: totals.latency.quantile(0.99),
        };
        let columns = tcgetwinsize(stderr()).map_or(DEFAULT_COLUMNS, |size| usize::from(size.ws_col));
        // One column less: a full line would wrap on some terminals.
        let line: String = state.line().chars().take(columns.saturating_sub(1)).collect();
        output::raw(&format!("\r{line}\x1b[K\r"));
        self.drawn = true;
    }

    /// Takes the line away.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.drawn) && self.may_draw() {
            output::raw("\r\x1b[K");
        }
    }

    fn may_draw(&self) -> bool {
        let ordinary = LocalModes::ICANON | LocalModes::ECHO;
        tcgetpgrp(stderr()).is_ok_and(|group| group == self.group)
            && tcgetattr(stderr()).is_ok_and(|modes| modes.local_modes.contains(ordinary))
    }
}

impl State {
    /// The most important first: the end may be cut off.
    fn line(&self) -> String {
        let bytes = |pages: u64| ByteSize(pages.saturating_mul(PAGE_SIZE as u64));
        format!(
            "hmm: {} resident, {} on {devices}, {} faults/s, p50 {}, p99 {} (budget {}, {devices} takes {})",
            bytes(self.resident_pages),
            bytes(self.gauges.away_pages),
            self.faults_per_second,
            Microseconds(self.p50_ns),
            Microseconds(self.p99_ns),
            bytes(self.budget_pages),
            ByteSize(self.gauges.device_bytes),
            devices = self.devices,
        )
    }
}

fn per_second(count: u64, elapsed: Duration) -> u64 {
    let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    count.saturating_mul(1000) / ms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_fits_an_ordinary_terminal() {
        let state = State {
            resident_pages: 130_000,
            budget_pages: 131_072,
            gauges: Gauges { away_pages: 400_000, device_bytes: 500 << 20, ..Gauges::NONE },
            devices: "lz4".to_owned(),
            faults_per_second: per_second(6000, Duration::from_millis(500)),
            p50_ns: 7200,
            p99_ns: 250_000,
        };
        let line = state.line();
        let rest = line
            .strip_prefix("hmm: 508 MiB resident, 1.5 GiB on lz4, 12000 faults/s, p50 7.2 us, p99 250 us");
        assert_eq!(rest, Some(" (budget 512 MiB, lz4 takes 500 MiB)"));
        assert!(line.len() - rest.unwrap().len() < DEFAULT_COLUMNS);
    }
}
