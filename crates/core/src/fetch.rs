//! The way home from a device: plan under the block's lock, transfer without it, complete under it again.
//!
//! Between plan and completion the pages are `Fetching` with a ticket. Faults on them park. Events may turn them into
//! `Dropped` or move them to other addresses ([`Moved`]); the completion, and only it, ends every page of its ticket.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use hmm_device::{Device, DeviceError, DevicePfn, Fetch as Request, Transfer};

use crate::addr::{PAGE_SIZE, PageRange, SlotRun, Vpn};
use crate::engine::{Engine, HomeBy};
use crate::fault::{Outcome, Step, in_stream};
use crate::flights::{Awaited, Pass};
use crate::kernel::{Kernel, Stop};
use crate::notifier::{Cause, Change};
use crate::policy;
use crate::registry::Held;
use crate::staging::Left;
use crate::state::{Frame, PageState, Ticket};
use crate::stream::Hit;
use crate::stride::Stride;
use crate::table::States;
use crate::thrift::Wish;
use crate::trace::What;

/// Pages of one transfer at most. Each ends with a flush of the other CPUs' TLBs, which takes as long as some pages do.
pub const FETCH_PAGES: usize = 128;
/// Pages of a transfer with one that was asked for: bounds how long that waits for the others.
pub(crate) const DEMAND_PAGES: usize = 32;
/// A transfer of so many pages is not made of a few at a time, if there may be memory for more of them soon.
const SCARCE_PAGES: usize = 16;
/// Tries of a transfer that fails with [`DeviceError::Io`].
const IO_TRIES: usize = 3;

/// A page that the program moved while it was being fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) ticket: Ticket,
    pub(crate) from: Vpn,
    pub(crate) to: Vpn,
}

/// What the fetched pages are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A fault at the first page.
    Fault,
    /// Read-ahead.
    Ahead {
        /// This page stays in staging, so that touching it shows how far the program is.
        trigger: Option<Vpn>,
    },
}

/// A planned transfer: pages marked `Fetching`, slots lent.
#[derive(Debug)]
#[must_use = "pages are marked and slots lent until the fetch is run"]
pub(crate) struct Fetch {
    ticket: Ticket,
    device: u8,
    first: Vpn,
    frames: [DevicePfn; FETCH_PAGES],
    slots: SlotRun,
    purpose: Purpose,
    /// What the streams say of the fault.
    hit: Option<Hit>,
}

impl Fetch {
    pub(crate) fn range(&self) -> PageRange {
        PageRange::new(self.first, self.slots.len as u64)
    }

    fn trigger(&self) -> Option<Vpn> {
        match self.purpose {
            Purpose::Fault => None,
            Purpose::Ahead { trigger } => trigger,
        }
    }

    fn slot_of(&self, page: Vpn) -> crate::addr::Slot {
        self.slots.start.add(page.index() - self.first.index())
    }
}

impl<K: Kernel> Engine<K> {
    /// Plans what a fault at `page` brings, or says what has to be done before.
    pub(crate) fn plan_fetch(
        &self,
        states: &mut States,
        page: Vpn,
        frame: Frame,
        wish: Wish,
    ) -> Result<Fetch, Step> {
        let past = states.past;
        let hit = self.streams.fault(page, 1);
        let hit = states.past.foresee(&self.streams, page, hit, self.config.ahead_pages());
        let brings = self.brings(page, policy::Cause::Fetch, hit, 1);
        let window = match self.registry.get(frame.device) {
            Some(Held::Driver(member)) => {
                // Its driver brought the pages there on purpose: what stays there costs nothing.
                brings.window.min(member.device.caps().preferred_run_pages as usize)
            }
            Some(Held::Tier(_)) | None => brings.window,
        };
        // The page is the first of those that come with it; what is in front of it comes next, where that is wanted.
        let window = if hit.stride == Stride::UP && !matches!(wish, Wish::Alone | Wish::Copied) {
            self.config.demand_pages(window)
        } else {
            1
        };
        let plan = ((page, Stride::UP), frame.device, window);
        let mut fetch = match self.mark(states, plan, Purpose::Fault, wish) {
            Ok(fetch) => fetch,
            Err(lacks) => {
                // The same fault is planned once more.
                states.past = past;
                return Err(lacks);
            }
        };
        fetch.hit = Some(hit);
        self.stream_on(states, hit, fetch.range());
        self.stats().pgmajfault.fetch_add(1, Ordering::Relaxed);
        Ok(fetch)
    }

    /// Marks up to `window` pages that are on the device, from `page` on as the stride goes.
    pub(crate) fn mark(
        &self,
        states: &mut States,
        ((page, stride), device, window): ((Vpn, Stride), u8, usize),
        purpose: Purpose,
        wish: Wish,
    ) -> Result<Fetch, Step> {
        let run = self.run_on_device(states, (page, stride), device, window.min(FETCH_PAGES));
        let want = usize::try_from(run.nr_pages()).unwrap_or(1);
        if wish == Wish::Copied && self.free_pages() < 2 {
            return Err(Step::NeedMemory);
        }
        let (slots, left) = self.take_slots_of(want).ok_or(Step::NeedMemory)?;
        // Reclaim has not come as far as it will: what it makes free lies side by side.
        let is_scarce = want >= SCARCE_PAGES
            && slots.len < want / 4
            && self.free_pages() + (slots.len as u64) < self.config.high_pages;
        if wish == Wish::Much && is_scarce {
            self.put_slots_back(slots, left);
            return Err(Step::Scarce);
        }
        let first = if stride == Stride::DOWN { Vpn(run.end.0 - slots.len as u64) } else { run.start };
        let ticket = self.new_ticket();
        let mut frames = [DevicePfn::default(); FETCH_PAGES];
        for (offset, pfn) in frames.iter_mut().enumerate().take(slots.len) {
            let index = first.index() + offset;
            let PageState::Device { frame } = states.get(index) else { continue };
            *pfn = frame.pfn;
            states.set(index, PageState::Fetching { ticket, frame });
        }
        Ok(Fetch { ticket, device, first, frames, slots, purpose, hit: None })
    }

    /// The run of pages on the device that begins at a page, or ends with it if the stride goes down.
    fn run_on_device(
        &self,
        states: &States,
        (page, stride): (Vpn, Stride),
        device: u8,
        most: usize,
    ) -> PageRange {
        // Not over the border of the mapping: what is behind it cannot be mapped in the same call.
        let pages = self.kernel.extent(page).intersect(page.block().pages());
        let on_device = |page: &Vpn| matches!(states.get(page.index()), PageState::Device { frame } if frame.device == device);
        let others = most.saturating_sub(1);
        let alone = PageRange::new(page, 1);
        match stride {
            Stride::UP => {
                let behind = (page.0 + 1..pages.end.0).map(Vpn).take(others).take_while(on_device).count();
                PageRange { end: alone.end.add(behind as u64), ..alone }
            }
            Stride::DOWN => {
                let before =
                    (pages.start.0..page.0).rev().map(Vpn).take(others).take_while(on_device).count();
                PageRange { start: Vpn(page.0 - before as u64), ..alone }
            }
            _ => alone,
        }
    }

    /// Transfers and completes.
    pub(crate) fn run_fetch(&self, fetch: Fetch, pass: Pass<'_>) -> Step {
        let asked_for = (fetch.purpose == Purpose::Fault).then_some(fetch.frames[0]);
        pass.is_awaited(Awaited::Pages { ticket: fetch.ticket, range: fetch.range(), asked_for });
        let transfer = self.transfer(&fetch, &pass);
        if !pass.land() {
            // Nobody waits for it any more, and the pages are not ours.
            self.staging.put(fetch.slots, Left::Memory);
            return Step::Ended(Outcome::Done);
        }
        let gate = self.gate();
        let block = self.table.block(fetch.first.block());
        let mut states = block.lock();
        let reached = self.complete(&mut states, &fetch, transfer);
        self.note_resident(fetch.first.block(), &mut states);
        let step = match reached {
            Ok(end) if end > fetch.first => Step::Ended(Outcome::Done),
            Ok(_) => Step::Again,
            Err(Stop::NoMemory) => Step::NeedSecond,
            Err(stop) => Step::Ended(self.stopped(fetch.first, stop)),
        };
        drop(states);
        self.end_moved(fetch.ticket);
        drop(gate);
        step
    }

    fn transfer(&self, fetch: &Fetch, pass: &Pass<'_>) -> Transfer {
        let Some(device) = self.registry.get(fetch.device) else {
            return Transfer::stopped(0, DeviceError::Lost);
        };
        if let Held::Driver(_) = device {
            // The device may have mapped its frames, and its driver takes no part in this: so it is not told as of a
            // migration of its own. From here on the pages are nobody's to map; the change is made.
            let change = Change { range: fetch.range(), cause: Cause::Clear, owner: None };
            drop(self.notifiers.invalidate(change));
        }
        transfer_home(&self.kernel, &*device, pass, &fetch.frames[..fetch.slots.len], fetch.slots)
    }

    /// Maps what was fetched, puts back what was not. Returns the end of the pages that need no more care, or why the
    /// first page is not there.
    fn complete(&self, states: &mut States, fetch: &Fetch, transfer: Transfer) -> Result<Vpn, Stop> {
        let fetched = PageRange::new(fetch.first, transfer.done as u64);
        let mut reached = fetch.first;
        let mut failed = None;
        let mut page = fetch.first;
        let trigger = fetch.trigger();
        while page < fetched.end && failed.is_none() {
            if trigger == Some(page) {
                self.leave_staged(states, fetch, page);
                page = page.add(1);
                continue;
            }
            let end = trigger.filter(|trigger| page < *trigger).unwrap_or(fetched.end).min(fetched.end);
            let run = self.own_run(states, fetch, PageRange { start: page, end });
            if run.is_empty() {
                // Not ours any more: given up or moved by the program.
                self.end_page(states, fetch, page, Left::Memory);
                // Who waited for it looks again.
                self.kernel.wake(PageRange::new(page, 1));
                page = page.add(1);
                continue;
            }
            match self.map_run(states, fetch, run) {
                (end, None) => page = end,
                (end, stop) => {
                    page = end;
                    failed = stop;
                }
            }
            reached = page;
        }
        self.count(fetch, fetch.first, page);
        if page == fetched.end && failed.is_none() {
            failed = self.fail_page(states, fetch, page, transfer.stop).err();
            if transfer.stop.is_some()
                && failed.is_none()
                && fetch.purpose == Purpose::Fault
                && page == fetch.first
            {
                reached = reached.max(page.add(1));
            }
        }
        self.revert(states, fetch, PageRange { start: page, end: fetch.range().end }, failed);
        failed.filter(|_| reached == fetch.first).map_or(Ok(reached), Err)
    }

    fn count(&self, fetch: &Fetch, first: Vpn, end: Vpn) {
        let counter = match fetch.purpose {
            Purpose::Fault => &self.stats().pgfetch,
            Purpose::Ahead { .. } => &self.stats().pgprefetch,
        };
        counter.fetch_add(end.0 - first.0, Ordering::Relaxed);
        let (what, stream) = match fetch.purpose {
            Purpose::Fault => (What::Fetch, fetch.hit.map_or(0, in_stream)),
            Purpose::Ahead { .. } => (What::Ahead, 0),
        };
        if first < end {
            self.record(what, first, PageRange { start: first, end }, fetch.device | stream);
        }
    }

    /// The pages from the front of `range` that are still this fetch's.
    fn own_run(&self, states: &States, fetch: &Fetch, range: PageRange) -> PageRange {
        let ours = |page: &Vpn| {
            let pfn = fetch.frames[page.index() - fetch.first.index()];
            is_fetched_by(fetch.ticket, pfn, states.get(page.index()))
        };
        PageRange::new(range.start, range.iter().take_while(ours).count() as u64)
    }

    /// Maps a run of fetched pages. Returns how far it came, and why not further.
    fn map_run(&self, states: &mut States, fetch: &Fetch, run: PageRange) -> (Vpn, Option<Stop>) {
        let slots = SlotRun { start: fetch.slot_of(run.start), len: run.end.index_after(run.start) };
        // A page alone comes by copy, of whatever stream: see `way_home`.
        let way = if slots.len == 1 { HomeBy::Copy } else { self.way_home(fetch.hit) };
        let mapped = self.give_home(way, slots, run);
        let may_keep = self.keeps_copy(fetch.device);
        states.came_home |= mapped.done > 0;
        let mut gone = [DevicePfn::default(); FETCH_PAGES];
        let mut nr_gone = 0;
        for page in PageRange::new(run.start, mapped.done as u64).iter() {
            let PageState::Fetching { frame, .. } = states.get(page.index()) else { continue };
            let keep = may_keep && self.is_worth_keeping(frame);
            states.set(page.index(), PageState::System { copy: keep.then_some(frame) });
            if !keep {
                gone[nr_gone] = frame.pfn;
                nr_gone += 1;
            }
        }
        if nr_gone < mapped.done {
            self.record(What::Kept, run.start, PageRange::new(run.start, mapped.done as u64), fetch.device);
        }
        self.free_frames(fetch.device, &gone[..nr_gone]);
        self.sub_away(mapped.done);
        self.staging.put(SlotRun { start: slots.start, len: mapped.done }, mapped.left);
        let end = run.start.add(mapped.done as u64);
        if end < run.end && mapped.stop == Some(Stop::Exists) {
            // The program has a page there that we know nothing of; what it maps is the truth.
            if let PageState::Fetching { frame, .. } = states.get(end.index()) {
                states.set(end.index(), PageState::System { copy: None });
                self.forget_frame(frame);
                self.charge_found(1);
                self.staging.put(SlotRun { start: fetch.slot_of(end), len: 1 }, Left::Memory);
                self.kernel.wake(PageRange::new(end, 1));
            }
            return (end.add(1), None);
        }
        (end, mapped.stop)
    }

    /// Leaves a page in staging.
    fn leave_staged(&self, states: &mut States, fetch: &Fetch, page: Vpn) {
        if self.own_run(states, fetch, PageRange::new(page, 1)).is_empty() {
            self.end_page(states, fetch, page, Left::Memory);
            self.kernel.wake(PageRange::new(page, 1));
            return;
        }
        let PageState::Fetching { frame, .. } = states.get(page.index()) else { return };
        let slot = fetch.slot_of(page);
        let copy = if self.keeps_frame(frame) {
            Some(frame)
        } else {
            self.free_frame(frame);
            None
        };
        self.sub_away(1);
        states.set(page.index(), PageState::Staged { slot, copy });
        self.staging.stage(slot, page);
        // Whoever came here meanwhile has parked: it faults again and finds the page staged.
        self.kernel.wake(PageRange::new(page, 1));
    }

    /// The device failed at `page`: poison it if a fault asked for it; read-ahead leaves that to the fault to come.
    fn fail_page(
        &self,
        states: &mut States,
        fetch: &Fetch,
        page: Vpn,
        error: Option<DeviceError>,
    ) -> Result<(), Stop> {
        let asked_for = fetch.purpose == Purpose::Fault && page == fetch.first;
        let Some(error) = error.filter(|_| asked_for) else { return Ok(()) };
        if self.own_run(states, fetch, PageRange::new(page, 1)).is_empty() {
            return Ok(());
        }
        // Before the program can notice, which may be its end.
        self.tell_failure(fetch.device, error);
        let progress = self.kernel.poison(PageRange::new(page, 1));
        if let Some(stop) = progress.stop {
            return Err(stop);
        }
        let PageState::Fetching { frame, .. } = states.get(page.index()) else { return Ok(()) };
        self.lose(states, page, frame);
        Ok(())
    }

    /// Tells of a tier's failure; what a driver's device does is its driver's to tell.
    pub(crate) fn tell_failure(&self, device: u8, why: DeviceError) {
        if usize::from(device) < self.devices().len() {
            self.kernel.device_failed(device, why);
        }
    }

    /// Pages that were not mapped are on the device as before.
    fn revert(&self, states: &mut States, fetch: &Fetch, range: PageRange, why: Option<Stop>) {
        for page in range.iter() {
            self.end_page(states, fetch, page, Left::Memory);
        }
        if range.is_empty() {
            return;
        }
        if why == Some(Stop::Changing) {
            self.kernel.wake_later(range);
        } else {
            self.kernel.wake(range);
        }
    }

    /// Ends this fetch's hold on one page that it did not map, and on its slot.
    fn end_page(&self, states: &mut States, fetch: &Fetch, page: Vpn, left: Left) {
        self.end_state(states, fetch.ticket, page);
        self.staging.put(SlotRun { start: fetch.slot_of(page), len: 1 }, left);
    }

    pub(crate) fn end_state(&self, states: &mut States, ours: Ticket, page: Vpn) {
        match states.get(page.index()) {
            PageState::Fetching { ticket, frame } if ticket == ours => {
                states.set(page.index(), PageState::Device { frame });
            }
            PageState::Dropped { ticket, frame } if ticket == ours => {
                states.set(page.index(), PageState::None);
                self.forget_frame(frame);
            }
            // Another's, or nobody's any more.
            PageState::Fetching { .. }
            | PageState::Dropped { .. }
            | PageState::None
            | PageState::System { .. }
            | PageState::Staged { .. }
            | PageState::Storing { .. }
            | PageState::Device { .. }
            | PageState::Coherent { .. }
            | PageState::Exclusive { .. }
            | PageState::Poisoned => {}
        }
    }

    /// Ends the hold on pages that moved away meanwhile, one block at a time. The caller holds the gate, so they do not
    /// move on, but no block.
    pub(crate) fn end_moved(&self, ticket: Ticket) {
        self.orphans.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, frame)| {
            if *of == ticket {
                self.forget_frame(*frame);
            }
            *of != ticket
        });
        while let Some(page) = self.take_moved(ticket) {
            self.end_state(&mut self.table.block(page.block()).lock(), ticket, page);
            self.kernel.wake(PageRange::new(page, 1));
        }
    }

    fn take_moved(&self, ticket: Ticket) -> Option<Vpn> {
        let mut moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = moved.iter().position(|moved| moved.ticket == ticket)?;
        Some(moved.swap_remove(mine).to)
    }
}

/// Has a device fill slots from frames; what fails for the moment is tried again.
pub(crate) fn transfer_home(
    kernel: &impl Kernel,
    device: &dyn Device,
    pass: &Pass<'_>,
    frames: &[DevicePfn],
    slots: SlotRun,
) -> Transfer {
    let mut transfer = Transfer::complete(0);
    for _ in 0..IO_TRIES {
        let done = transfer.done;
        let rest = SlotRun { start: slots.start.add(done), len: slots.len - done };
        kernel.with_slots_mut(rest, &mut |bytes| {
            debug_assert_eq!(bytes.len(), rest.len * PAGE_SIZE, "slots are pages");
            let more = device.fetch(Request { frames: &frames[done..], bytes });
            transfer = Transfer { done: done + more.done, stop: more.stop };
        });
        // What came is not put at risk by another call that may not return.
        let is_risky = pass.may_be_overdue() && (transfer.done > 0 || pass.is_overdue());
        if transfer.stop != Some(DeviceError::Io) || is_risky {
            break;
        }
    }
    transfer
}

/// Whether the page is still the one that a fetch marked, which comes from that frame: the program may have moved another page of
/// the same fetch to its place, whose bytes are in another slot.
pub(crate) fn is_fetched_by(ours: Ticket, from: DevicePfn, state: PageState) -> bool {
    matches!(state, PageState::Fetching { ticket, frame } if ticket == ours && frame.pfn == from)
}

impl Vpn {
    /// Pages from `start` to here, both in one block.
    fn index_after(self, start: Self) -> usize {
        usize::try_from(self.0 - start.0).unwrap_or(0)
    }
}
