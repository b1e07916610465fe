//! What drivers ask of a process's memory: watching ranges, reading them, changing their protection.
//!
//! The same for the library ([`AddressSpace`]) and for drivers inside of the agent ([`Runtime`]). A range is given in
//! pages; [`pages`] makes them of a slice. Any memory of the process may be watched and read, whether or not it is
//! managed.
//!
//! The kernel tells of no change of protection (`mprotect`), and of no change at all in memory that is not registered. Who
//! makes such a change announces it: [`AddressSpace::protect`] and [`Runtime::announce`] do.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hmm_core::addr::{PageRange, Vpn};
use hmm_core::driver::{Collected, Exclusive, ExclusiveError, Migration, RemoveError, Select, SetupError};
use hmm_core::mirror::{RangeError, RangeFault};
use hmm_core::notifier::{Cause, Change, Changing, EmptyRange, Notifier, Owner, Sequence, Watch};
use hmm_core::state::Frame;
use hmm_core::{AddError, DeviceId, HeldFrame};
use hmm_device::decorate::Contained;
use hmm_device::{Device, DevicePfn};
use hmm_uapi::mapping::Advice;
use hmm_uapi::maps::Perms;
use rustix::io::Errno;

use crate::callers;
use crate::manage::ManageError;
use crate::migrating::Migrating;
use crate::mm::{Mm, range_of};
use crate::runtime::Runtime;
use crate::space::AddressSpace;

/// Pause before a range that was changing is read again.
const PAUSE: Duration = Duration::from_micros(50);

/// The pages that hold the slice.
pub fn pages<T>(slice: &[T]) -> PageRange {
    let start = slice.as_ptr().expose_provenance() as u64;
    PageRange::of_bytes(start, start + size_of_val(slice) as u64)
}

/// Why a driver cannot migrate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MigrateError {
    /// The memory is not managed, and cannot be.
    #[error(transparent)]
    Manage(#[from] ManageError),
    /// The range is of no use.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

/// Why a device does not get a page to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TakeError {
    /// The memory is not managed, and cannot be.
    #[error(transparent)]
    Manage(#[from] ManageError),
    /// The page cannot be had.
    #[error(transparent)]
    Exclusive(#[from] ExclusiveError),
}

impl Runtime {
    /// Gives a device a page to itself, until the CPU touches it; see [`hmm_core::driver::Exclusive`]. Memory that is not
    /// managed yet is from now on ([`manage`](Self::manage)).
    ///
    /// # Errors
    /// [`TakeError`].
    pub fn make_exclusive(&self, page: Vpn, owner: Owner) -> Result<Exclusive, TakeError> {
        self.manage(PageRange::new(page, 1))?;
        Ok(self.engine().make_exclusive(page, owner)?)
    }

    /// Begins the migration of a range by a driver; see [`hmm_core::driver`]. Memory that is not managed yet is from now
    /// on ([`manage`](Self::manage)).
    ///
    /// # Errors
    /// [`MigrateError`]. Pages that cannot be migrated are no error.
    pub fn migrate_setup(
        &self,
        range: PageRange,
        select: Select,
        owner: Owner,
    ) -> Result<Migration<'_, Mm, Collected>, MigrateError> {
        self.manage(range)?;
        Ok(self.engine().migrate_setup(range, select, owner)?)
    }

    /// Write-protects pages of a range, so that a driver may hold copies of them; see [`hmm_core::duplicate`]. Memory that
    /// is not managed yet is from now on ([`manage`](Self::manage)).
    ///
    /// # Errors
    /// [`MigrateError`]. Pages that cannot be protected are no error.
    pub fn write_protect(&self, range: PageRange, owner: Owner) -> Result<(), MigrateError> {
        self.manage(range)?;
        Ok(self.engine().write_protect(range, owner)?)
    }

    /// Adds a driver's device, to which only its driver migrates pages. One that panics is lost ([`Contained`]).
    ///
    /// # Errors
    /// [`AddError`].
    pub fn add_device(&self, device: Arc<dyn Device>, owner: Owner) -> Result<DeviceId, AddError> {
        self.engine().add_device(Arc::new(Contained::new(device)), owner)
    }

    /// Watches a range for a driver. The table is what its lock protects; see [`Watch`] for the rules.
    ///
    /// # Errors
    /// [`EmptyRange`].
    pub fn watch<W: Watch>(
        &self,
        range: PageRange,
        table: Arc<Mutex<W::Table>>,
        watch: W,
    ) -> Result<Notifier<W>, EmptyRange> {
        Notifier::new(self.engine().notifiers(), range, table, watch)
    }

    /// Reads a range, and faults in what is asked for; see [`hmm_core::mirror`]. Not to be called by a thread that serves
    /// faults, nor in a driver's callback or under a lock that one takes.
    ///
    /// # Errors
    /// [`RangeError`]. After [`RangeError::Busy`] start again with [`Notifier::read_begin`].
    pub fn range_fault<W: Watch>(
        &self,
        notifier: &Notifier<W>,
        seq: Sequence,
        fault: &mut RangeFault<'_>,
    ) -> Result<(), RangeError> {
        self.engine().range_fault(notifier, seq, fault)
    }

    /// As [`range_fault`](Self::range_fault), and starts again by itself while the range is changing, for as long as
    /// `patience`. What was read can be installed with the result.
    ///
    /// # Errors
    /// [`RangeError`]; [`RangeError::Busy`] when the time is over.
    pub fn range_fault_within<W: Watch>(
        &self,
        notifier: &Notifier<W>,
        fault: &mut RangeFault<'_>,
        patience: Duration,
    ) -> Result<Sequence, RangeError> {
        let begin = Instant::now();
        loop {
            let seq = notifier.read_begin();
            match self.range_fault(notifier, seq, fault) {
                Ok(()) => return Ok(seq),
                Err(RangeError::Busy) if begin.elapsed() < patience => std::thread::sleep(PAUSE),
                Err(error) => return Err(error),
            }
        }
    }

    /// Has drivers drop what they know of a range that is about to change, and keeps them from reading it anew until the
    /// result is dropped: for changes that the kernel does not tell of.
    pub fn announce(&self, range: PageRange, cause: Cause) -> Changing<'_> {
        self.engine().notifiers().invalidate(Change { range, cause, owner: None })
    }

    /// Announces a change of everything.
    pub fn announce_all(&self, cause: Cause) -> Changing<'_> {
        self.announce(PageRange { start: Vpn(0), end: Vpn(u64::MAX >> 12) }, cause)
    }
}

impl AddressSpace {
    /// Gives a device a page to itself, until the CPU touches it; see [`hmm_core::driver::Exclusive`]. Memory that is not
    /// managed yet is from now on.
    ///
    /// # Errors
    /// [`TakeError`].
    pub fn make_exclusive(&self, page: Vpn, owner: Owner) -> Result<Exclusive, TakeError> {
        let _inside = callers::enter();
        self.runtime().make_exclusive(page, owner)
    }

    /// Takes pages of the range that devices have to themselves back from them.
    pub fn revoke(&self, range: PageRange) {
        let _inside = callers::enter();
        self.runtime().engine().revoke(range);
    }

    /// Collects pages by the frames that they are in; see [`Engine::migrate_device_range`](hmm_core::Engine).
    ///
    /// # Errors
    /// [`SetupError::NotYours`].
    pub fn migrate_device_range(
        &self,
        device: DeviceId,
        frames: Range<DevicePfn>,
        select: Select,
        owner: Owner,
    ) -> Result<Migrating<'_, Collected>, SetupError> {
        Migrating::begin(|| self.runtime().engine().migrate_device_range(device, frames, select, owner))
    }

    /// Holds a frame of the driver's own; see [`Engine::hold_frame`](hmm_core::Engine::hold_frame).
    pub fn hold_frame(&self, frame: Frame, owner: Owner) -> Option<HeldFrame> {
        let _inside = callers::enter();
        self.runtime().engine().hold_frame(frame, owner)
    }

    /// Removes a driver's device: brings every page home that is there.
    ///
    /// # Errors
    /// [`RemoveError`]; removing it again goes on.
    pub fn remove_device(&self, device: DeviceId) -> Result<(), RemoveError> {
        let _inside = callers::enter();
        self.runtime().engine().remove_device(device)
    }

    /// See [`Runtime::migrate_setup`].
    ///
    /// # Errors
    /// [`MigrateError`].
    pub fn migrate_setup(
        &self,
        range: PageRange,
        select: Select,
        owner: Owner,
    ) -> Result<Migrating<'_, Collected>, MigrateError> {
        Migrating::begin(|| self.runtime().migrate_setup(range, select, owner))
    }

    /// See [`Runtime::write_protect`].
    ///
    /// # Errors
    /// [`MigrateError`].
    pub fn write_protect(&self, range: PageRange, owner: Owner) -> Result<(), MigrateError> {
        let _inside = callers::enter();
        self.runtime().write_protect(range, owner)
    }

    /// See [`Runtime::add_device`].
    ///
    /// # Errors
    /// [`AddError`].
    pub fn add_device(&self, device: Arc<dyn Device>, owner: Owner) -> Result<DeviceId, AddError> {
        let _inside = callers::enter();
        self.runtime().add_device(device, owner)
    }

    /// Watches a range for a driver. The table is what its lock protects; see [`Watch`] for the rules.
    ///
    /// # Errors
    /// [`EmptyRange`].
    pub fn watch<W: Watch>(
        &self,
        range: PageRange,
        table: Arc<Mutex<W::Table>>,
        watch: W,
    ) -> Result<Notifier<W>, EmptyRange> {
        let _inside = callers::enter();
        self.runtime().watch(range, table, watch)
    }

    /// See [`Runtime::range_fault`].
    ///
    /// # Errors
    /// [`RangeError`].
    pub fn range_fault<W: Watch>(
        &self,
        notifier: &Notifier<W>,
        seq: Sequence,
        fault: &mut RangeFault<'_>,
    ) -> Result<(), RangeError> {
        let _inside = callers::enter();
        self.runtime().range_fault(notifier, seq, fault)
    }

    /// See [`Runtime::range_fault_within`].
    ///
    /// # Errors
    /// [`RangeError`].
    pub fn range_fault_within<W: Watch>(
        &self,
        notifier: &Notifier<W>,
        fault: &mut RangeFault<'_>,
        patience: Duration,
    ) -> Result<Sequence, RangeError> {
        let _inside = callers::enter();
        self.runtime().range_fault_within(notifier, fault, patience)
    }

    /// See [`Runtime::manage`].
    ///
    /// # Errors
    /// [`ManageError`].
    pub fn manage(&self, range: PageRange) -> Result<(), ManageError> {
        let _inside = callers::enter();
        self.runtime().manage(range)
    }

    /// Takes pages of the range out of RAM, as far as they are managed and can be; they come back when they are touched.
    /// Returns how many left for staging.
    pub fn evict_pages(&self, range: PageRange) -> usize {
        let _inside = callers::enter();
        self.runtime().engine().evict_range(range)
    }

    /// Discards pages as `madvise(2)` does with `MADV_DONTNEED`: they are zeroes from now on. Drivers have no entries for them
    /// from before until it is over. Of a discard by `madvise` they hear before its pages go, and may find them once more:
    /// [`settle`](Self::settle) ends that.
    ///
    /// # Safety
    /// The range is private anonymous memory into which nobody has references.
    ///
    /// # Errors
    /// As of `madvise(2)`.
    pub unsafe fn discard(&self, range: PageRange) -> Result<(), Errno> {
        let _inside = callers::enter();
        let _changing = self.runtime().announce(range, Cause::Clear);
        // SAFETY: the caller's promise.
        unsafe { hmm_uapi::sys::madvise(range_of(range), Advice::DontNeed) }
    }

    /// Changes the protection of pages as `mprotect(2)` does, and has drivers drop their entries before.
    ///
    /// # Safety
    /// Nobody uses a reference into the range for what `perms` forbid: such an access raises SIGSEGV.
    ///
    /// # Errors
    /// As of `mprotect(2)`.
    pub unsafe fn protect(&self, range: PageRange, perms: Perms) -> Result<(), Errno> {
        let _inside = callers::enter();
        let _changing = self.runtime().announce(range, Cause::ProtectVma);
        // SAFETY: the caller's promise.
        unsafe { hmm_uapi::sys::mprotect(range_of(range), perms) }
    }
}
