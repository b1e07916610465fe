//! Migration by frames instead of addresses (Linux: `migrate_device_range`), and what it is for: a driver's device is
//! removed while it is in use.
//!
//! A frame does not know its page, on purpose: the program may move a page without the driver. So the states of all used
//! blocks are looked through, which costs some microseconds a GiB of managed memory.

use std::ops::Range;

use hmm_device::DevicePfn;

use crate::addr::{BlockId, PageRange, Vpn};
use crate::driver::{Collected, Entry, MAX_PAGES, Migration, SetupError, Source};
use crate::engine::Engine;
use crate::fault::Outcome;
use crate::kernel::Kernel;
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

impl<K: Kernel> Engine<K> {
    /// Collects pages by the frames that they are in, at most [`MAX_PAGES`]: to empty a part of a device without knowing
    /// the pages' addresses. The entries are in the order of addresses. Each block with such pages is invalidated with
    /// [`Cause::Migrate`] and the device's owner.
    ///
    /// # Errors
    /// [`SetupError::NotYours`].
    pub fn migrate_device_range(
        &self,
        device: DeviceId,
        frames: Range<DevicePfn>,
        owner: Owner,
    ) -> Result<Migration<'_, K, Collected>, SetupError> {
        if self.registry.member(device.0).is_none_or(|member| member.owner != owner) {
            return Err(SetupError::NotYours);
        }
        let cause = (Cause::Migrate, Some(owner));
        Ok(self.collect_frames(owner, cause, &|frame| {
            frame.device == device.0 && frames.start <= frame.pfn && frame.pfn < frames.end
        }))
    }

    fn collect_frames(
        &self,
        owner: Owner,
        (cause, on_behalf_of): (Cause, Option<Owner>),
        wanted: &dyn Fn(Frame) -> bool,
    ) -> Migration<'_, K, Collected> {
        let mut migration = Migration::new(self, EVERYTHING, owner);
        let is_wanted = |states: &States, index: usize| match states.get(index) {
            PageState::Device { frame } => wanted(frame).then_some(frame),
            PageState::None
            | PageState::System { .. }
            | PageState::Fetching { .. }
            | PageState::Dropped { .. }
            | PageState::Staged { .. }
            | PageState::Storing { .. }
            | PageState::Exclusive { .. }
            | PageState::Poisoned => None,
        };
        for (id, block, part) in self.table.used_blocks(EVERYTHING) {
            let has_any = {
                let states = block.lock();
                part.clone().any(|index| is_wanted(&states, index).is_some())
            };
            if !has_any || migration.entries.len() == MAX_PAGES {
                continue;
            }
            let change = Change { range: id.pages(), cause, owner: on_behalf_of };
            let change = self.notifiers.invalidate(change);
            let gate = self.gate();
            let mut states = block.lock();
            for index in part {
                if migration.entries.len() == MAX_PAGES {
                    break;
                }
                if let Some(frame) = is_wanted(&states, index) {
                    states.set(index, PageState::Fetching { ticket: migration.ticket, frame });
                    migration.entries.push(Entry::new(id.page(index), Source::Private(frame)));
                }
            }
            drop(states);
            drop(gate);
            drop(change);
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
            let mut migration = self.collect_frames(owner, cause, &|frame| frame.device == device.0);
            if migration.nr_collected() == 0 {
                break;
            }
            migration.fetch();
            let migration = migration.pages();
            let left: Vec<Vpn> =
                migration.entries().iter().filter(|entry| !entry.is_migrated()).map(Entry::page).collect();
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
        self.registry.remove(device);
        Ok(())
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
