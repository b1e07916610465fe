//! Fault and migrate in one walk: pages that are away elsewhere are fetched where a migration collects them from.
//!
//! Without [`Select::FAULT`](crate::driver::Select::FAULT) a driver first faults a range in, page by page into the program,
//! and then takes the pages out again. With it a page that is on a tier, or on another driver's device, comes into
//! staging and no further: it is `Fetching` until then, so that whoever touches it waits for no longer than a fault
//! takes, and `Storing` from then on, like what was collected of system memory. If the migration is dropped the page goes
//! to the program, as a fault would have brought it.

use hmm_device::DevicePfn;

use crate::addr::{BLOCK_PAGES, PageRange, SlotRun};
use crate::driver::{Collected, Migration, Skip, Source};
use crate::fetch::transfer_home;
use crate::kernel::Kernel;
use crate::staging::Left;
use crate::state::{Frame, PageState};

impl<K: Kernel> Migration<'_, K, Collected> {
    /// Brings the pages of entries that were marked as being elsewhere. Every driver has let go of their frames. What cannot
    /// be brought stays where it is.
    pub(super) fn bring(&mut self) {
        let mut first = 0;
        while first < self.entries.len() {
            match self.elsewhere(first) {
                None => first += 1,
                Some((device, mut end)) => {
                    let slots = self.take_slots(end - first);
                    end = first + slots.map_or(end - first, |run| run.len);
                    self.bring_run(device, first..end, slots);
                    first = end;
                }
            }
        }
    }

    /// The device that entry `first` is brought from, and the end of the run from there on that comes from it, too.
    fn elsewhere(&self, first: usize) -> Option<(u8, usize)> {
        let head = &self.entries[first];
        let device = head.from?.device;
        let belongs = |at: &usize| {
            let entry = &self.entries[*at];
            entry.page.block() == head.page.block() && entry.from.is_some_and(|frame| frame.device == device)
        };
        let most = self.entries.len().min(first + BLOCK_PAGES);
        Some((device, (first + 1..most).find(|at| !belongs(at)).unwrap_or(most)))
    }

    fn bring_run(&mut self, number: u8, run: std::ops::Range<usize>, slots: Option<SlotRun>) {
        let engine = self.engine;
        let mut frames = [DevicePfn::default(); BLOCK_PAGES];
        for (pfn, entry) in frames.iter_mut().zip(&self.entries[run.clone()]) {
            *pfn = entry.from.map_or(DevicePfn::default(), |frame| frame.pfn);
        }
        let done = slots.map_or(0, |slots| engine.fill_slots(number, &frames[..slots.len], slots));
        let Some(head) = self.entries.get(run.start).copied() else { return };
        let gate = engine.gate();
        let mut states = engine.table.block(head.page.block()).lock();
        for (offset, entry) in self.entries[run.clone()].iter_mut().enumerate() {
            let Some(from) = entry.from.take() else { continue };
            // The program may have moved another page here that this migration brings, too, and has not read yet.
            let (is_ours, was_dropped) = match states.get(entry.page.index()) {
                PageState::Fetching { ticket, frame } => (ticket == self.ticket && frame == from, false),
                PageState::Dropped { ticket, frame } => (false, ticket == self.ticket && frame == from),
                PageState::None
                | PageState::System { .. }
                | PageState::Staged { .. }
                | PageState::Storing { .. }
                | PageState::Device { .. }
                | PageState::Coherent { .. }
                | PageState::Exclusive { .. }
                | PageState::Poisoned => (false, false),
            };
            let slot = slots.map(|slots| slots.start.add(offset));
            if let (Some(slot), true) = (slot, is_ours && offset < done) {
                entry.copy = engine.keep_or_forget(from);
                entry.slot = slot;
                entry.source = Source::System;
                engine.staging.set_owner(slot, entry.page);
                states.set(entry.page.index(), PageState::Storing { slot });
                continue;
            }
            slot.inspect(|slot| engine.staging.put(SlotRun { start: *slot, len: 1 }, Left::Memory));
            entry.source = Source::Skipped(if slots.is_none() { Skip::NoStaging } else { Skip::Evicted });
            if is_ours || was_dropped {
                engine.end_state(&mut states, self.ticket, entry.page);
            }
        }
        drop(states);
        drop(gate);
        engine.stats().pgfetch.fetch_add(done as u64, std::sync::atomic::Ordering::Relaxed);
        // Whoever waits for one of the pages looks again.
        engine.kernel.wake(PageRange::new(head.page, run.len() as u64));
    }
}

impl<K: Kernel> crate::engine::Engine<K> {
    /// Has a device fill slots; gives how many it has.
    fn fill_slots(&self, number: u8, frames: &[DevicePfn], slots: SlotRun) -> usize {
        if let (Ok(pass), Some(device)) = (self.flights.begin_if_fast(number), self.registry.get(number)) {
            let transfer = transfer_home(&self.kernel, &*device, &pass, frames, slots);
            return if pass.land() { transfer.done } else { 0 };
        }
        // They go back as memory, as what a device did not fill, and have none before somebody has written to them.
        self.kernel.with_slots_mut(slots, &mut |bytes| bytes.fill(0));
        0
    }

    /// The page has left the frame, which stays its copy or is freed.
    fn keep_or_forget(&self, frame: Frame) -> Option<Frame> {
        if self.keeps_frame(frame) {
            self.sub_away(1);
            return Some(frame);
        }
        self.forget_frame(frame);
        None
    }
}
