//! The figures at the end of the demo.

use std::fmt;
use std::time::Duration;

use hmm::device::Usage;
use hmm::spec::ByteSize;
use hmm::uapi::uffd::Access;
use hmm::{AddressSpace, Snapshot};
use serde::Serialize;

use super::work::{Amount, Phase};
use crate::failure::Failure;
use crate::pages::{bytes, pages};
use crate::table::{Align, Table};

/// A phase that is done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timed {
    pub(super) phase: Phase,
    pub(super) work: Amount,
    pub(super) time: Duration,
}

impl Timed {
    /// Units a second.
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    fn rate(&self) -> f64 {
        let (Amount::Bytes(units) | Amount::Updates(units)) = self.work;
        units as f64 / self.time.as_secs_f64().max(1e-9)
    }

    fn show_rate(&self) -> String {
        match self.work {
            Amount::Bytes(_) => format!("{:.0} MB/s", self.rate() / 1e6),
            Amount::Updates(_) => format!("{:.0} k/s", self.rate() / 1e3),
        }
    }
}

/// How things stood when most was away, as seen between the phases.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Peak {
    away_pages: u64,
    /// Of the device. It also keeps copies of pages that came home, while there is room.
    usage: Usage,
}

impl Peak {
    pub(super) fn raise_to(&mut self, now: &Snapshot, usage: Usage) {
        if now.away >= self.away_pages {
            *self = Self { away_pages: now.away, usage };
        }
    }
}

/// Everything to be told.
#[derive(Debug)]
pub(super) struct Report {
    size: u64,
    access: Access,
    stats: Snapshot,
    peak: Peak,
    plain: Option<Vec<Timed>>,
    managed: Vec<Timed>,
}

impl Report {
    pub(super) fn new(
        size: u64,
        space: &AddressSpace,
        peak: Peak,
        plain: Option<Vec<Timed>>,
        managed: Vec<Timed>,
    ) -> Self {
        Self { size, access: space.access(), stats: space.stats(), peak, plain, managed }
    }

    #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
    fn ratio(&self) -> f64 {
        bytes(self.peak.usage.frames) as f64 / self.peak.usage.used_bytes.max(1) as f64
    }

    fn plain_of(&self, phase: Phase) -> Option<&Timed> {
        self.plain.as_ref()?.iter().find(|timed| timed.phase == phase)
    }

    fn figures(&self) -> Table<2> {
        let stats = &self.stats;
        let mut table = Table::new([Align::Left, Align::Left]);
        let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
        row("working set", format!("{}, every byte as it must be", ByteSize(self.size)));
        row("RAM budget", pages(stats.budget).to_string());
        row("resident at the peak", pages(stats.peak_resident).to_string());
        row("away at the peak", pages(self.peak.away_pages).to_string());
        row(
            "lz4 pool then",
            format!(
                "{} of pages in {} of RAM, {:.1} : 1",
                pages(self.peak.usage.frames),
                ByteSize(self.peak.usage.used_bytes),
                self.ratio()
            ),
        );
        row("tables", ByteSize(stats.metadata_bytes).to_string());
        row(
            "faults",
            format!(
                "{}, served in {:.1} us (p50), {:.1} us (p99)",
                stats.faults,
                us(stats.latency_p50_ns),
                us(stats.latency_p99_ns)
            ),
        );
        row("pages fetched", format!("{} on demand, {} ahead", stats.fetched, stats.prefetched));
        row("pages stored", format!("{}, {} more left unchanged", stats.stored, stats.clean));
        row(
            "userfaultfd",
            match self.access {
                Access::Full => "full".to_owned(),
                Access::UserModeOnly => "user mode only, as for an ordinary user".to_owned(),
            },
        );
        table
    }

    fn phases(&self) -> Table<4> {
        let mut table = Table::new([Align::Left, Align::Right, Align::Right, Align::Right]);
        table.row(["", "all in RAM", "under hmm", ""].map(str::to_owned));
        for timed in &self.managed {
            let plain = self.plain_of(timed.phase);
            table.row([
                timed.phase.name().to_owned(),
                plain.map_or_else(|| "-".to_owned(), Timed::show_rate),
                timed.show_rate(),
                plain
                    .map_or_else(String::new, |plain| format!("{:.1} x slower", plain.rate() / timed.rate())),
            ]);
        }
        table
    }

    /// As JSON.
    pub(super) fn to_json(&self) -> Result<String, Failure> {
        serde_json::to_string_pretty(&Json::of(self)).map_err(Failure::of_hmm)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.figures(), self.phases())?;
        if self.plain.is_none() {
            writeln!(f, "\n  Not compared with RAM: the machine has too little for the working set.")?;
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn us(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

#[derive(Debug, Serialize)]
struct Json {
    verified: bool,
    working_set_bytes: u64,
    budget_bytes: u64,
    peak_resident_bytes: u64,
    away_bytes: u64,
    device_bytes: u64,
    compression_ratio: f64,
    metadata_bytes: u64,
    faults: u64,
    fault_p50_ns: u64,
    fault_p99_ns: u64,
    pages_fetched: u64,
    pages_prefetched: u64,
    pages_stored: u64,
    pages_clean: u64,
    user_mode_only: bool,
    phases: Vec<JsonPhase>,
}

#[derive(Debug, Serialize)]
struct JsonPhase {
    phase: Phase,
    unit: &'static str,
    amount: u64,
    seconds: f64,
    ram_seconds: Option<f64>,
}

impl Json {
    fn of(report: &Report) -> Self {
        let stats = &report.stats;
        Self {
            // Else there is no report.
            verified: true,
            working_set_bytes: report.size,
            budget_bytes: bytes(stats.budget),
            peak_resident_bytes: bytes(stats.peak_resident),
            away_bytes: bytes(report.peak.away_pages),
            device_bytes: report.peak.usage.used_bytes,
            compression_ratio: report.ratio(),
            metadata_bytes: stats.metadata_bytes,
            faults: stats.faults,
            fault_p50_ns: stats.latency_p50_ns,
            fault_p99_ns: stats.latency_p99_ns,
            pages_fetched: stats.fetched,
            pages_prefetched: stats.prefetched,
            pages_stored: stats.stored,
            pages_clean: stats.clean,
            user_mode_only: report.access == Access::UserModeOnly,
            phases: report.managed.iter().map(|timed| JsonPhase::of(report, timed)).collect(),
        }
    }
}

impl JsonPhase {
    fn of(report: &Report, timed: &Timed) -> Self {
        let (unit, amount) = match timed.work {
            Amount::Bytes(bytes) => ("bytes", bytes),
            Amount::Updates(updates) => ("updates", updates),
        };
        Self {
            phase: timed.phase,
            unit,
            amount,
            seconds: timed.time.as_secs_f64(),
            ram_seconds: report.plain_of(timed.phase).map(|plain| plain.time.as_secs_f64()),
        }
    }
}
