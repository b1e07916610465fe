//! Migration by frames instead of addresses (Linux: `migrate_device_range`), and what it is for: a driver's device is
//! removed while it is in use.
//!
//! A frame does not know its page, on purpose: the program may move a page without the driver. So the states of all used
//! blocks are looked through, which costs some microseconds a GiB of managed memory.

use std::ops::Range;

use hmm_device::DevicePfn;

use crate::addr::{BLOCK_PAGES, BlockId, PageRange, Vpn};
use crate::bits::PageSet;
use crate::driver::{Collected, Entry, MAX_PAGES, Migration, Select, SetupError};
use crate::engine::Engine;
use crate::fault::Outcome;
use crate::kernel::{Kernel, Stop};
use crate::notifier::{Cause, Change, Owner};
use crate::registry::DeviceId;
use crate::state::{Frame, PageState};
use crate::table::{END, States};

/// Why a device is not removed. It takes no more pages; removing it again goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RemoveError {
    /// There is none with that number.
    #[error("there is no such device: it was removed already")]
    Unknown,
    /// Pages are on their way there or from there.
    #[error("pages are on their way to the device or from it: end its migrations, and remove it again")]
    Busy,
    /// There is no memory for its pages.
    #[error(
        "there is no memory for the device's pages to come home to: raise the budget, and remove it again"
    )]
    NoMemory,
}

const EVERYTHING: PageRange = PageRange { start: Vpn(0), end: END };

impl<K: Kernel> Migration<'_, K, Collected> {
    /// Collects those pages of a block's run that are still wanted. Gives the reason for which mapped ones were left.
    fn collect_found(
        &mut self,
        run: Range<usize>,
        change: Change,
        select: Select,
        is_wanted: &dyn Fn(&States, usize) -> Option<Frame>,
    ) -> Option<Stop> {
        let engine = self.engine;
        let id = change.range.start.block();
        let _change = engine.notifiers.invalidate(change);
        let _gate = engine.gate();
        let mut states = engine.table.block(id).lock();
        let wanted = run.clone().filter(|index| is_wanted(&states, *index).is_some()).collect();
        let stop = engine.unmap_frames(&mut states, id, &wanted);
        let is_whole = run.len() == BLOCK_PAGES && self.entries.is_empty();
        if let Some(first) = states.large_run()
            && is_whole
            && select.contains(Select::COMPOUND)
            && (0..BLOCK_PAGES).all(|index| is_wanted(&states, index).is_some())
        {
            self.take_large_run(&mut states, id, first);
            return stop;
        }
        for index in run {
            if let (PageState::Device { frame }, Some(_)) = (states.get(index), is_wanted(&states, index)) {
                states.set(index, PageState::Fetching { ticket: self.ticket, frame });
                let source = engine.source_of(frame);
                self.entries.push(Entry::new(id.page(index), source));
            }
        }
        stop
    }
}

impl<K: Kernel> Engine<K> {
    /// Collects pages by the frames that they are in, at most [`MAX_PAGES`]: to empty a part of a device without knowing
    /// the pages' addresses. The entries are in the order of addresses. With [`Select::COMPOUND`] a huge page all of whose
    /// frames are meant has one entry; of the others it does not matter what is selected. Such pages are invalidated
    /// with [`Cause::Migrate`] and the device's owner.
    ///
    /// # Errors
    /// [`SetupError::NotYours`].
    pub fn migrate_device_range(
        &self,
        device: DeviceId,
        frames: Range<DevicePfn>,
        select: Select,
        owner: Owner,
    ) -> Result<Migration<'_, K, Collected>, SetupError> {
        if self.registry.member(device.0).is_none_or(|member| member.owner != owner) {
            return Err(SetupError::NotYours);
        }
        let cause = (Cause::Migrate, Some(owner));
        Ok(self.collect_frames(EVERYTHING, owner, cause, select, &|frame| {
            frame.device == device.0 && frames.start <= frame.pfn && frame.pfn < frames.end
        }))
    }

    fn collect_frames(
        &self,
        range: PageRange,
        owner: Owner,
        (cause, on_behalf_of): (Cause, Option<Owner>),
        select: Select,
        wanted: &dyn Fn(Frame) -> bool,
    ) -> Migration<'_, K, Collected> {
        let mut migration = Migration::new(self, range, owner);
        let is_wanted = |states: &States, index: usize| match states.get(index) {
            PageState::Device { frame } | PageState::Coherent { frame, .. } => wanted(frame).then_some(frame),
            PageState::None
            | PageState::System { .. }
            | PageState::Fetching { .. }
            | PageState::Dropped { .. }
            | PageState::Staged { .. }
            | PageState::Storing { .. }
            | PageState::Exclusive { .. }
            | PageState::Poisoned => None,
        };
        for (id, block, part) in self.table.used_blocks(range) {
            let room = MAX_PAGES - migration.entries.len();
            let found: PageSet = {
                let states = block.lock();
                if select.contains(Select::COMPOUND) && room < MAX_PAGES && states.large_run().is_some() {
                    // There is no room for all of it.
                    break;
                }
                part.filter(|index| is_wanted(&states, *index).is_some()).take(room).collect()
            };
            if found.is_empty() {
                continue;
            }
            // Drivers hear of these pages, and of none between them.
            for run in found.runs() {
                let pages = PageRange { start: id.page(run.start), end: id.page(run.end) };
                let change = Change { range: pages, cause, owner: on_behalf_of };
                if migration.collect_found(run.clone(), change, select, &is_wanted) == Some(Stop::Busy) {
                    // Shared by a fork: a write makes it the program's own.
                    self.kernel.unshare(pages);
                    migration.collect_found(run, change, select, &is_wanted);
                }
            }
        }
        migration
    }

    /// Removes a driver's device: brings every page home that is there, and forgets the device. What it cannot give back
    /// is poisoned. Its number may be given to another device then.
    ///
    /// # Errors
    /// See [`RemoveError`]; nothing is lost by any.
    pub fn remove_device(&self, device: DeviceId) -> Result<(), RemoveError> {
        let member = self.registry.member(device.0).ok_or(RemoveError::Unknown)?;
        member.close();
        let owner = member.owner;
        drop(member);
        loop {
            // Not as a migration of the driver's own: it hears of it, and lets go of the frames.
            let cause = (Cause::Clear, None);
            let mut migration = self.collect_frames(EVERYTHING, owner, cause, Select::COMPOUND, &|frame| {
                frame.device == device.0
            });
            if migration.nr_collected() == 0 {
                drop(migration);
                self.keep_frames(device);
                break;
            }
            migration.fetch();
            let migration = migration.pages();
            let left: Vec<Vpn> = migration
                .entries()
                .iter()
                .filter(|entry| entry.is_collected() && !entry.is_migrated())
                .map(Entry::page)
                .collect();
            let nr_migrated = migration.finalize();
            let nr_forced = left.iter().take_while(|page| self.force_home(**page)).count();
            if nr_migrated + nr_forced == 0 {
                return Err(RemoveError::NoMemory);
            }
        }
        // From here on nobody begins to use it; those who do are seen as its holders, or in the states.
        if self.registry.nr_holders(device) > 0 || self.is_used(device) {
            return Err(RemoveError::Busy);
        }
        self.forget_device(device);
        Ok(())
    }

    /// Brings a page home that is mapped from a coherent frame, as far as there is memory and it can be moved.
    pub(super) fn bring_frame_home(&self, page: Vpn, frame: Frame) {
        let Some(owner) = self.registry.owner(frame.device) else { return };
        let range = PageRange::new(page, 1);
        let mut migration =
            self.collect_frames(range, owner, (Cause::Clear, None), Select::SYSTEM, &|at| at == frame);
        migration.fetch();
        migration.pages().finalize();
    }

    /// Serves a fault that nobody had. Returns whether the page is not where it was.
    fn force_home(&self, page: Vpn) -> bool {
        let before = self.state(page);
        let outcome = self.fault(page);
        outcome == Outcome::Done && self.state(page) != before
    }

    /// Whether a page or a fetch in flight names a frame of the device.
    fn is_used(&self, device: DeviceId) -> bool {
        let in_states = self.table.used_blocks(EVERYTHING).any(|(_, block, part): (BlockId, _, _)| {
            let states = block.lock();
            part.into_iter().any(|index| match states.get(index) {
                PageState::Fetching { frame, .. }
                | PageState::Dropped { frame, .. }
                | PageState::Coherent { frame, .. }
                | PageState::Device { frame } => frame.device == device.0,
                PageState::System { copy } | PageState::Staged { copy, .. } => {
                    copy.is_some_and(|frame| frame.device == device.0)
                }
                PageState::None
                | PageState::Storing { .. }
                | PageState::Exclusive { .. }
                | PageState::Poisoned => false,
            })
        });
        let orphans = self.orphans.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        in_states || orphans.iter().any(|(_, frame)| frame.device == device.0)
    }
}
