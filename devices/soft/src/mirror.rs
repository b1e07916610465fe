//! The device's side of the notifier: entries go when pages do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hmm_core::notifier::{Change, Pass, Watch};

use crate::dropped::Dropped;
use crate::own::OwnSlice;
use crate::stats::Stats;
use crate::table::Table;
use crate::tlb::{self, Core};

/// Keeps the page table in step.
#[derive(Debug)]
pub(crate) struct Mirror {
    cores: Arc<OwnSlice<Core>>,
    dropped: Arc<Dropped>,
    stats: Arc<Stats>,
    /// Changes whose entries are gone, and that still wait for units. Counted up under the table's lock.
    waiting: AtomicU64,
}

impl Mirror {
    pub(crate) fn new(cores: Arc<OwnSlice<Core>>, dropped: Arc<Dropped>, stats: Arc<Stats>) -> Self {
        Self { cores, dropped, stats, waiting: AtomicU64::new(0) }
    }
}

impl Watch for Mirror {
    type Table = Table;

    fn invalidate(&self, table: &mut Table, change: &Change) -> Pass {
        let had_frames = table.clear(change.range);
        // Somebody else may have cleared these entries just now, and wait for the same units. Both have to.
        if had_frames || self.waiting.load(Ordering::Acquire) > 0 {
            self.waiting.fetch_add(1, Ordering::AcqRel);
            return Pass::Begun;
        }
        Pass::Done
    }

    fn finish(&self, change: &Change) {
        tlb::wait(&self.cores, change.range);
        self.dropped.free(change.range);
        self.stats.shootdowns.add(1);
        self.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}
