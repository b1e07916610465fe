//! Fetching ahead of a stream.
//!
//! When a stream's fault is served, the pages behind it become a job, before the fault's own pages are transferred: so others
//! can go on behind those at the same time. Whoever has nothing else to do carries jobs out, a transfer at a time. The first page
//! of a job is fetched but not mapped: touching it costs one cheap fault out of staging, which tells how far the program is
//! and plans the next job. As much as two windows are planned, so that there is always work for another processor while
//! the program goes through the first of them.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::addr::{BLOCK_PAGES, PageRange, Vpn};
use crate::engine::Engine;
use crate::fetch::{DEMAND_PAGES, FETCH_PAGES, Purpose};
use crate::kernel::Kernel;
use crate::state::PageState;
use crate::stream::Hit;
use crate::table::{States, covers};

/// Jobs that wait at most; more streams than that fetch on demand.
const MAX_JOBS: usize = 16;
/// Windows that are planned at a time.
pub const WINDOWS_AHEAD: u64 = 2;

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

    /// Plans another window of pages of a stream, behind those from `next` on that are planned already, if these are not
    /// far enough ahead of where the stream is. Returns the end of what is planned.
    fn plan(&self, reached: Vpn, next: Vpn, window: usize) -> Vpn {
        let mut jobs = self.lock();
        let mut end = next;
        while let Some(job) = jobs.iter().find(|job| job.rest.contains(end)) {
            end = job.rest.end;
        }
        let is_near = end < reached.add(WINDOWS_AHEAD * window as u64);
        if is_near && covers(end) && jobs.len() < MAX_JOBS {
            let rest = PageRange::new(end, window as u64);
            end = rest.end;
            jobs.push_back(Job { rest, trigger: true });
        }
        end
    }
}

impl<K: Kernel> Engine<K> {
    /// A stream's fault brings the pages up to `reached`: what comes next is fetched ahead. The caller holds the block.
    pub(crate) fn stream_on(&self, states: &States, hit: Hit, reached: Vpn) {
        let Some(last) = reached.0.checked_sub(1).map(Vpn) else { return };
        // Behind what an earlier job brought.
        let known = last.index() + 1..BLOCK_PAGES;
        let brought = |state| matches!(state, PageState::System { .. } | PageState::Fetching { .. });
        let next = reached.add(states.run_while(known.start.min(BLOCK_PAGES), &known, brought) as u64);
        let ahead = self.policy.ahead(&hit);
        let end = if ahead > 0 { self.jobs.plan(reached, next, ahead) } else { next };
        self.streams.expect(hit, end);
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
        let at_once = self.ahead_pages();
        if self.kernel.ledger().free() + self.nr_stock() < at_once as u64 {
            // Read-ahead waits for reclaim rather than take the memory that faults need; without progress it is moot.
            if self.reclaim() == crate::Reclaimed::Progress {
                self.jobs.lock().push_front(job);
            }
            return true;
        }
        let fetch = {
            let _gate = self.gate();
            let Some(block) = self.table.get(job.rest.start.block()) else { return true };
            let mut states = block.lock();
            let Some(page) = self.skip_brought(&states, &job) else { return true };
            let PageState::Device { frame } = states.get(page.index()) else { return true };
            if self.registry.owner(frame.device).is_some() {
                // Where a driver's pages are is the driver's choice, until the program touches them.
                return true;
            }
            let Ok(pass) = self.flights.begin_if_fast(frame.device) else { return true };
            let window = usize::try_from(job.rest.end.0 - page.0).unwrap_or(at_once).min(at_once);
            let purpose = Purpose::Ahead { trigger: job.trigger };
            self.mark(&mut states, page, frame.device, window, purpose).map(|fetch| (fetch, pass))
        };
        let Some((fetch, pass)) = fetch else { return true };
        let rest = PageRange { start: fetch.range().end, end: job.rest.end };
        if !rest.is_empty() {
            // Before the transfer: another thread may carry on behind it at the same time.
            self.jobs.lock().push_front(Job { rest, trigger: false });
        }
        // Its outcome is for nobody: who needs a page that did not come will fault.
        let _ = self.run_fetch(fetch, pass);
        true
    }

    /// Pages of one transfer: not so many that a small budget has no room for them.
    fn ahead_pages(&self) -> usize {
        (self.config.max_window as usize / 4).clamp(DEMAND_PAGES, FETCH_PAGES)
    }

    /// The first page of the job that is on a device. `None`: there is none in this block, and what is behind it is another
    /// piece of work.
    fn skip_brought(&self, states: &States, job: &Job) -> Option<Vpn> {
        let (start, end) = (job.rest.start, job.rest.end.min(job.rest.start.block().pages().end));
        let is_elsewhere = |state| !matches!(state, PageState::Device { .. });
        let within = start.index()..start.index() + usize::try_from(end.0 - start.0).unwrap_or(0);
        let page = start.add(states.run_while(start.index(), &within, is_elsewhere) as u64);
        if page < end {
            return Some(page);
        }
        if end < job.rest.end {
            let rest = PageRange { start: end, end: job.rest.end };
            self.jobs.lock().push_front(Job { rest, ..*job });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_windows_are_planned_and_no_more() {
        let jobs = Jobs::new();
        let planned =
            || jobs.lock().iter().map(|job| (job.rest.start.0, job.rest.nr_pages())).collect::<Vec<_>>();
        assert_eq!(jobs.plan(Vpn(100), Vpn(110), 64), Vpn(174));
        assert_eq!(jobs.plan(Vpn(101), Vpn(110), 64), Vpn(238), "behind what is planned");
        assert_eq!(jobs.plan(Vpn(102), Vpn(110), 64), Vpn(238), "far enough ahead");
        assert_eq!(planned(), [(110, 64), (174, 64)]);
        // The stream has come to the second one, which is carried out.
        jobs.lock().clear();
        assert_eq!(jobs.plan(Vpn(175), Vpn(200), 64), Vpn(264));
        assert_eq!(jobs.plan(Vpn(5000), Vpn(5001), 1), Vpn(5002), "another stream");
        assert_eq!(planned(), [(200, 64), (5001, 1)]);
    }

    #[test]
    fn no_more_is_planned_than_there_is_room_for() {
        let jobs = Jobs::new();
        for stream in 0..2 * MAX_JOBS as u64 {
            let next = Vpn(stream * 1000);
            let end = jobs.plan(next, next, 8);
            assert_eq!(end, if stream < MAX_JOBS as u64 { next.add(8) } else { next });
        }
        assert_eq!(jobs.lock().len(), MAX_JOBS);
    }
}
