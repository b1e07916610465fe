//! The model: memory of a budget, which processes touch, and a policy for each of them.
//!
//! What a fault does is what the engine does, in the same steps: pages that are brought, blocks that go to staging, bays
//! that go on to a device, streams that are fetched ahead. All of it happens at once.

use std::collections::BTreeMap;

use hmm_core::addr::{BLOCK_PAGES, PageRange, Vpn};
use hmm_core::bits::PageSet;
use hmm_core::policy::{Brings, Cause, Fault, Name};
use hmm_core::stream::Hit;
use hmm_core::stride::Stride;
use hmm_core::trace::{Event, Record, What};
use hmm_core::{CHANCE_PAGES, Config, FETCH_PAGES};

use crate::counts::Counts;
use crate::file::Trace;
use crate::process::{Page, Place, Process};

/// Replays the trace's touches through a policy, in memory of so many pages.
pub fn replay(trace: &Trace, policy: Name, ram_pages: u64) -> Counts {
    let mut memory = Memory::new(policy, ram_pages);
    trace.records.iter().for_each(|record| memory.look_ahead(record));
    trace.records.iter().for_each(|record| memory.step(record));
    memory.end()
}

/// The pages that a first touch filled: its own, and some around it.
pub(crate) fn filled(first_touch: &Event) -> PageRange {
    let Event { page, nr_pages, before, .. } = *first_touch;
    PageRange::new(Vpn(page.0.saturating_sub(u64::from(before))), u64::from(nr_pages))
}

#[derive(Debug)]
struct Memory {
    policy: Name,
    ram_pages: u64,
    config: Config,
    processes: BTreeMap<u16, Process>,
    /// Pages that are filled at some time: what a first touch may fill along with its page. What is mapped and never
    /// touched is not known.
    filled: BTreeMap<(u16, u64), PageSet>,
    counts: Counts,
}

impl Memory {
    fn new(policy: Name, ram_pages: u64) -> Self {
        let config = Config::for_budget(ram_pages);
        let (processes, filled) = (BTreeMap::new(), BTreeMap::new());
        Self { policy, ram_pages, config, processes, filled, counts: Counts::default() }
    }

    fn look_ahead(&mut self, record: &Record) {
        if record.event.what == What::FirstTouch {
            for (id, part) in filled(&record.event).blocks() {
                self.filled.entry((record.process, id.0)).or_insert(PageSet::EMPTY).insert_range(part);
            }
        }
    }

    fn step(&mut self, record: &Record) {
        let Record { process: of, event: Event { what, page, nr_pages, .. }, .. } = *record;
        let range = PageRange::new(page, u64::from(nr_pages));
        match what {
            What::Began => self.forget_process(of),
            What::FirstTouch | What::SecondChance | What::Fetch | What::Waited | What::Copied => {
                self.touch(of, page, what);
            }
            What::GaveUp => {
                let known = self.process(of).known(range);
                known.into_iter().for_each(|page| self.give_up(of, page));
            }
            What::MovedFrom => self.process(of).moved_from = Some(range),
            What::MovedTo => self.moved(of, page),
            // What the recorded policy did, and what is not known.
            What::Ahead | What::Evict | What::Store | What::Unchanged | What::Kept | What::Lost => {}
        }
    }

    fn end(mut self) -> Counts {
        let all: Vec<u16> = self.processes.keys().copied().collect();
        all.into_iter().for_each(|of| self.forget_process(of));
        self.counts
    }

    fn process(&mut self, of: u16) -> &mut Process {
        let (policy, window) = (self.policy, self.config.max_window);
        self.processes.entry(of).or_insert_with(|| Process::new(policy, window))
    }

    fn forget_process(&mut self, of: u16) {
        if let Some(process) = self.processes.remove(&of) {
            self.counts.useless += process.pages().filter(|page| page.is_ahead).count() as u64;
        }
    }

    fn give_up(&mut self, of: u16, page: Vpn) {
        let before = self.process(of).put(page, Page::default());
        self.counts.useless += u64::from(before.is_ahead);
    }

    fn moved(&mut self, of: u16, to: Vpn) {
        let Some(from) = self.process(of).moved_from.take() else { return };
        // Aside first: the ranges may overlap.
        let pages: Vec<(Vpn, Page)> = {
            let process = self.process(of);
            process.known(from).into_iter().map(|page| (page, process.put(page, Page::default()))).collect()
        };
        for (page, content) in pages.into_iter().filter(|(_, page)| page.place != Place::Hole) {
            let at = to.add(page.0 - from.start.0);
            // What waits in staging is known by its address.
            let place = if content.place == Place::Staged { Place::Resident } else { content.place };
            let before = self.process(of).put(at, Page { place, ..content });
            self.counts.useless += u64::from(before.is_ahead);
        }
    }

    fn touch(&mut self, of: u16, page: Vpn, what: What) {
        self.counts.touches += 1;
        let mut found = self.process(of).page(page).copied().unwrap_or_default();
        if found.place == Place::Hole && what != What::FirstTouch {
            // It was there before anything was recorded, or its beginning was lost.
            found.place = Place::Device;
            self.process(of).put(page, found);
        }
        if found.left > 0 && found.place != Place::Resident {
            let nr_since = self.counts.evicted - found.left;
            self.counts.came_back_soon += u64::from(nr_since <= self.ram_pages);
        }
        match found.place {
            Place::Resident if !found.is_trigger => {}
            Place::Resident => {
                let process = self.process(of);
                let hit = process.streams.fault(page, 1);
                process.block(page.block()).past.note(hit);
                self.counts.second_chances += 1;
                self.stream_on(of, hit, PageRange::new(page, 1));
            }
            Place::Hole => self.first_touch(of, page),
            Place::Staged => self.second_chance(of, page),
            Place::Device => self.fetch(of, page),
        }
        self.touched(of, page);
        self.counts.faults =
            self.counts.first_touches + self.counts.second_chances + self.counts.device_faults;
        self.reclaim_if_low(of);
    }

    /// The page is there, and in use.
    fn touched(&mut self, of: u16, page: Vpn) {
        let at = &mut self.process(of).block(page.block()).pages[page.index()];
        let was_ahead = std::mem::take(&mut at.is_ahead);
        (at.is_trigger, at.left) = (false, 0);
        self.counts.useful += u64::from(was_ahead);
    }

    fn brings(&mut self, of: u16, page: Vpn, cause: Cause, hit: Hit, together: usize) -> Brings {
        self.process(of).policy.brings(&Fault { page, cause, hit, together })
    }

    fn first_touch(&mut self, of: u16, page: Vpn) {
        self.counts.first_touches += 1;
        let together = self.config.first_touch_pages;
        let hit = self.process(of).streams.fault(page, together);
        let brings = self.brings(of, page, Cause::FirstTouch, hit, together as usize);
        let filled = self.filled.get(&(of, page.block().0)).copied().unwrap_or(PageSet::EMPTY);
        let block = self.process(of).block(page.block());
        let is_hole = |index: &usize| {
            block.pages[*index].place == Place::Hole && (filled.contains(*index) || *index == page.index())
        };
        let (lowest, most) = brings.span_of_holes(page.index(), hit.stride);
        let first = (lowest..page.index()).rev().take_while(is_hole).last().unwrap_or(page.index());
        let nr_pages = (first..BLOCK_PAGES).take_while(is_hole).count().min(page.index() - first + most);
        self.make_room(of, nr_pages as u64);
        let process = self.process(of);
        for index in first..first + nr_pages {
            let at = page.block().page(index);
            process.put(at, Page { place: Place::Resident, ..Page::default() });
        }
        let range = PageRange::new(page.block().page(first), nr_pages as u64);
        process.streams.expect(hit, range, hit.stride.behind(range));
    }

    fn second_chance(&mut self, of: u16, page: Vpn) {
        self.counts.second_chances += 1;
        let hit = self.process(of).streams.fault(page, 1);
        let brings = self.brings(of, page, Cause::SecondChance, hit, CHANCE_PAGES);
        let (first, window) = brings.span(page.index(), hit.stride);
        let process = self.process(of);
        let block = process.block(page.block());
        let staged = |index: &usize| block.pages[*index].place == Place::Staged;
        let start = (first..page.index()).rev().take_while(staged).last().unwrap_or(page.index());
        block.past.note(hit);
        let end = page.index() + block.run(page.index(), Place::Staged).min(window);
        for index in start..end {
            block.pages[index].place = Place::Resident;
        }
        process.note_resident(page.block());
        let came = PageRange { start: page.block().page(start), end: page.block().page(end) };
        self.stream_on(of, hit, came);
    }

    fn fetch(&mut self, of: u16, page: Vpn) {
        self.counts.device_faults += 1;
        let together = self.config.ahead_pages();
        let process = self.process(of);
        let hit = process.streams.fault(page, 1);
        let mut past = process.block(page.block()).past;
        let hit = past.foresee(&process.streams, page, hit, together);
        process.block(page.block()).past = past;
        let brings = self.brings(of, page, Cause::Fetch, hit, 1);
        let window = if hit.stride == Stride::UP { self.config.demand_pages(brings.window) } else { 1 };
        let nr_pages = self.bring(of, page, window, None);
        self.stream_on(of, hit, PageRange::new(page, nr_pages as u64));
    }

    /// Brings a run of pages from a device. The first is asked for, or, of read-ahead, may be its trigger.
    fn bring(&mut self, of: u16, page: Vpn, window: usize, ahead: Option<bool>) -> usize {
        let run = self.process(of).block(page.block()).run(page.index(), Place::Device);
        let nr_pages = run.min(window.clamp(1, FETCH_PAGES));
        self.make_room(of, nr_pages as u64);
        for number in 0..nr_pages {
            let is_first = number == 0;
            let is_ahead = ahead.is_some() || !is_first;
            let at = page.add(number as u64);
            let process = self.process(of);
            let left = process.page(at).map_or(0, |page| page.left);
            let is_trigger = is_first && ahead == Some(true);
            process.put(at, Page { place: Place::Resident, is_ahead, is_trigger, left });
            self.counts.read_ahead += u64::from(is_ahead);
        }
        self.counts.fetched += nr_pages as u64;
        nr_pages
    }

    /// A stream's fault brought the range: what comes next is fetched ahead, at once.
    fn stream_on(&mut self, of: u16, hit: Hit, range: PageRange) {
        let process = self.process(of);
        let reached = hit.stride.behind(range);
        let stride = hit.stride.or_up();
        let is_there = |page: Vpn| process.page(page).is_some_and(|page| page.place == Place::Resident);
        let mut next = stride.first_beyond(reached, range.start, is_there);
        let ahead = process.policy.ahead(&hit) as u64;
        let nr_there = stride.steps(reached, next).unwrap_or(u64::MAX);
        let mut left = ahead.saturating_sub(nr_there).min(hit.window as u64);
        let trigger = (left > 0).then_some(next);
        process.streams.expect_fault(hit, range, stride.on(next, left), trigger);
        let mut is_trigger = true;
        while left > 0 && self.process(of).page(next).is_some_and(|page| page.place == Place::Device) {
            let window = if stride == Stride::UP { usize::try_from(left).unwrap_or(FETCH_PAGES) } else { 1 };
            let nr_pages = self.bring(of, next, window, Some(is_trigger)) as u64;
            (next, left) = (stride.on(next, nr_pages), left - nr_pages);
            is_trigger = false;
        }
    }

    fn nr_free(&self) -> u64 {
        let used: u64 = self.processes.values().map(|process| process.nr_used).sum();
        self.ram_pages.saturating_sub(used)
    }

    fn make_room(&mut self, of: u16, nr_pages: u64) {
        while self.nr_free() < nr_pages && self.reclaim(of) {}
    }

    fn reclaim_if_low(&mut self, of: u16) {
        if self.nr_free() < self.config.low_pages {
            while self.nr_free() < self.config.high_pages && self.reclaim(of) {}
        }
    }

    /// One step, of this process or else of the one that has most. False: there is nothing to take.
    fn reclaim(&mut self, of: u16) -> bool {
        self.reclaim_of(of) || {
            let most = self.processes.iter().max_by_key(|(_, process)| process.nr_used);
            let most = most.map(|(other, _)| *other).filter(|other| *other != of);
            most.is_some_and(|other| self.reclaim_of(other))
        }
    }

    fn reclaim_of(&mut self, of: u16) -> bool {
        let nr_bays = self.config.nr_bays;
        let nr_waiting = self.process(of).policy.nr_waiting(nr_bays);
        if self.process(of).waiting.len() < nr_waiting && self.evict(of) {
            return true;
        }
        self.store(of) || self.evict(of)
    }

    /// Takes the next block out. False: there is none.
    fn evict(&mut self, of: u16) -> bool {
        let before = self.counts.evicted;
        let process = self.process(of);
        while let Some(victim) = process.policy.next() {
            let block = process.block(victim.block);
            block.is_queued = false;
            let mut staged = PageSet::EMPTY;
            let mut nr_left = before;
            for (index, page) in block.pages.iter_mut().enumerate() {
                if page.place == Place::Resident {
                    nr_left += 1;
                    *page = Page { place: Place::Staged, is_trigger: false, left: nr_left, ..*page };
                    staged.insert(index);
                }
            }
            if !staged.is_empty() {
                let mut note = block.note;
                process.policy.left(&mut note);
                process.block(victim.block).note = note;
                process.waiting.push_back((victim.block, staged));
                self.counts.evicted = nr_left;
                return true;
            }
        }
        false
    }

    /// Has what has waited longest go to a device. False: nothing waits.
    fn store(&mut self, of: u16) -> bool {
        let process = self.process(of);
        let Some((id, staged)) = process.waiting.pop_front() else { return false };
        let (mut nr_stored, mut nr_useless) = (0, 0);
        for index in staged.runs().flatten() {
            let Page { place: Place::Staged, is_ahead, left, .. } = process.block(id).pages[index] else {
                continue;
            };
            nr_stored += 1;
            nr_useless += u64::from(is_ahead);
            process.put(id.page(index), Page { place: Place::Device, left, ..Page::default() });
        }
        self.counts.stored += nr_stored;
        self.counts.useless += nr_useless;
        true
    }
}
