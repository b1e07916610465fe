//! Fetching ahead of a stream.
//!
//! When a stream's fault is served, the pages behind it become a job. Whoever has nothing else to do carries jobs out,
//! a transfer at a time. The first page of a job is fetched but not mapped: touching it costs one cheap fault out of
//! staging, which tells how far the program is and starts the next job, so that the program and the device work at the
//! same time.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::addr::{BLOCK_PAGES, PageRange, Vpn};
use crate::engine::Engine;
use crate::fetch::{FETCH_PAGES, Purpose};
use crate::kernel::Kernel;
use crate::state::PageState;
use crate::stream::Hit;
use crate::table::{States, covers};

/// Jobs that wait at most; more streams than that fetch on demand.
const MAX_JOBS: usize = 16;

#[derive(Debug, Clone, Copy)]
struct Job {
    rest: PageRange,
    trigger: bool,
}

/// What is to be fetched ahead.
#[derive(Debug)]
pub(crate) struct Jobs(Mutex<VecDeque<Job>>);

impl Jobs {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(VecDeque::with_capacity(MAX_JOBS)))
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Kernel> Engine<K> {
    /// A stream's fault was served up to `reached`: what comes next is fetched ahead. The caller holds the block.
    pub(crate) fn stream_on(&self, states: &States, hit: Hit, reached: Vpn) {
        let Some(last) = reached.0.checked_sub(1).map(Vpn) else { return };
        // Behind what an earlier job brought.
        let known = last.index() + 1..BLOCK_PAGES;
        let brought = |state| matches!(state, PageState::System { .. } | PageState::Fetching { .. });
        let next = reached.add(states.run_while(known.start.min(BLOCK_PAGES), &known, brought) as u64);
        self.streams.expect(hit, next);
        let ahead = self.policy.ahead(&hit);
        if ahead > 0 && covers(next) {
            let mut jobs = self.jobs.lock();
            if jobs.len() < MAX_JOBS && !jobs.iter().any(|job| job.rest.contains(next)) {
                jobs.push_back(Job { rest: PageRange::new(next, ahead as u64), trigger: true });
            }
        }
    }

    /// Whether there is something to fetch ahead.
    pub fn wants_read_ahead(&self) -> bool {
        !self.jobs.lock().is_empty()
    }

    /// Whether faults are strays now: most of the last belonged to no stream.
    pub fn is_stray(&self) -> bool {
        self.streams.is_stray()
    }

    /// Fetches ahead, one transfer. Returns whether there was something to do.
    pub fn read_ahead(&self) -> bool {
        let Some(job) = self.jobs.lock().pop_front() else { return false };
        if self.kernel.ledger().free() + self.nr_stock() < FETCH_PAGES as u64 {
            // Read-ahead waits for reclaim rather than take the memory that faults need; without progress it is moot.
            if self.reclaim() == crate::Reclaimed::Progress {
                self.jobs.lock().push_front(job);
            }
            return true;
        }
        let page = job.rest.start;
        let fetch = {
            let _gate = self.gate();
            let Some(block) = self.table.get(page.block()) else { return true };
            let mut states = block.lock();
            let PageState::Device { frame } = states.get(page.index()) else { return true };
            if self.registry.owner(frame.device).is_some() {
                // Where a driver's pages are is the driver's choice, until the program touches them.
                return true;
            }
            let Ok(pass) = self.flights.begin_if_fast(frame.device) else { return true };
            let window = usize::try_from(job.rest.nr_pages()).unwrap_or(FETCH_PAGES);
            let purpose = Purpose::Ahead { trigger: job.trigger };
            self.mark(&mut states, page, frame.device, window, purpose).map(|fetch| (fetch, pass))
        };
        let Some((fetch, pass)) = fetch else { return true };
        let rest = PageRange { start: page.add(fetch.nr_pages()), end: job.rest.end };
        if !rest.is_empty() {
            // Before the transfer: another thread may carry on behind it at the same time.
            self.jobs.lock().push_front(Job { rest, trigger: false });
        }
        // Its outcome is for nobody: who needs a page that did not come will fault.
        let _ = self.run_fetch(fetch, pass);
        true
    }
}
