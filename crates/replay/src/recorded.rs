//! What the trace itself says: what was done when it was recorded.

use hmm_core::trace::{IN_STREAM, What};
use serde::Serialize;

use crate::file::Trace;

/// Events and pages of a trace. Pages, unless it says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Recorded {
    /// Records of the file.
    pub records: u64,
    /// Events that are missing.
    pub lost: u64,
    /// Processes that began.
    pub processes: u64,
    /// Microseconds to the last event.
    pub duration_us: u64,
    /// Touches: the next five together.
    pub touches: u64,
    /// Faults on holes.
    pub first_touches: u64,
    /// Faults on pages in staging.
    pub second_chances: u64,
    /// Faults on pages on a device.
    pub device_faults: u64,
    /// Faults on pages that somebody was fetching.
    pub waited: u64,
    /// Faults on pages that were being stored.
    pub copied: u64,
    /// Of the touches, those that continued a stream, as far as pages came back.
    pub in_stream: u64,
    /// Pages that came from a device.
    pub fetched: u64,
    /// Those of them that no fault had asked for.
    pub read_ahead: u64,
    /// Pages that left the program.
    pub evicted: u64,
    /// Pages that a device stored.
    pub stored: u64,
    /// Pages that left for a device that had them still.
    pub unchanged: u64,
    /// Pages that came from a device, and keep their frames there.
    pub kept: u64,
    /// Pages that the program gave up, as far as its blocks were known.
    pub given_up: u64,
}

/// Adds a trace up.
pub fn recorded(trace: &Trace) -> Recorded {
    let mut sums =
        Recorded { lost: trace.nr_lost, records: trace.records.len() as u64, ..Recorded::default() };
    for record in &trace.records {
        let (event, nr_pages) = (&record.event, u64::from(record.event.nr_pages));
        sums.duration_us = sums.duration_us.max(record.time_us);
        if event.what.is_touch() {
            sums.touches += 1;
            sums.in_stream += u64::from(event.detail & IN_STREAM != 0);
        }
        match event.what {
            What::Began => sums.processes += 1,
            What::FirstTouch => sums.first_touches += 1,
            What::SecondChance => sums.second_chances += 1,
            What::Fetch => {
                sums.device_faults += 1;
                sums.fetched += nr_pages;
                sums.read_ahead += nr_pages.saturating_sub(1);
            }
            What::Ahead => {
                sums.fetched += nr_pages;
                sums.read_ahead += nr_pages;
            }
            What::Waited => sums.waited += 1,
            What::Copied => sums.copied += 1,
            What::Evict => sums.evicted += nr_pages,
            What::Store => sums.stored += nr_pages,
            What::Unchanged => sums.unchanged += nr_pages,
            What::Kept => sums.kept += nr_pages,
            What::GaveUp => sums.given_up += nr_pages,
            What::MovedFrom | What::MovedTo | What::Lost => {}
        }
    }
    sums
}
