//! Migration of staged pages to a device, page by page, best effort (Linux: `migrate_vma_setup`, `_pages`, `_finalize`).
//!
//! ```text
//!     Staged --collect--> Migration<Collected> --copy--> Migration<Copied> --commit--> Device, slot free
//!        ^                        |                             |
//!        +---------- drop --------+------------ drop -----------+
//! ```
//!
//! While a migration holds pages they are `Storing`: a fault gets a copy of the slot, whose bytes change no more, and
//! an event forgets the page; in both cases the commit finds the page's state changed and drops what it made. Nothing is
//! lost by dropping a migration at any stage: the pages are staged again.

use std::marker::PhantomData;
use std::sync::atomic::Ordering;

use hmm_device::{Access, DeviceError, DevicePfn, Store};

use crate::addr::{Bay, Slot, SlotRun, Vpn};
use crate::engine::Engine;
use crate::flights::{Awaited, Grounded, Pass};
use crate::kernel::Kernel;
use crate::policy::Note;
use crate::staging::Left;
use crate::state::{Frame, PageState};
use crate::trace::What;

/// Pages of one migration: bounds the time for which a page is `Storing`.
pub(crate) const MIGRATE_PAGES: usize = 64;

/// Pages are marked and collected; none is copied.
#[derive(Debug)]
pub(crate) struct Collected;
/// Every page that a device took has a frame.
#[derive(Debug)]
pub(crate) struct Copied;

/// One page on its way.
#[derive(Debug, Clone, Copy)]
struct Entry {
    slot: Slot,
    /// A frame that may still hold the page, from the time it came home.
    copy: Option<Frame>,
    /// The frame that holds it now.
    dst: Option<Frame>,
}

/// What a migration came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Migrated {
    /// Pages whose home is the device now.
    pub(crate) committed: usize,
    /// Pages that went home or were given up meanwhile.
    pub(crate) overtaken: usize,
    /// Pages that no device took; they are staged as before.
    pub(crate) refused: usize,
    /// One of the devices was not asked, because it has not answered to others yet.
    pub(crate) put_off: bool,
}

/// A run of pages between staging and a device.
#[derive(Debug)]
#[must_use = "dropping a migration undoes it"]
pub(crate) struct Migration<'e, K: Kernel, Stage> {
    engine: &'e Engine<K>,
    entries: [Entry; MIGRATE_PAGES],
    len: usize,
    access: Access,
    /// A device was passed by that may have room.
    put_off: bool,
    /// The fault for which memory is to become free.
    fault: Option<Vpn>,
    /// The policy's, of the last page's block.
    note: Note,
    stage: PhantomData<Stage>,
}

impl<'e, K: Kernel> Migration<'e, K, Collected> {
    /// Collects staged pages of the bay, from its front.
    pub(crate) fn collect(engine: &'e Engine<K>, bay: Bay, fault: Option<Vpn>) -> Self {
        let entry = Entry { slot: bay.slot(0), copy: None, dst: None };
        let mut migration = Self {
            engine,
            entries: [entry; MIGRATE_PAGES],
            len: 0,
            access: Access::Random,
            put_off: false,
            fault,
            note: Note::default(),
            stage: PhantomData,
        };
        let staged = engine.staging.staged(bay);
        for index in staged.runs().flatten() {
            if migration.len == MIGRATE_PAGES {
                break;
            }
            migration.collect_page(bay.slot(index));
        }
        migration.access = if migration.is_run() { Access::Stream } else { Access::Random };
        migration
    }

    fn collect_page(&mut self, slot: Slot) {
        let owner = self.engine.staging.owner(slot);
        let Some(block) = self.engine.table.get(owner.block()) else { return };
        let mut states = block.lock();
        let PageState::Staged { slot: at, copy } = states.get(owner.index()) else { return };
        if at == slot {
            states.set(owner.index(), PageState::Storing { slot });
            self.entries[self.len] = Entry { slot, copy, dst: None };
            self.len += 1;
            self.note = states.note;
        }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Whether the pages are one run that fills the migration: how a stream leaves.
    fn is_run(&self) -> bool {
        self.len == MIGRATE_PAGES && self.entries[self.len - 1].slot == self.entries[0].slot.add(self.len - 1)
    }

    /// Has the devices copy the pages: those that a device still holds need no copy.
    pub(crate) fn copy(mut self) -> Migration<'e, K, Copied> {
        for number in 0..self.len {
            self.recognise(number);
        }
        let mut first = 0;
        while first < self.len {
            if self.entries[first].dst.is_some() {
                first += 1;
                continue;
            }
            let end = self.run_end(first);
            self.copy_run(first, end);
            first = end;
        }
        let copied = Migration {
            engine: self.engine,
            entries: self.entries,
            len: self.len,
            access: self.access,
            put_off: self.put_off,
            fault: self.fault,
            note: self.note,
            stage: PhantomData,
        };
        self.len = 0;
        copied
    }

    /// Makes an old copy the destination if it is still true, and frees it if not.
    fn recognise(&mut self, number: usize) {
        let entry = &mut self.entries[number];
        let Some(frame) = entry.copy.take() else { return };
        let Some(device) = self.engine.device(frame) else { return };
        let mut same = false;
        self.engine.kernel.with_slots(SlotRun { start: entry.slot, len: 1 }, &mut |bytes| {
            same = device.holds(frame.pfn, bytes)
        });
        self.engine.copies.learn(same);
        if same {
            entry.dst = Some(frame);
            self.engine.stats().pgclean.fetch_add(1, Ordering::Relaxed);
            self.engine.record_slots(What::Unchanged, entry.slot, 1, frame.device);
        } else {
            self.engine.free_frame(frame);
        }
    }

    /// The end of the run of neighbouring slots from `first` on that need a copy.
    fn run_end(&self, first: usize) -> usize {
        let mut end = first + 1;
        while end < self.len
            && self.entries[end].dst.is_none()
            && self.entries[end].slot == self.entries[end - 1].slot.add(1)
        {
            end += 1;
        }
        end
    }

    /// Stores a run, on the first device that takes it, but for those that the policy passes by: they come last.
    fn copy_run(&mut self, first: usize, end: usize) {
        let nr_devices = self.engine.devices().len();
        let passed_by: u16 = (0..nr_devices.saturating_sub(1))
            .map(|number| u16::from(self.passes_by(number)) << number)
            .fold(0, |all, one| all | one);
        let mut next = first;
        for last in [false, true] {
            for device in (0..nr_devices).filter(|number| (passed_by >> number & 1 == 1) == last) {
                next = self.copy_to(device, next, end);
                if next == end {
                    return;
                }
            }
        }
    }

    fn passes_by(&self, number: usize) -> bool {
        self.engine.policy.passes_by(self.note, self.engine.devices()[number].usage())
    }

    /// The right to a call of the device. `None`: there are calls of it that take long.
    fn begin(&mut self, number: u8) -> Option<Pass<'e>> {
        let pass = self.engine.flights.begin_if_fast(number);
        self.put_off |= pass.as_ref().is_err_and(|why| *why == Grounded::Busy);
        if let (Ok(pass), Some(page)) = (&pass, self.fault) {
            pass.is_awaited(Awaited::Fault(page));
        }
        pass.ok()
    }

    /// Stores pages on one device until it refuses; returns the first that it did not take.
    #[expect(clippy::cast_possible_truncation, reason = "at most sixteen devices")]
    fn copy_to(&mut self, number: usize, first: usize, end: usize) -> usize {
        let number = number as u8;
        let Some(pass) = self.begin(number) else { return first };
        let run = SlotRun { start: self.entries[first].slot, len: end - first };
        let mut frames = [DevicePfn::default(); MIGRATE_PAGES];
        let stored = self.engine.store_slots(number, run, self.access, &mut frames[..run.len]);
        // Late or not: the pages were in staging all the time, and are in the frames now.
        drop(pass);
        for (entry, pfn) in self.entries[first..].iter_mut().zip(&frames[..stored]) {
            entry.dst = Some(Frame { device: number, pfn: *pfn });
        }
        self.engine.stats().pgstore.fetch_add(stored as u64, Ordering::Relaxed);
        self.engine.record_slots(What::Store, run.start, stored, number);
        first + stored
    }
}

impl<K: Kernel> Migration<'_, K, Copied> {
    /// Makes the frames the pages' homes.
    pub(crate) fn commit(mut self) -> Migrated {
        let mut migrated = Migrated { put_off: self.put_off, ..Migrated::default() };
        let gate = self.engine.gate();
        for number in 0..self.len {
            let entry = self.entries[number];
            match entry.dst {
                Some(frame) if self.engine.end_storing(entry.slot, PageState::Device { frame }) => {
                    migrated.committed += 1;
                    self.engine.add_away(1);
                    self.engine.staging.unstage(SlotRun { start: entry.slot, len: 1 }, Left::Memory);
                }
                Some(frame) => {
                    migrated.overtaken += 1;
                    self.engine.free_frame(frame);
                    self.engine.staging.unstage(SlotRun { start: entry.slot, len: 1 }, Left::Memory);
                }
                None => {
                    migrated.refused += 1;
                    self.engine.undo(entry);
                }
            }
        }
        drop(gate);
        self.engine.stats().pgmigrate_fail.fetch_add(migrated.refused as u64, Ordering::Relaxed);
        self.len = 0;
        migrated
    }
}

impl<K: Kernel, Stage> Drop for Migration<'_, K, Stage> {
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        let gate = self.engine.gate();
        for entry in &self.entries[..self.len] {
            self.engine.undo(*entry);
        }
        drop(gate);
    }
}

impl<K: Kernel> Engine<K> {
    /// Stores neighbouring slots on a tier until it refuses, in frames that are handed out here, one for each. Returns how many
    /// it took, from the front. The caller has the right to the call.
    pub(crate) fn store_slots(
        &self,
        number: u8,
        run: SlotRun,
        access: Access,
        frames: &mut [DevicePfn],
    ) -> usize {
        let device = &self.devices()[usize::from(number)];
        let nr_frames = device.alloc(frames);
        let frames = &frames[..nr_frames];
        let mut stop = (nr_frames < run.len).then_some(DeviceError::OutOfMemory);
        let mut stored = 0;
        while stored < nr_frames {
            let mut failed: Option<DeviceError> = None;
            let rest = SlotRun { start: run.start.add(stored), len: nr_frames - stored };
            self.kernel.with_slots(rest, &mut |bytes| {
                let transfer = device.store(Store { frames: &frames[stored..], bytes, access });
                stored += transfer.done;
                failed = transfer.stop;
            });
            if failed.is_some() {
                stop = failed;
                break;
            }
        }
        match stop {
            Some(DeviceError::Lost) => self.tell_failure(number, DeviceError::Lost),
            Some(DeviceError::OutOfMemory) => self.demotion.note_full(number, &**device),
            _ => {}
        }
        device.free(&frames[stored..]);
        stored
    }

    /// Puts a page back into staging, or frees its slot if it went elsewhere.
    fn undo(&self, entry: Entry) {
        let copy = entry.dst.or(entry.copy);
        if !self.end_storing(entry.slot, PageState::Staged { slot: entry.slot, copy }) {
            if let Some(frame) = copy {
                self.free_frame(frame);
            }
            self.staging.unstage(SlotRun { start: entry.slot, len: 1 }, Left::Memory);
        }
    }

    /// Gives a page that is being stored from `slot` another state. False when it went home or was given up.
    /// The caller holds the gate, so the page does not move meanwhile.
    pub(crate) fn end_storing(&self, slot: Slot, state: PageState) -> bool {
        let owner: Vpn = self.staging.owner(slot);
        let Some(block) = self.table.get(owner.block()) else { return false };
        let mut states = block.lock();
        let ours = matches!(states.get(owner.index()), PageState::Storing { slot: at } if at == slot);
        if ours {
            states.set(owner.index(), state);
        }
        if let (PageState::Device { frame }, true) = (state, ours) {
            self.demotion.note(owner.block(), &mut states, frame.device);
        }
        ours
    }
}
