//! Fetching ahead of a stream.
//!
//! When a stream's fault is served, the pages behind it become a job, before the fault's own pages are transferred: so others
//! can go on behind those at the same time. Whoever has nothing else to do carries jobs out, a transfer at a time. The first page
//! of a job is fetched but not mapped: touching it costs one cheap fault out of staging, which tells how far the program is
//! and plans the next job. As much as two windows are planned, so that there is always work for another processor while
//! the program goes through the first of them.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::addr::{PageRange, Vpn};
use crate::engine::Engine;
use crate::fetch::{DEMAND_PAGES, FETCH_PAGES, Fetch, Purpose};
use crate::flights::Pass;
use crate::kernel::Kernel;
use crate::state::PageState;
use crate::stream::Hit;
use crate::stride::Stride;
use crate::table::{States, covers};

/// Jobs that wait at most; more streams than that fetch on demand.
const MAX_JOBS: usize = 16;
/// With what is left of those that threads are at work on. What is beyond that is dropped: who fetches ahead must not allocate.
const ROOM: usize = 2 * MAX_JOBS;
/// Windows that are planned at a time.
pub const WINDOWS_AHEAD: u64 = 2;

/// Pages of a stream that are to be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Job {
    next: Vpn,
    stride: Stride,
    nr_pages: u64,
    /// The first page is to be left in staging.
    trigger: bool,
}

impl Job {
    const fn end(&self) -> Vpn {
        self.stride.on(self.next, self.nr_pages)
    }

    fn contains(&self, page: Vpn, stride: Stride) -> bool {
        let steps = stride.steps(self.next, page);
        self.stride == stride && steps.is_some_and(|steps| steps < self.nr_pages)
    }

    const fn without_first(self) -> Self {
        Self { next: self.stride.on(self.next, 1), nr_pages: self.nr_pages.saturating_sub(1), ..self }
    }

    /// What is left of it at a page that it comes to, or at its end.
    fn from(self, page: Vpn) -> Self {
        let steps = self.stride.steps(self.next, page).unwrap_or(self.nr_pages);
        Self { next: page, nr_pages: self.nr_pages.saturating_sub(steps), ..self }
    }
}

/// What is to be fetched ahead.
#[derive(Debug)]
pub(crate) struct Jobs(Mutex<VecDeque<Job>>);

impl Jobs {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(VecDeque::with_capacity(ROOM)))
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plans another window of pages of a stream, behind those from `next` on that are planned already, if these are not
    /// far enough ahead of where the stream is. Returns where it goes on behind what is planned.
    fn plan(&self, stride: Stride, reached: Vpn, next: Vpn, window: usize) -> Vpn {
        let mut jobs = self.lock();
        let mut end = next;
        while let Some(job) = jobs.iter().find(|job| job.contains(end, stride)) {
            end = job.end();
        }
        let is_near = stride.steps(reached, end).is_some_and(|steps| steps < WINDOWS_AHEAD * window as u64);
        if is_near && covers(end) && jobs.len() < MAX_JOBS {
            let job = Job { next: end, stride, nr_pages: window as u64, trigger: true };
            end = job.end();
            jobs.push_back(job);
        }
        end
    }

    /// What is left of a job is the next one.
    fn go_on(&self, job: Job) {
        let mut jobs = self.lock();
        if job.nr_pages > 0 && jobs.len() < ROOM {
            jobs.push_front(job);
        }
    }
}

impl<K: Kernel> Engine<K> {
    /// A stream's fault brings the range: what comes next is fetched ahead. The caller holds the block.
    pub(crate) fn stream_on(&self, states: &States, hit: Hit, range: PageRange) {
        if range.is_empty() {
            return;
        }
        let reached = hit.stride.behind(range);
        // Behind what an earlier job brought.
        let brought = |page: Vpn| {
            let state = states.get(page.index());
            matches!(state, PageState::System { .. } | PageState::Fetching { .. })
        };
        let step = hit.stride.or_up();
        let next = step.first_beyond(reached, range.start, brought);
        let ahead = self.policy.ahead(&hit);
        let next = if ahead > 0 { self.jobs.plan(step, reached, next, ahead) } else { next };
        self.streams.expect(hit, range, next);
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
                self.jobs.go_on(job);
            }
            return true;
        }
        let Some((fetch, pass)) = self.plan_ahead(job, at_once) else { return true };
        // Its outcome is for nobody: who needs a page that did not come will fault.
        let _ = self.run_fetch(fetch, pass);
        true
    }

    /// Plans a transfer of the job's first pages that are on a device, and leaves the rest as a job: another thread may carry
    /// on there at the same time.
    fn plan_ahead(&self, job: Job, at_once: usize) -> Option<(Fetch, Pass<'_>)> {
        if !covers(job.next) {
            return None;
        }
        let _gate = self.gate();
        let block = self.table.get(job.next.block())?;
        let mut states = block.lock();
        let job = self.skip_brought(&states, job)?;
        let PageState::Device { frame } = states.get(job.next.index()) else { return None };
        if self.registry.owner(frame.device).is_some() {
            // Where a driver's pages are is the driver's choice, until the program touches them.
            return None;
        }
        let pass = self.flights.begin_if_fast(frame.device).ok()?;
        let window = usize::try_from(job.nr_pages).unwrap_or(at_once).min(at_once);
        let purpose = Purpose::Ahead { trigger: job.trigger.then_some(job.next) };
        let fetch = self.mark(&mut states, (job.next, job.stride), frame.device, window, purpose)?;
        let rest = job.from(job.stride.behind(fetch.range()));
        self.jobs.go_on(Job { trigger: false, ..rest });
        Some((fetch, pass))
    }

    /// Pages of one transfer: not so many that a small budget has no room for them.
    fn ahead_pages(&self) -> usize {
        (self.config.max_window as usize / 4).clamp(DEMAND_PAGES, FETCH_PAGES)
    }

    /// The job from its first page on that is on a device. `None`: there is none in this block, and what is behind it is
    /// another piece of work.
    fn skip_brought(&self, states: &States, job: Job) -> Option<Job> {
        let block = job.next.block();
        let mut rest = job;
        while rest.nr_pages > 0 && rest.next.block() == block {
            if matches!(states.get(rest.next.index()), PageState::Device { .. }) {
                return Some(rest);
            }
            rest = rest.without_first();
        }
        self.jobs.go_on(rest);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_windows_are_planned_and_no_more() {
        let jobs = Jobs::new();
        let planned = || jobs.lock().iter().map(|job| (job.next.0, job.nr_pages)).collect::<Vec<_>>();
        assert_eq!(jobs.plan(Stride::UP, Vpn(100), Vpn(110), 64), Vpn(174));
        assert_eq!(jobs.plan(Stride::UP, Vpn(101), Vpn(110), 64), Vpn(238), "behind what is planned");
        assert_eq!(jobs.plan(Stride::UP, Vpn(102), Vpn(110), 64), Vpn(238), "far enough ahead");
        assert_eq!(planned(), [(110, 64), (174, 64)]);
        // The stream has come to the second one, which is carried out.
        jobs.lock().clear();
        assert_eq!(jobs.plan(Stride::UP, Vpn(175), Vpn(200), 64), Vpn(264));
        assert_eq!(jobs.plan(Stride::UP, Vpn(5000), Vpn(5001), 1), Vpn(5002), "another stream");
        assert_eq!(planned(), [(200, 64), (5001, 1)]);
    }

    #[test]
    fn a_stream_is_planned_as_it_goes() {
        let jobs = Jobs::new();
        let down = |reached, next| jobs.plan(Stride::DOWN, Vpn(reached), Vpn(next), 64);
        assert_eq!(down(1000, 990), Vpn(926));
        assert_eq!(down(999, 990), Vpn(862), "behind what is planned");
        assert_eq!(down(998, 990), Vpn(862), "far enough ahead");
        assert_eq!(jobs.plan(Stride::UP, Vpn(990), Vpn(990), 4), Vpn(994), "another one, the other way");
        let gaps = Stride::between(Vpn(0), Vpn(50));
        let with_gaps = |reached| jobs.plan(gaps, Vpn(reached), Vpn(reached), 4);
        assert_eq!([with_gaps(5000), with_gaps(5050)], [Vpn(5200), Vpn(5400)]);
        assert_eq!(with_gaps(5000), Vpn(5400), "far enough ahead");
        assert_eq!(jobs.lock().len(), 5);
    }

    #[test]
    fn what_is_left_of_a_job() {
        let gaps = Stride::between(Vpn(100), Vpn(90));
        let job = Job { next: Vpn(100), stride: gaps, nr_pages: 3, trigger: true };
        assert_eq!(job.end(), Vpn(70));
        assert_eq!(job.from(Vpn(80)), Job { next: Vpn(80), nr_pages: 1, ..job });
        assert_eq!(job.without_first(), job.from(Vpn(90)));
        assert_eq!(job.from(job.end()).nr_pages, 0);
        let first = Job { next: Vpn(0), stride: Stride::DOWN, nr_pages: 2, trigger: true };
        assert_eq!(first.without_first().without_first().nr_pages, 0, "there is nothing in front of it");
    }

    #[test]
    fn no_more_is_planned_than_there_is_room_for() {
        let jobs = Jobs::new();
        for stream in 0..2 * MAX_JOBS as u64 {
            let next = Vpn(stream * 1000);
            let end = jobs.plan(Stride::UP, next, next, 8);
            assert_eq!(end, if stream < MAX_JOBS as u64 { next.add(8) } else { next });
        }
        assert_eq!(jobs.lock().len(), MAX_JOBS);
        // What is left of others, which were taken when there was room.
        let capacity = jobs.lock().capacity();
        for number in 0..2 * ROOM as u64 {
            jobs.go_on(Job { next: Vpn(number), stride: Stride::UP, nr_pages: 1, trigger: false });
        }
        let jobs = jobs.lock();
        assert_eq!((jobs.len(), jobs.capacity()), (ROOM, capacity), "it never allocates");
    }
}
