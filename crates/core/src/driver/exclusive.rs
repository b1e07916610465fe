//! Exclusive access: for atomics, a page is one device's alone until the CPU touches it (Linux: `make_device_exclusive`).
//!
//! The page's bytes stay in system memory, in a slot of staging that the device accesses by its address. The device's
//! entry is made under the notifier's protocol:
//!
//! ```text
//!     again: bring the page home for writing (range fault)
//!            seq = notifier.read_begin()
//!            exclusive = engine.make_exclusive(page, owner)
//!            match notifier.install_own(seq, |table| ..) { Err(Collided) => goto again }
//! ```
//!
//! Making a page exclusive invalidates it with [`Cause::Exclusive`] and the driver's owner: who does not ignore its own
//! collides with itself for ever. So does who leaves the first line out: a page that is not at home, or still exclusive
//! because the last try collided, is brought home by the call, which is a change like others. The device has the page
//! until its driver hears of a [`Cause::Clear`] or another cause: any touch of the CPU, another driver's fault or
//! migration, or the program giving the page up. Nobody waits for the device in it, and it cannot fail: the page becomes a
//! staged one, and comes home from there.
//!
//! One page at a time, as in Linux; its page lock, under which the driver makes its entry there, is the sequence here.

use std::sync::atomic::Ordering;

use crate::addr::{PageRange, Vpn};
use crate::engine::Engine;
use crate::fault::Outcome;
use crate::kernel::{Kernel, Stop};
use crate::notifier::{Cause, Change, Owner};
use crate::state::PageState;
use crate::table::{States, covers};

/// Tries to catch a page that others use.
const MAX_TRIES: usize = 16;

/// A page that a device has to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exclusive {
    /// The page.
    pub page: Vpn,
    /// Where its bytes are in this process, until the driver hears of a change of the page.
    pub addr: u64,
}

/// Why a device does not get a page to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExclusiveError {
    /// Not private anonymous memory that is managed (Linux: `EOPNOTSUPP`, `EFAULT`).
    #[error(
        "{0:?} is not in managed memory: exclusive access needs private anonymous memory that is registered"
    )]
    Unmanaged(Vpn),
    /// The program itself may not write there (Linux: `EFAULT`).
    #[error("{0:?} is read-only, and a device may not write where the program may not")]
    ReadOnly(Vpn),
    /// Its bytes are lost.
    #[error("the bytes of {0:?} are lost, because a device failed")]
    Poisoned(Vpn),
    /// No memory.
    #[error("there is no memory to bring {0:?} home to, or to keep it in: raise the budget, or add a device")]
    NoMemory(Vpn),
    /// Pinned, or in others' hands.
    #[error("{0:?} is pinned, or in use by others: try again")]
    Busy(Vpn),
}

impl<K: Kernel> Engine<K> {
    /// Gives a device a page to itself; faults the page in first. See the module's protocol, and the rules of
    /// [`driver`](crate::driver) for the calling thread.
    ///
    /// # Errors
    /// See [`ExclusiveError`]; then the page is where it was, or with the CPU.
    pub fn make_exclusive(&self, page: Vpn, owner: Owner) -> Result<Exclusive, ExclusiveError> {
        if !covers(page) {
            return Err(ExclusiveError::Unmanaged(page));
        }
        let range = PageRange::new(page, 1);
        for _ in 0..MAX_TRIES {
            self.bring_in(page)?;
            let part = page.index()..page.index() + 1;
            let bay = self.take_places(part.clone()).ok_or(ExclusiveError::NoMemory(page))?;
            let change =
                self.notifiers.invalidate(Change { range, cause: Cause::Exclusive, owner: Some(owner) });
            let gate = self.gate();
            let mut states = self.table.block(page.block()).lock();
            let (moved, stop) = self.take_out(&mut states, page.block(), part, bay);
            if moved.contains(page.index()) {
                return Ok(self.isolate(&mut states, page));
            }
            drop(states);
            drop(gate);
            drop(change);
            match stop {
                // Shared by a fork: a write makes it the program's own.
                Some(Stop::Busy) => self.kernel.unshare(range),
                Some(Stop::Unsuited) => return Err(ExclusiveError::ReadOnly(page)),
                Some(Stop::NoMemory) => return Err(ExclusiveError::NoMemory(page)),
                Some(Stop::Changing | Stop::Gone | Stop::Exists | Stop::Absent) | None => {}
            }
        }
        Err(ExclusiveError::Busy(page))
    }

    /// Brings the page home, as if the CPU had touched it.
    fn bring_in(&self, page: Vpn) -> Result<(), ExclusiveError> {
        for _ in 0..MAX_TRIES {
            match self.state(page) {
                PageState::System { .. } => return Ok(()),
                PageState::Coherent { frame, .. } => self.bring_frame_home(page, frame),
                PageState::Poisoned => return Err(ExclusiveError::Poisoned(page)),
                PageState::None
                | PageState::Fetching { .. }
                | PageState::Dropped { .. }
                | PageState::Staged { .. }
                | PageState::Storing { .. }
                | PageState::Exclusive { .. }
                | PageState::Device { .. } => match self.fault(page) {
                    Outcome::Done | Outcome::Retry => {}
                    Outcome::Parked => return Err(ExclusiveError::Busy(page)),
                    Outcome::Unmanaged => return Err(ExclusiveError::Unmanaged(page)),
                    Outcome::Full => return Err(ExclusiveError::NoMemory(page)),
                },
            }
        }
        Err(ExclusiveError::Busy(page))
    }

    /// The page was taken out: it is the device's.
    fn isolate(&self, states: &mut States, page: Vpn) -> Exclusive {
        let PageState::Staged { slot, copy } = states.get(page.index()) else {
            unreachable!("what was taken out is staged, and the block is locked")
        };
        // The device will write to it.
        copy.inspect(|frame| self.free_frame(*frame));
        states.set(page.index(), PageState::Exclusive { slot });
        self.nr_exclusive.fetch_add(1, Ordering::Relaxed);
        Exclusive { page, addr: self.kernel.slot_addr(slot) }
    }

    /// Takes everything that devices have to themselves back from them, in front of a fork, and brings it home as far as
    /// there is memory: both sides shall have it mapped, as in Linux.
    pub fn restore_all(&self) {
        if self.nr_exclusive.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut pages = Vec::new();
        self.for_each_absent(&mut |page| pages.push(page));
        pages.retain(|page| matches!(self.state(*page), PageState::Exclusive { .. }));
        self.revoke_all();
        for page in pages {
            // What does not come home now does so when it is touched.
            let _ = self.fault(page);
        }
    }

    /// Takes everything that devices have to themselves back from them: when nothing else can leave. Returns whether they
    /// had anything.
    pub fn revoke_all(&self) -> bool {
        let had_any = self.nr_exclusive.load(Ordering::Relaxed) > 0;
        self.revoke(PageRange { start: Vpn(0), end: crate::table::END });
        had_any
    }

    /// Takes pages of the range that devices have to themselves back from them. The next touch brings them home.
    pub fn revoke(&self, range: PageRange) {
        if self.nr_exclusive.load(Ordering::Relaxed) == 0 {
            return;
        }
        for (id, block, part) in self.table.used_blocks(range) {
            let is_exclusive =
                |states: &States, index: &usize| matches!(states.get(*index), PageState::Exclusive { .. });
            let (first, last) = {
                let states = block.lock();
                let first = part.clone().find(|index| is_exclusive(&states, index));
                (first, part.rev().find(|index| is_exclusive(&states, index)))
            };
            let (Some(first), Some(last)) = (first, last) else { continue };
            let range = PageRange { start: id.page(first), end: id.page(last + 1) };
            let change = self.notifiers.invalidate(Change { range, cause: Cause::Clear, owner: None });
            let gate = self.gate();
            let mut states = block.lock();
            for index in first..=last {
                if let PageState::Exclusive { slot } = states.get(index) {
                    states.set(index, PageState::Staged { slot, copy: None });
                    self.staging.stage(slot, id.page(index));
                    self.nr_exclusive.fetch_sub(1, Ordering::Relaxed);
                }
            }
            drop(states);
            drop(gate);
            drop(change);
        }
    }
}
