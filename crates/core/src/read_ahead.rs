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
use crate::fault::Step;
use crate::fetch::{Fetch, Purpose};
use crate::flights::Pass;
use crate::kernel::Kernel;
use crate::state::PageState;
use crate::stream::Hit;
use crate::stride::Stride;
use crate::table::{States, covers};
use crate::thrift::Wish;

/// Jobs that wait at most; more streams than that fetch on demand.
const MAX_JOBS: usize = 16;
/// With what is left of those that threads are at work on. What is beyond that is dropped: who fetches ahead must not allocate.
const ROOM: usize = 2 * MAX_JOBS;

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
    /// far enough ahead of where the stream is. Returns where it goes on behind what is planned, and the new window's first page.
    ///
    /// What a stream comes to next is more urgent than what is planned already: that may be another stream's that has ended.
    fn plan(&self, hit: Hit, reached: Vpn, next: Vpn, ahead: usize) -> (Vpn, Option<Vpn>) {
        let stride = hit.stride.or_up();
        let mut jobs = self.lock();
        let mut end = next;
        while let Some(job) = jobs.iter().find(|job| job.contains(end, stride)) {
            end = job.end();
        }
        let is_urgent = end == next;
        let nr_planned = stride.steps(reached, end).unwrap_or(u64::MAX);
        let nr_pages = (ahead as u64).saturating_sub(nr_planned).min(hit.window as u64);
        if nr_pages == 0 || !covers(end) || jobs.len() >= MAX_JOBS {
            return (end, None);
        }
        let job = Job { next: end, stride, nr_pages, trigger: true };
        if is_urgent {
            jobs.push_front(job);
        } else {
            jobs.push_back(job);
        }
        (job.end(), Some(job.next))
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
        let (next, trigger) =
            if ahead > 0 { self.jobs.plan(hit, reached, next, ahead) } else { (next, None) };
        self.streams.expect_fault(hit, range, next, trigger);
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
        let at_once = self.config.ahead_pages();
        if self.free_pages() < at_once as u64 {
            self.make_room_for(job);
            return true;
        }
        if let Some((fetch, pass)) = self.plan_ahead(job, at_once) {
            // Its outcome is for nobody: who needs a page that did not come will fault.
            let _ = self.run_fetch(fetch, pass);
        }
        true
    }

    /// Read-ahead waits for reclaim rather than take the memory that faults need; without progress it is moot.
    fn make_room_for(&self, job: Job) {
        if self.reclaim() == crate::Reclaimed::Progress {
            self.jobs.go_on(job);
        }
    }

    /// Plans a transfer of the job's first pages that are on a device, and leaves the rest as a job: another thread may carry
    /// on there at the same time.
    fn plan_ahead(&self, job: Job, at_once: usize) -> Option<(Fetch, Pass<'_>)> {
        if !covers(job.next) {
            return None;
        }
        let gate = self.gate();
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
        let plan = ((job.next, job.stride), frame.device, window);
        let fetch = match self.mark(&mut states, plan, purpose, Wish::Much) {
            Ok(fetch) => fetch,
            Err(Step::Scarce) => {
                drop(states);
                drop(gate);
                // What is stored to make room may be a call of the same device, and one thread has one.
                drop(pass);
                self.make_room_for(job);
                return None;
            }
            Err(_) => return None,
        };
        let rest = job.from(job.stride.behind(fetch.range()));
        self.jobs.go_on(Job { trigger: false, ..rest });
        Some((fetch, pass))
    }

    /// The job from its first page on that is on a device. `None`: there is none in this block, and what is behind it is
    /// another piece of work.
    fn skip_brought(&self, states: &States, job: Job) -> Option<Job> {
        let block = job.next.block();
        let mut rest = job;
        while rest.nr_pages > 0 && rest.next.block() == block {
            if matches!(states.get(rest.next.index()), PageState::Device { .. }) {
                break;
            }
            rest = rest.without_first();
        }
        if rest.trigger && rest.next != job.next {
            self.streams.trigger_moved(job.next, rest.next);
        }
        if rest.nr_pages > 0 && rest.next.block() == block {
            return Some(rest);
        }
        self.jobs.go_on(rest);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fault of a stream with windows of so many pages. Two of them are worth fetching ahead.
    fn hit(stride: Stride, window: usize) -> Hit {
        let page = Vpn(1 << 20);
        let streams = crate::stream::Streams::new(512);
        streams.fault(page, 1);
        let mut hit = streams.fault(page.add(1), 1);
        (hit.stride, hit.window) = (stride, window);
        hit
    }

    fn plan(jobs: &Jobs, stride: Stride, reached: u64, next: u64, window: usize) -> u64 {
        jobs.plan(hit(stride, window), Vpn(reached), Vpn(next), 2 * window).0.0
    }

    fn planned(jobs: &Jobs) -> Vec<(u64, u64)> {
        jobs.lock().iter().map(|job| (job.next.0, job.nr_pages)).collect()
    }

    #[test]
    fn so_much_is_planned_as_is_worth_it() {
        let jobs = Jobs::new();
        assert_eq!(plan(&jobs, Stride::UP, 100, 110, 64), 174);
        assert_eq!(plan(&jobs, Stride::UP, 101, 110, 64), 229, "behind what is planned");
        assert_eq!(plan(&jobs, Stride::UP, 101, 110, 64), 229, "far enough ahead");
        assert_eq!(planned(&jobs), [(110, 64), (174, 55)]);
        // The stream has come to the second one, which is carried out.
        jobs.lock().clear();
        assert_eq!(plan(&jobs, Stride::UP, 175, 200, 64), 264);
        assert_eq!(plan(&jobs, Stride::UP, 5000, 5001, 1), 5002, "another stream");
        assert_eq!(planned(&jobs), [(5001, 1), (200, 64)]);
        let few = jobs.plan(hit(Stride::UP, 64), Vpn(9000), Vpn(9000), 10);
        assert_eq!(few, (Vpn(9010), Some(Vpn(9000))));
        assert_eq!(jobs.plan(hit(Stride::UP, 64), Vpn(9000), Vpn(9000), 10), (Vpn(9010), None));
    }

    #[test]
    fn what_a_stream_comes_to_next_is_done_first() {
        let jobs = Jobs::new();
        for next in [1000, 5000, 1000, 9000] {
            plan(&jobs, Stride::UP, next, next, 64);
        }
        assert_eq!(planned(&jobs), [(9000, 64), (5000, 64), (1000, 64), (1064, 64)]);
    }

    #[test]
    fn a_stream_is_planned_as_it_goes() {
        let jobs = Jobs::new();
        assert_eq!(plan(&jobs, Stride::DOWN, 1000, 990, 64), 926);
        assert_eq!(plan(&jobs, Stride::DOWN, 990, 990, 64), 862, "behind what is planned");
        assert_eq!(plan(&jobs, Stride::DOWN, 990, 990, 64), 862, "far enough ahead");
        assert_eq!(plan(&jobs, Stride::UP, 990, 990, 4), 994, "another one, the other way");
        let gaps = Stride::between(Vpn(0), Vpn(50));
        assert_eq!([5000, 5000].map(|reached| plan(&jobs, gaps, reached, reached, 4)), [5200, 5400]);
        assert_eq!(plan(&jobs, gaps, 5000, 5000, 4), 5400, "far enough ahead");
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
            let next = stream * 1000;
            let end = plan(&jobs, Stride::UP, next, next, 8);
            assert_eq!(end, if stream < MAX_JOBS as u64 { next + 8 } else { next });
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
