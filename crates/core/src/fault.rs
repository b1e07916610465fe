//! A CPU touched a page that is not mapped: every fault ends mapped, zero-filled, retried or poisoned (I4).

use std::sync::atomic::Ordering;

use crate::addr::{BLOCK_PAGES, PageRange, Slot, SlotRun, Vpn};
use crate::engine::{Engine, HomeBy};
use crate::flights::Grounded;
use crate::kernel::{Kernel, Stop};
use crate::notifier::{Cause, Change};
use crate::policy::{self, Brings, Fault};
use crate::reclaim::Reclaimed;
use crate::staging::Left;
use crate::state::{Frame, PageState};
use crate::stream::Hit;
use crate::table::{States, covers};
use crate::thrift::{Thrift, Wish};
use crate::trace::{IN_STREAM, What};

/// How a fault ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "`Retry`, `Unmanaged` and `Full` leave the faulting thread waiting"]
pub enum Outcome {
    /// The page is there, or poisoned; its waiters are awake.
    Done,
    /// Someone else is bringing the page and will wake its waiters.
    Parked,
    /// Events have to be read first, or memory to become free in other hands; then fault again.
    Retry,
    /// The page is in no extent that the kernel door knows of.
    Unmanaged,
    /// No memory is left, and no device takes a page.
    Full,
}

/// How far one look at a page came.
pub(crate) enum Step {
    Ended(Outcome),
    /// Nothing was done for lack of memory.
    NeedMemory,
    /// The page was brought, and there was no memory for the copy that it has to be.
    NeedSecond,
    /// Nothing was done: there is memory for much less than the stream wants.
    Scarce,
    /// The state has changed meanwhile: look again.
    Again,
}

/// Looks at one page before the fault is handed back as [`Outcome::Retry`].
const MAX_STEPS: usize = 32;
/// Pages cleared at a time when there is no fresh memory; bounds the time a block is locked.
const MAX_CLEAR: usize = 64;
/// Pages that get their second chance together: 64 KiB, aligned.
pub const CHANCE_PAGES: usize = 16;

/// Result of giving staging slots to the program.
pub(crate) struct Mapped {
    /// Pages that are mapped now, from the front.
    pub(crate) done: usize,
    pub(crate) stop: Option<Stop>,
    /// What is left in the slots of those pages.
    pub(crate) left: Left,
}

impl<K: Kernel> Engine<K> {
    /// Serves a fault at `page`.
    pub fn fault(&self, page: Vpn) -> Outcome {
        self.fault_with(page, &|| {})
    }

    /// The same; `help` is called, with nothing locked, before a transfer during which another thread can fetch ahead.
    pub fn fault_with(&self, page: Vpn, help: &dyn Fn()) -> Outcome {
        if !covers(page) {
            return Outcome::Unmanaged;
        }
        let mut thrift = Thrift::new();
        for _ in 0..MAX_STEPS {
            match self.fault_step(page, help, thrift.wish()) {
                Step::Ended(outcome) => return outcome,
                Step::Again => {}
                Step::Scarce => {
                    thrift.found_little(self.reclaim_for(Some(page)) == Reclaimed::Progress);
                }
                need @ (Step::NeedMemory | Step::NeedSecond) => {
                    if thrift.found_none(matches!(need, Step::NeedSecond)) {
                        self.stats().direct_reclaim.fetch_add(1, Ordering::Relaxed);
                        self.ask_others();
                    }
                    match self.reclaim_for(Some(page)) {
                        Reclaimed::Progress => {}
                        Reclaimed::Nothing => return Outcome::Retry,
                        Reclaimed::Full => return Outcome::Full,
                    }
                }
            }
        }
        Outcome::Retry
    }

    fn fault_step(&self, page: Vpn, help: &dyn Fn(), wish: Wish) -> Step {
        let gate = self.gate();
        let block = self.table.block(page.block());
        let mut states = block.lock();
        match states.get(page.index()) {
            PageState::None => self.first_touch(&mut states, page),
            PageState::System { .. } => self.found_missing(&mut states, page),
            PageState::Fetching { .. } | PageState::Dropped { .. } => {
                self.record(What::Waited, page, PageRange::new(page, 1), 0);
                Step::Ended(Outcome::Parked)
            }
            PageState::Staged { .. } => self.second_chance(&mut states, page),
            PageState::Storing { slot } if self.notifiers.is_watched() => {
                drop(states);
                drop(gate);
                self.take_from_migration(page, slot)
            }
            PageState::Storing { slot } => self.copy_from_store(&mut states, page, slot),
            PageState::Device { frame } => {
                if self.registry.is_coherent(frame.device) {
                    match self.map_page(&mut states, page) {
                        None => return Step::Ended(Outcome::Done),
                        Some(Stop::Exists) => {
                            drop(states);
                            self.replaced_frame(page);
                            return Step::Ended(Outcome::Done);
                        }
                        // A read-only mapping takes no page of another one, but copies.
                        Some(Stop::Unsuited) => {}
                        Some(stop) => return Step::Ended(self.stopped(page, stop)),
                    }
                }
                let pass = match self.flights.begin(frame.device) {
                    Ok(pass) => pass,
                    Err(Grounded::Busy) => return Step::Ended(Outcome::Retry),
                    Err(Grounded::Hopeless) => {
                        self.lose(&mut states, page, frame);
                        return self.poison_page(page);
                    }
                };
                let fetch = match self.plan_fetch(&mut states, page, frame, wish) {
                    Ok(fetch) => fetch,
                    Err(step) => return step,
                };
                drop(states);
                drop(gate);
                if fetch.range().nr_pages() > 1 && self.wants_read_ahead() {
                    help();
                }
                self.run_fetch(fetch, pass)
            }
            PageState::Coherent { .. } => {
                drop(states);
                self.found_frame_missing(page)
            }
            PageState::Exclusive { .. } => {
                drop(states);
                drop(gate);
                self.revoke(PageRange::new(page, 1));
                Step::Again
            }
            PageState::Poisoned => self.poison_page(page),
        }
    }

    /// Asks the policy what a fault brings.
    pub(crate) fn brings(&self, page: Vpn, cause: policy::Cause, hit: Hit, together: usize) -> Brings {
        self.policy.brings(&Fault { page, cause, hit, together })
    }

    /// A hole that was never touched: a run of zeroes.
    fn first_touch(&self, states: &mut States, page: Vpn) -> Step {
        let extent = self.kernel.extent(page);
        if extent.is_empty() {
            return Step::Ended(Outcome::Unmanaged);
        }
        let together = self.config.first_touch_pages;
        let hit = self.streams.fault(page, together);
        let brings = self.brings(page, policy::Cause::FirstTouch, hit, together as usize);
        let within = extent.start.index()..extent.start.index() + range_len(extent).min(BLOCK_PAGES);
        let is_hole = |state| state == PageState::None;
        // Where nothing is bounded, no more is touched than the program touches.
        let window = if self.config.zero_page { 1 } else { brings.window };
        let (lowest, most) = Brings { window, ..brings }.span_of_holes(page.index(), hit.stride);
        let mut first = page.index();
        while first > lowest.max(within.start) && is_hole(states.get(first - 1)) {
            first -= 1;
        }
        let nr_pages = states.run_while(first, &within, is_hole).min(page.index() - first + most);
        let range = PageRange::new(page.block().page(first), nr_pages as u64);
        let step = self.zero(states, page, range);
        self.note_resident(page.block(), states);
        self.streams.expect(hit, range, hit.stride.behind(range));
        step
    }

    /// Zeroes as much of the range as there is memory for, `page` among it: of fresh memory, or of stock if that gives more.
    fn zero(&self, states: &mut States, page: Vpn, range: PageRange) -> Step {
        let free = usize::try_from(self.kernel.ledger().free()).unwrap_or(usize::MAX);
        let cleared = range.cut_around(page, MAX_CLEAR);
        let take_stock = || self.staging.take_stock(range_len(cleared));
        let gives_more = free < range_len(cleared) && self.staging.nr_stock() > free;
        let stock = gives_more.then(take_stock).flatten();
        if stock.is_none() {
            let range = range.cut_around(page, free.max(1));
            let nr_pages = range_len(range);
            if self.try_charge(nr_pages) {
                let progress = self.kernel.zero_home(range);
                self.uncharge(nr_pages - progress.done);
                return self.zeroed(states, page, range, progress.done, progress.stop);
            }
        }
        match stock.or_else(take_stock) {
            Some(run) => self.zero_stock(states, page, cleared, run),
            None => Step::NeedMemory,
        }
    }

    /// Clears stock, and gives it to the range's pages, as far as it goes.
    fn zero_stock(&self, states: &mut States, page: Vpn, range: PageRange, run: SlotRun) -> Step {
        let range = range.cut_around(page, run.len);
        let used = SlotRun { start: run.start, len: range_len(range) };
        self.kernel.with_slots_mut(used, &mut |bytes| bytes.fill(0));
        let mapped = self.give_home(self.config.home_by, used, range);
        self.staging.put(SlotRun { start: run.start, len: mapped.done }, mapped.left);
        let rest = SlotRun { start: run.start.add(mapped.done), len: run.len - mapped.done };
        self.staging.put(rest, Left::Memory);
        self.zeroed(states, page, range, mapped.done, mapped.stop)
    }

    fn zeroed(
        &self,
        states: &mut States,
        page: Vpn,
        range: PageRange,
        done: usize,
        stop: Option<Stop>,
    ) -> Step {
        for index in range.start.index()..range.start.index() + done {
            states.set(index, PageState::System { copy: None });
        }
        self.stats().pgzero.fetch_add(done as u64, Ordering::Relaxed);
        let reached = range.start.add(done as u64);
        if page < reached {
            self.record(What::FirstTouch, page, PageRange::new(range.start, done as u64), 0);
            return Step::Ended(Outcome::Done);
        }
        match stop {
            Some(Stop::Exists) => {
                // Memory that is about to go, or to be adopted: not ours to take.
                if reached == page {
                    self.kernel.wake(PageRange::new(page, 1));
                    return Step::Ended(Outcome::Done);
                }
                self.zero(states, page, PageRange::new(page, 1))
            }
            Some(Stop::NoMemory) => Step::NeedMemory,
            Some(stop) => Step::Ended(self.stopped(page, stop)),
            None => Step::Again,
        }
    }

    /// The kernel misses a page that we think is mapped: the fault is an old one, or the page was given up in a way that
    /// sends no event. In either case a zero-filled page is right, if there is none.
    fn found_missing(&self, states: &mut States, page: Vpn) -> Step {
        let range = PageRange::new(page, 1);
        let progress = self.kernel.zero_home(range);
        match progress.stop {
            None => {
                if let PageState::System { copy: Some(frame) } = states.get(page.index()) {
                    states.set(page.index(), PageState::System { copy: None });
                    self.free_frame(frame);
                }
                self.stats().pgzero.fetch_add(1, Ordering::Relaxed);
                Step::Ended(Outcome::Done)
            }
            Some(Stop::Exists) => {
                self.kernel.wake(range);
                Step::Ended(Outcome::Done)
            }
            Some(stop) => Step::Ended(self.stopped(page, stop)),
        }
    }

    /// The page waits in staging: it goes back, and with it those that wait in the same [`CHANCE_PAGES`], or as many as its
    /// stream says. They are in memory in any case; every fault that they save is a thread's sleep and its waking.
    fn second_chance(&self, states: &mut States, page: Vpn) -> Step {
        let PageState::Staged { slot, .. } = states.get(page.index()) else { return Step::Again };
        let hit = self.streams.fault(page, 1);
        let brings = self.brings(page, policy::Cause::SecondChance, hit, CHANCE_PAGES);
        let block = page.block();
        // Where it may begin, and how many pages may come from `page` on.
        let (first, window) = if self.staging.is_huge(slot.bay()) && slot.index() == page.index() {
            (0, BLOCK_PAGES)
        } else {
            // Where nothing is bounded, pages wait because a device had them to itself: one touch ends that of one.
            let alone = Brings { around: 1, window: 1 };
            if self.config.zero_page { alone } else { brings }.span(page.index(), hit.stride)
        };
        // Slots in the order of the pages: the page at `index` in the slot as far from `slot` as it is from `page`.
        let in_order = |index: usize| match states.get(index) {
            PageState::Staged { slot: at, .. } => {
                at.bay() == slot.bay() && at.index() + page.index() == slot.index() + index
            }
            PageState::None
            | PageState::System { .. }
            | PageState::Fetching { .. }
            | PageState::Dropped { .. }
            | PageState::Storing { .. }
            | PageState::Device { .. }
            | PageState::Coherent { .. }
            | PageState::Exclusive { .. }
            | PageState::Poisoned => false,
        };
        let extent = self.kernel.extent(page);
        let known = if extent.is_empty() { page.index() } else { extent.start.index() };
        let start = (first.max(known)..page.index())
            .rev()
            .take_while(|index| in_order(*index))
            .last()
            .unwrap_or(page.index());
        let first_slot = slot.bay().slot(slot.index() - (page.index() - start));
        let last = extent.end.0.clamp(page.0 + 1, page.block().pages().end.0);
        let last = page.index() + usize::try_from(last - page.0).unwrap_or(1);
        let nr_pages = (start..last).take_while(|index| in_order(*index)).count();
        let nr_pages = nr_pages.min(page.index() - start + window);
        let run = SlotRun { start: first_slot, len: nr_pages };
        let range = PageRange::new(block.page(start), nr_pages as u64);
        let mapped = self.give_home(self.way_home(Some(hit)), run, range);
        for index in start..start + mapped.done {
            let PageState::Staged { copy, .. } = states.get(index) else { continue };
            states.set(index, PageState::System { copy });
        }
        self.staging.unstage(SlotRun { start: run.start, len: mapped.done }, mapped.left);
        self.stats().refault.fetch_add(mapped.done as u64, Ordering::Relaxed);
        self.note_resident(block, states);
        states.past.note(hit);
        self.stream_on(states, hit, PageRange::new(range.start, mapped.done as u64));
        if page < range.start.add(mapped.done as u64) {
            self.record(
                What::SecondChance,
                page,
                PageRange::new(range.start, mapped.done as u64),
                in_stream(hit),
            );
            return Step::Ended(Outcome::Done);
        }
        match mapped.stop {
            Some(_) if mapped.done > 0 => Step::Again,
            Some(Stop::Exists) => self.replaced(states, page, slot),
            Some(Stop::NoMemory) => Step::NeedMemory,
            Some(stop) => Step::Ended(self.stopped(page, stop)),
            None => Step::Again,
        }
    }

    /// A staged page found its place taken by a page that we know nothing of: what the program maps is the truth.
    fn replaced(&self, states: &mut States, page: Vpn, slot: Slot) -> Step {
        if let PageState::Staged { copy, .. } = states.get(page.index()) {
            states.set(page.index(), PageState::System { copy });
            self.staging.unstage(SlotRun { start: slot, len: 1 }, Left::Memory);
            self.charge_found(1);
        }
        self.kernel.wake(PageRange::new(page, 1));
        Step::Ended(Outcome::Done)
    }

    /// The page is being migrated, perhaps by a driver, which was not told of what is its own and may have a copy until setup
    /// returns. The CPU may write to the page when it is home: so that driver is told as well, first.
    fn take_from_migration(&self, page: Vpn, slot: Slot) -> Step {
        let range = PageRange::new(page, 1);
        let _change = self.notifiers.invalidate(Change { range, cause: Cause::Clear, owner: None });
        let _gate = self.gate();
        let block = self.table.block(page.block());
        let mut states = block.lock();
        if states.get(page.index()) == (PageState::Storing { slot }) {
            return self.copy_from_store(&mut states, page, slot);
        }
        Step::Again
    }

    /// The page is being read by a store: it comes home as a copy, and the store will find that out.
    fn copy_from_store(&self, states: &mut States, page: Vpn, slot: Slot) -> Step {
        if !self.charge_for_copy(1) {
            return Step::NeedMemory;
        }
        let range = PageRange::new(page, 1);
        let progress = self.kernel.copy_home(slot, range);
        match progress.stop {
            None => {
                states.set(page.index(), PageState::System { copy: None });
                self.note_resident(page.block(), states);
                self.stats().refault.fetch_add(1, Ordering::Relaxed);
                self.record(What::Copied, page, range, 0);
                Step::Ended(Outcome::Done)
            }
            Some(Stop::Exists) => {
                states.set(page.index(), PageState::System { copy: None });
                self.note_resident(page.block(), states);
                self.kernel.wake(range);
                Step::Ended(Outcome::Done)
            }
            Some(stop) => {
                self.uncharge(1);
                Step::Ended(self.stopped(page, stop))
            }
        }
    }

    pub(crate) fn poison_page(&self, page: Vpn) -> Step {
        let range = PageRange::new(page, 1);
        let progress = self.kernel.poison(range);
        match progress.stop {
            None | Some(Stop::Exists) => {
                self.kernel.wake(range);
                Step::Ended(Outcome::Done)
            }
            Some(stop) => Step::Ended(self.stopped(page, stop)),
        }
    }

    /// How pages come home that a fault asked for. A stray comes by copy: few pages cost less than a flush of other CPUs'
    /// TLBs, which in a virtual machine may have to wake them. What leaves in its place leaves a block at a time, with one
    /// flush for each run of pages.
    pub(crate) fn way_home(&self, hit: Option<Hit>) -> HomeBy {
        let is_stray = hit.is_some_and(|hit| !hit.is_sequential());
        if is_stray { HomeBy::Copy } else { self.config.home_by }
    }

    /// Gives the pages in slots to the program, by move or by copy, as is wanted and possible: copies need memory, moves a
    /// writable mapping, and slots that nobody else holds.
    pub(crate) fn give_home(&self, by: HomeBy, run: SlotRun, range: PageRange) -> Mapped {
        let copy = || {
            // As many as there is memory for: a run that needs all of it would be asked for again and again.
            let mut len = run.len;
            while len > 0 && !self.charge_for_copy(len) {
                len /= 2;
            }
            if len == 0 {
                return Mapped { done: 0, stop: Some(Stop::NoMemory), left: Left::Memory };
            }
            let progress = self.kernel.copy_home(run.start, PageRange::new(range.start, len as u64));
            self.uncharge(len - progress.done);
            let cut_off = (len < run.len).then_some(Stop::NoMemory);
            Mapped { done: progress.done, stop: progress.stop.or(cut_off), left: Left::Memory }
        };
        // Copies are small pages.
        let is_huge = run.len == BLOCK_PAGES && self.staging.is_huge(run.start.bay());
        if by == HomeBy::Copy && !is_huge {
            let mapped = copy();
            if mapped.done > 0 || mapped.stop != Some(Stop::NoMemory) {
                return mapped;
            }
        }
        let progress = self.kernel.move_home(run.start, range);
        // Pages that were read by direct I/O are busy for a moment more when the read has ended.
        if progress.done == 0 && matches!(progress.stop, Some(Stop::Unsuited | Stop::Busy)) {
            return copy();
        }
        Mapped { done: progress.done, stop: progress.stop, left: Left::Nothing }
    }

    /// As [`give_home`](Self::give_home), with write protection. `None`: there is no memory for that, or not here.
    pub(crate) fn give_home_protected(&self, run: SlotRun, range: PageRange) -> Option<Mapped> {
        if !self.charge_for_copy(run.len) {
            return None;
        }
        let progress = self.kernel.copy_home_protected(run.start, range);
        self.uncharge(run.len - progress.done);
        let is_refused = progress.done == 0 && matches!(progress.stop, Some(Stop::Unsuited | Stop::NoMemory));
        (!is_refused).then_some(Mapped { done: progress.done, stop: progress.stop, left: Left::Memory })
    }

    /// What a fault comes to when the kernel stops in front of its page.
    pub(crate) fn stopped(&self, page: Vpn, stop: Stop) -> Outcome {
        match stop {
            Stop::Changing | Stop::NoMemory | Stop::Busy | Stop::Absent => Outcome::Retry,
            Stop::Unsuited => Outcome::Unmanaged,
            Stop::Exists => {
                self.kernel.wake(PageRange::new(page, 1));
                Outcome::Done
            }
            Stop::Gone => Outcome::Done,
        }
    }

    pub(crate) fn forget_frame(&self, frame: Frame) {
        self.sub_away(1);
        self.free_frame(frame);
    }
}

/// What is said of a touch besides.
pub(crate) const fn in_stream(hit: Hit) -> u8 {
    if hit.is_sequential() { IN_STREAM } else { 0 }
}

fn range_len(range: PageRange) -> usize {
    usize::try_from(range.nr_pages()).unwrap_or(usize::MAX)
}
