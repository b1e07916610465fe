//! Copies of pages that everybody only reads.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hmm_core::addr::PageRange;
use hmm_core::mirror::{Pfn, RangeFault};
use hmm_model::Entropy;

use super::{Driver, Mapping, SimEngine};
use crate::machine::Machine;
use crate::memory::{Bytes, Entry};
use crate::shared::Shared;

impl Driver {
    /// The device gets copies of pages that everybody only reads.
    pub(super) fn duplicate(&self, shared: &Shared, engine: &SimEngine, range: PageRange) {
        if shared.lock().entropy.one_in(2) {
            engine.write_protect(range, self.owner).expect("a short range");
            shared.intervene();
        }
        let nr_changes = self.nr_changes.load(Ordering::Relaxed);
        let seq = self.notifier.read_begin();
        let mut pfns = vec![Pfn::default(); usize::try_from(range.nr_pages()).expect("a short range")];
        let mut fault = RangeFault::snapshot(range, Some(self.owner), &mut pfns);
        if engine.range_fault(&self.notifier, seq, &mut fault).is_err() {
            return;
        }
        shared.intervene();
        let mut copies = Vec::new();
        for (page, _) in range.iter().zip(&pfns).filter(|(_, pfn)| pfn.protected) {
            let machine = shared.lock();
            let number = machine.page(page).expect("the arena is mirrored");
            // What has left meanwhile is read by the sequence's collision.
            if let Some(Entry::Present { bytes, .. }) = machine.memory.entry(number) {
                copies.push((page, Mapping::Copy(Arc::clone(bytes))));
            }
        }
        shared.intervene();
        if self.nr_changes.load(Ordering::Relaxed) != nr_changes {
            return;
        }
        let nr_copies = copies.len();
        let installed = self.notifier.install(seq, |table| table.extend(copies)).is_ok();
        shared.lock().note(|| format!("{:?} copies {nr_copies} of {range:?}: {installed}", self.owner));
        shared.lock().count(if installed { "duplicated" } else { "not_duplicated" }, nr_copies);
    }
}

/// A copy is the page's, as long as it is there (I1).
pub(super) fn check(machine: &Machine, page: u32, copy: &Bytes) {
    if let Some(Entry::Present { bytes, .. }) = machine.memory.entry(page) {
        assert!(bytes == copy, "the copy of page {page} is stale");
        assert!(machine.memory.is_protected(page), "page {page} has a copy, and can be written to");
    }
}
