//! Pages move down: when a tier is nearly full, what has been on it longest goes to the next ones, so that what leaves the
//! program now finds room on the first.
//!
//! ```text
//!     Device (upper) --collect--> Fetching --fetched--> Storing --commit--> Device (lower), upper frame free
//!          ^                         |                     |
//!          +--- could not be read ---+--- no tier below ---+
//! ```
//!
//! A batch is a fetch into staging and a store from there, and each page obeys the rules of both: while it is `Fetching` a
//! touch waits for the upper tier, which is the faster one; while it is `Storing` a touch gets a copy of the slot, and
//! whoever commits finds that out. The frame that it comes from is freed last, so that nothing is lost at any stage.
//!
//! Which pages have been there longest is known by blocks, in a queue for each tier that has another below. A block is put
//! into it with its first page that is stored there. One of which pages came home since goes to the end once, as in the
//! clock. What is done is bounded: by the caller, who calls once for each batch and is no fault, and by two marks.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hmm_device::{Access, Device, DevicePfn, Usage};

use crate::addr::{BLOCK_PAGES, BlockId, PageRange, Slot, SlotRun};
use crate::bits::PageSet;
use crate::engine::Engine;
use crate::fetch::{is_fetched_by, transfer_home};
use crate::flights::{Awaited, Pass};
use crate::kernel::Kernel;
use crate::migrate::MIGRATE_PAGES;
use crate::staging::Left;
use crate::state::{Frame, PageState, Ticket};
use crate::table::States;

/// A tier this full (in percent) has pages moved down, until it is no more than that full.
const HIGH_PERCENT: u64 = 95;
const LOW_PERCENT: u64 = 90;
/// Blocks that get another chance in one batch, because pages of them came home.
const CHANCES: usize = 64;
/// Calls for which a tier is left alone when nothing could be moved.
const PAUSE_CALLS: u32 = 64;

/// A tier with another one below.
#[derive(Debug, Default)]
struct Upper {
    /// Blocks with pages there, those that came first in front.
    blocks: Mutex<VecDeque<BlockId>>,
    /// Frames that it had when it was full: what a frame takes is not the same for all, and memory of frames that were freed
    /// may not be free for others before their neighbours have gone, too. 0 when that is not known.
    full_at: AtomicU64,
    /// It was over the high mark, and is not under the low one yet.
    going: AtomicBool,
    /// Calls for which it is left alone.
    pause: AtomicU32,
}

/// All tiers but the last.
#[derive(Debug)]
pub(crate) struct Demotion {
    uppers: Box<[Upper]>,
}

impl Demotion {
    pub(crate) fn new(tiers: &[Arc<dyn Device>]) -> Self {
        Self { uppers: tiers.iter().skip(1).map(|_| Upper::default()).collect() }
    }

    /// There are so many blocks now: with room for them no page that is stored makes a queue grow.
    pub(crate) fn expect(&self, nr_blocks: usize) {
        for upper in &self.uppers {
            let mut queue = upper.queue();
            let more = nr_blocks.saturating_sub(queue.len());
            queue.reserve(more);
        }
    }

    /// The tier has refused a page: that is what it holds.
    pub(crate) fn note_full(&self, tier: u8, device: &dyn Device) {
        if let Some(upper) = self.uppers.get(usize::from(tier)) {
            upper.full_at.store(device.usage().frames, Ordering::Relaxed);
        }
    }

    /// A page of the block is on the device now. The caller holds the block's lock.
    pub(crate) fn note(&self, id: BlockId, states: &mut States, device: u8) {
        let Some(upper) = self.uppers.get(usize::from(device)) else { return };
        if states.on_upper >> device & 1 == 0 {
            states.on_upper |= 1 << device;
            states.came_home = false;
            upper.queue().push_back(id);
        }
    }
}

impl Upper {
    fn queue(&self) -> MutexGuard<'_, VecDeque<BlockId>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pages that are to go now. Bytes alone do not tell: see `full_at`.
    fn excess(&self, usage: Usage) -> u64 {
        let going = self.going.load(Ordering::Relaxed);
        let mark = if going { LOW_PERCENT } else { HIGH_PERCENT };
        if usage.used_bytes * 100 < usage.capacity_bytes * mark {
            self.going.store(false, Ordering::Relaxed);
            self.full_at.store(0, Ordering::Relaxed);
            return 0;
        }
        let full_at = self.full_at.load(Ordering::Relaxed);
        if usage.frames * 100 < full_at * mark {
            self.going.store(false, Ordering::Relaxed);
            return 0;
        }
        if !going {
            self.going.store(true, Ordering::Relaxed);
            self.full_at.store(full_at.max(usage.frames), Ordering::Relaxed);
        }
        let low = full_at.max(usage.frames) * LOW_PERCENT / 100;
        usage.frames.saturating_sub(low).max(1)
    }
}

/// Pages of one block on their way to staging.
#[derive(Debug)]
struct Batch {
    tier: u8,
    block: BlockId,
    ticket: Ticket,
    pages: [usize; MIGRATE_PAGES],
    frames: [DevicePfn; MIGRATE_PAGES],
    /// One for each page.
    slots: SlotRun,
}

/// A page in staging that is on a tier as well.
#[derive(Debug, Clone, Copy)]
struct Entry {
    slot: Slot,
    from: DevicePfn,
    to: Option<Frame>,
}

/// Pages in staging, in neighbouring slots as far as nobody took one of them away.
#[derive(Debug)]
struct Held {
    tier: u8,
    access: Access,
    entries: [Entry; MIGRATE_PAGES],
    len: usize,
}

impl Batch {
    fn frames(&self) -> &[DevicePfn] {
        &self.frames[..self.slots.len]
    }

    /// From the first page to the last.
    fn range(&self) -> PageRange {
        let last = self.pages[self.slots.len - 1];
        PageRange { start: self.block.page(self.pages[0]), end: self.block.page(last).add(1) }
    }

    /// As in a migration: a stream leaves in full batches of neighbours.
    fn access(&self) -> Access {
        let is_run = self.range().nr_pages() == MIGRATE_PAGES as u64 && self.slots.len == MIGRATE_PAGES;
        if is_run { Access::Stream } else { Access::Random }
    }
}

impl<K: Kernel> Engine<K> {
    /// Moves some pages down from a tier that is nearly full, if there is one and the next ones take them. Returns whether any
    /// went. To be called again and again by a background thread: the caller may have to wait for devices.
    pub fn demote(&self) -> bool {
        // The lowest first: it makes room for those above.
        (0..self.demotion.uppers.len()).rev().any(|tier| self.demote_from(tier))
    }

    #[expect(clippy::cast_possible_truncation, reason = "at most sixteen devices")]
    fn demote_from(&self, tier: usize) -> bool {
        let (upper, device) = (&self.demotion.uppers[tier], &*self.devices()[tier]);
        if !self.may_evict() {
            return false;
        }
        if upper.pause.load(Ordering::Relaxed) > 0 {
            upper.pause.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        let excess = upper.excess(device.usage());
        // No more than what faults can do without meanwhile.
        let want = excess.min(self.free_pages() / 2).min(MIGRATE_PAGES as u64);
        let want = usize::try_from(want).unwrap_or(MIGRATE_PAGES);
        if want == 0 {
            return false;
        }
        let any_moved = self.demote_some(tier as u8, device, want);
        if !any_moved {
            upper.pause.store(PAUSE_CALLS, Ordering::Relaxed);
        }
        any_moved
    }

    /// Moves up to `want` pages of the block that is next.
    fn demote_some(&self, tier: u8, device: &dyn Device, want: usize) -> bool {
        let Ok(pass) = self.flights.begin_if_fast(tier) else { return false };
        let Some(batch) = self.collect_oldest(tier, want) else { return false };
        let Some(mut held) = self.fetch_batch(device, &batch, pass) else {
            // What cannot be read is not tried again: who touches it will be told.
            self.leave_queue(tier, batch.block);
            return false;
        };
        self.store_held(&mut held);
        let nr_moved = self.commit_held(&held);
        self.demotion.uppers[usize::from(tier)].queue().push_front(batch.block);
        nr_moved > 0
    }

    /// Marks pages of the oldest block, and takes that out of the queue.
    fn collect_oldest(&self, tier: u8, want: usize) -> Option<Batch> {
        let upper = &self.demotion.uppers[usize::from(tier)];
        let nr_blocks = upper.queue().len();
        for number in 0..nr_blocks {
            let id = upper.queue().pop_front()?;
            let gate = self.gate();
            let mut states = self.table.block(id).lock();
            let there = on_tier(&states, tier);
            let has_chance = std::mem::take(&mut states.came_home) && number < CHANCES;
            if there.pages.is_empty() && !there.any_fetched {
                states.on_upper &= !(1 << tier);
            } else if there.pages.is_empty() || has_chance {
                upper.queue().push_back(id);
            } else {
                let batch = self.mark_batch(&mut states, id, tier, &there.pages, want);
                if batch.is_none() {
                    upper.queue().push_front(id);
                }
                return batch;
            }
            drop(states);
            drop(gate);
        }
        None
    }

    /// Marks the first of the pages `Fetching`. `None`: no staging memory.
    fn mark_batch(
        &self,
        states: &mut States,
        block: BlockId,
        tier: u8,
        there: &PageSet,
        want: usize,
    ) -> Option<Batch> {
        let slots = self.take_slots(want.min(there.len()))?;
        let ticket = self.new_ticket();
        let (mut pages, mut frames) = ([0; MIGRATE_PAGES], [DevicePfn::default(); MIGRATE_PAGES]);
        for (number, index) in there.runs().flatten().take(slots.len).enumerate() {
            let PageState::Device { frame } = states.get(index) else { continue };
            (pages[number], frames[number]) = (index, frame.pfn);
            states.set(index, PageState::Fetching { ticket, frame });
        }
        Some(Batch { tier, block, ticket, pages, frames, slots })
    }

    /// Brings the pages to staging; those that came are `Storing` there, the others on the tier as before. `None`: none could
    /// be read.
    fn fetch_batch(&self, device: &dyn Device, batch: &Batch, pass: Pass<'_>) -> Option<Held> {
        let range = batch.range();
        pass.is_awaited(Awaited::Pages { ticket: batch.ticket, range, asked_for: None });
        let transfer = transfer_home(&self.kernel, device, &pass, batch.frames(), batch.slots);
        if !pass.land() {
            // The pages are not ours any more.
            self.staging.put(batch.slots, Left::Memory);
            return None;
        }
        let none = Entry { slot: batch.slots.start, from: DevicePfn::default(), to: None };
        let mut held =
            Held { tier: batch.tier, access: batch.access(), entries: [none; MIGRATE_PAGES], len: 0 };
        let gate = self.gate();
        let mut states = self.table.block(batch.block).lock();
        for (number, pfn) in batch.frames().iter().enumerate() {
            let (index, slot) = (batch.pages[number], batch.slots.start.add(number));
            let is_ours = is_fetched_by(batch.ticket, *pfn, states.get(index));
            if is_ours && number < transfer.done {
                self.staging.set_owner(slot, batch.block.page(index));
                states.set(index, PageState::Storing { slot });
                held.entries[held.len] = Entry { slot, from: *pfn, to: None };
                held.len += 1;
            } else {
                self.end_state(&mut states, batch.ticket, batch.block.page(index));
                self.staging.put(SlotRun { start: slot, len: 1 }, Left::Memory);
            }
        }
        drop(states);
        self.end_moved(batch.ticket);
        drop(gate);
        // Who waited for one of them looks again.
        self.kernel.wake(range);
        (transfer.done > 0).then_some(held)
    }

    /// Has the tiers below store the pages, as far as they do.
    fn store_held(&self, held: &mut Held) {
        let entries = &mut held.entries[..held.len];
        for run in entries.chunk_by_mut(|one, next| next.slot == one.slot.add(1)) {
            let mut next = 0;
            for tier in (0..).take(self.devices().len()).skip(usize::from(held.tier) + 1) {
                let rest = &mut run[next..];
                let (Some(first), Ok(pass)) = (rest.first(), self.flights.begin_if_fast(tier)) else {
                    continue;
                };
                let slots = SlotRun { start: first.slot, len: rest.len() };
                let mut frames = [DevicePfn::default(); MIGRATE_PAGES];
                let stored = self.store_slots(tier, slots, held.access, &mut frames[..slots.len]);
                drop(pass);
                for (entry, pfn) in rest.iter_mut().zip(&frames[..stored]) {
                    entry.to = Some(Frame { device: tier, pfn: *pfn });
                }
                next += stored;
            }
        }
    }

    /// Makes the frames below the pages' homes. What was not stored is in its old frame, whose bytes are the same.
    fn commit_held(&self, held: &Held) -> usize {
        let (mut nr_moved, mut nr_overtaken) = (0, 0);
        let mut left = [DevicePfn::default(); MIGRATE_PAGES];
        let mut nr_left = 0;
        let gate = self.gate();
        for Entry { slot, from, to } in &held.entries[..held.len] {
            let old = Frame { device: held.tier, pfn: *from };
            let is_ours = self.end_storing(*slot, PageState::Device { frame: to.unwrap_or(old) });
            nr_overtaken += usize::from(!is_ours);
            nr_moved += usize::from(is_ours && to.is_some());
            if !is_ours && let Some(frame) = to {
                // It went home, or was given up.
                self.free_frame(*frame);
            }
            if !is_ours || to.is_some() {
                left[nr_left] = *from;
                nr_left += 1;
            }
            self.staging.put(SlotRun { start: *slot, len: 1 }, Left::Memory);
        }
        self.sub_away(nr_overtaken);
        drop(gate);
        self.free_frames(held.tier, &left[..nr_left]);
        self.stats().pgdemote.fetch_add(nr_moved as u64, Ordering::Relaxed);
        self.stats().demoted[usize::from(held.tier)].fetch_add(nr_moved as u64, Ordering::Relaxed);
        nr_moved
    }

    /// The block is not among those that have pages on the tier, until one more is stored there.
    fn leave_queue(&self, tier: u8, id: BlockId) {
        self.table.block(id).lock().on_upper &= !(1 << tier);
    }
}

/// A block's pages on a tier.
struct There {
    pages: PageSet,
    /// Others are being fetched, and may stay.
    any_fetched: bool,
}

fn on_tier(states: &States, tier: u8) -> There {
    let mut there = There { pages: PageSet::EMPTY, any_fetched: false };
    for index in 0..BLOCK_PAGES {
        match states.get(index) {
            PageState::Device { frame } if frame.device == tier => there.pages.insert(index),
            PageState::Fetching { frame, .. } => there.any_fetched |= frame.device == tier,
            PageState::None
            | PageState::System { .. }
            | PageState::Dropped { .. }
            | PageState::Staged { .. }
            | PageState::Storing { .. }
            | PageState::Device { .. }
            | PageState::Coherent { .. }
            | PageState::Exclusive { .. }
            | PageState::Poisoned => {}
        }
    }
    there
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tier of 1000 bytes.
    const fn usage(frames: u64, used_bytes: u64) -> Usage {
        Usage { frames, used_bytes, capacity_bytes: 1000 }
    }

    #[test]
    fn pages_go_from_the_high_mark_to_the_low_one() {
        let upper = Upper::default();
        assert_eq!(upper.excess(usage(94, 940)), 0);
        assert_eq!(upper.excess(usage(100, 1000)), 10);
        assert_eq!(upper.excess(usage(92, 920)), 2, "it goes on");
        assert_eq!(upper.excess(usage(89, 890)), 0);
        assert_eq!(upper.excess(usage(94, 940)), 0, "from the high mark only");
        assert_eq!(upper.excess(usage(95, 950)), 10, "how many there are is learnt anew");
    }

    #[test]
    fn what_was_expected_has_room() {
        let demotion = Demotion { uppers: [Upper::default()].into() };
        demotion.uppers[0].queue().push_back(BlockId(1));
        demotion.expect(300);
        assert!(demotion.uppers[0].queue().capacity() >= 300);
    }

    /// Frames were freed, and their memory is not free: to go on would empty the tier.
    #[test]
    fn no_more_go_than_a_tenth_whatever_the_bytes_are() {
        let upper = Upper::default();
        assert_eq!(upper.excess(usage(500, 960)), 50);
        assert_eq!(upper.excess(usage(451, 960)), 1);
        assert_eq!(upper.excess(usage(449, 960)), 0);
        assert_eq!(upper.excess(usage(470, 960)), 0, "there is room for more");
        assert_eq!(upper.excess(usage(475, 960)), 25);
        upper.going.store(false, Ordering::Relaxed);
        upper.full_at.store(300, Ordering::Relaxed);
        assert_eq!(upper.excess(usage(300, 990)), 30, "it has refused a page: it holds no more now");
    }

    #[test]
    fn a_block_is_queued_once_for_each_tier_but_the_last() {
        let tiers: Vec<Arc<dyn Device>> = (0..3).map(|_| Arc::new(hmm_device::Ram::new(8)) as _).collect();
        let demotion = Demotion::new(&tiers);
        let mut states = States::default();
        for device in [0, 0, 1, 2, 0, 15] {
            demotion.note(BlockId(7), &mut states, device);
        }
        assert_eq!(states.on_upper, 0b11);
        assert!(demotion.uppers.iter().all(|upper| *upper.queue() == [BlockId(7)]));
    }
}
