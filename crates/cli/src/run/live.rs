//! The line that shows a run's state while it works.
//!
//! It is drawn only where it disturbs nobody: on a terminal of which the program is in the foreground and which is in
//! its ordinary mode (an editor or a shell's line editing is not), and only when memory has moved since the last time.
//! The cursor goes back to the line's begin, so that what the program prints next takes its place.

use std::time::{Duration, Instant};

use hmm::control::{Control, RunConfig};
use hmm::device::Usage;
use hmm::spec::ByteSize;
use rustix::process::Pid;
use rustix::stdio::stderr;
use rustix::termios::{LocalModes, tcgetattr, tcgetpgrp, tcgetwinsize};

use super::summary::{Microseconds, by_device};
use super::totals::{Gauges, Totals};
use crate::output;
use crate::pages::pages;

const INTERVAL: Duration = Duration::from_millis(500);
const DEFAULT_COLUMNS: usize = 80;

/// What the line shows.
#[derive(Debug)]
struct State {
    resident_pages: u64,
    budget_pages: u64,
    /// Whether each process has that.
    per_process: bool,
    /// How full each device is, with its name.
    devices: Vec<(&'static str, Usage)>,
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
            resident_pages: control.charged(),
            budget_pages: control.budget(),
            per_process: self.config.per_process,
            devices: by_device(&self.config, &Gauges::of(control))
                .map(|(device, usage)| (device.name(), usage))
                .collect(),
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
        let of_each = |text: fn(&str, Usage) -> String| {
            self.devices.iter().map(|(name, usage)| text(name, *usage)).collect::<String>()
        };
        format!(
            "hmm: {} resident{}, {} faults/s, p50 {}, p99 {} (budget {}{}{})",
            pages(self.resident_pages),
            of_each(|name, usage| format!(", {} on {name}", pages(usage.frames))),
            self.faults_per_second,
            Microseconds(self.p50_ns),
            Microseconds(self.p99_ns),
            pages(self.budget_pages),
            if self.per_process { " a process" } else { "" },
            of_each(|name, usage| format!(", {name} takes {}", ByteSize(usage.used_bytes))),
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
            per_process: false,
            devices: vec![("lz4", Usage { frames: 400_000, used_bytes: 500 << 20, capacity_bytes: 1 << 30 })],
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

    #[test]
    fn each_device_has_its_figures() {
        let usage = |pages| Usage { frames: pages, used_bytes: pages << 10, capacity_bytes: 1 << 30 };
        let state = State {
            resident_pages: 256,
            budget_pages: 256,
            per_process: true,
            devices: vec![("lz4", usage(512)), ("file", usage(1024))],
            faults_per_second: 0,
            p50_ns: 1000,
            p99_ns: 1000,
        };
        let line = state.line();
        assert!(line.starts_with("hmm: 1 MiB resident, 2 MiB on lz4, 4 MiB on file, 0 faults/s"), "{line}");
        assert!(line.ends_with("(budget 1 MiB a process, lz4 takes 512 KiB, file takes 1 MiB)"), "{line}");
    }
}
