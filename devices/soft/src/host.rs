//! What the device needs of the address space it is part of.
//!
//! A trait, so that the device can be tested without one (`fake`). The real one is `hmm::AddressSpace` (`space`).

use std::sync::Arc;

use hmm_core::addr::{PageRange, Vpn};
use hmm_core::hints::Hint;
use hmm_core::notifier::{Notifier, Owner, Sequence};
use hmm_device::{Device, DevicePfn};

use crate::mirror::Mirror;
use crate::table::Table;

/// What is wanted of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Want {
    /// Nothing: only to know what is there.
    #[default]
    Look,
    /// To be able to read it.
    Read,
    /// To be able to write it.
    Write,
}

/// What was found of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing that can be accessed without a fault.
    #[default]
    None,
    /// It is where the CPU accesses it.
    System {
        /// Writing is allowed.
        write: bool,
        /// Its bytes do not change before the device hears of it.
        protected: bool,
    },
    /// It is in a frame of a device of ours.
    Frame {
        /// Index of the device.
        device: u8,
        /// Its frame.
        frame: DevicePfn,
        /// Writing is allowed.
        write: bool,
    },
}

/// Why a range could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultError {
    /// It changed meanwhile.
    Busy,
    /// A page cannot be had.
    NoMapping,
    /// A page may not be written.
    Permission,
    /// No memory.
    NoMemory,
}

/// Copies a page that is in a frame of a device of ours, which no unit accesses any more, to a new frame of this device, or a
/// huge page to a large run: index of the device, (first) frame there, and how many. `None` leaves the page where it is.
pub(crate) type FromPeer<'a> = dyn FnMut(u8, DevicePfn, usize) -> Option<DevicePfn> + 'a;

/// The address space.
pub(crate) trait Host: Send + Sync + std::fmt::Debug + 'static {
    /// Has the device hear of changes, of all of the address space.
    fn watch(&self, table: Table, mirror: Mirror) -> Result<Notifier<Mirror>, String>;

    /// Adds a device; its index.
    fn add(&self, memory: Arc<dyn Device>, owner: Owner) -> Result<u8, String>;

    /// Takes it away: its pages come home. No kernel runs on it.
    fn remove(&self, device: u8);

    /// Returns when the device has heard of everything that the program has done to its mappings before.
    fn settle(&self);

    /// A unit's thread begins its work: its stack must never be managed.
    fn enter(&self);

    /// The part of a range around a page that is of the same mapping: migration must not take what the program did not
    /// mean, like another thread's stack.
    fn clip(&self, page: Vpn, range: PageRange) -> PageRange;

    /// The hint for a page, and the pages around it for which it is the same.
    fn hint(&self, page: Vpn) -> (Hint, PageRange);

    /// Reads a range of at most 512 pages, and faults in what is wanted of it. Frames are shown if they are `owner`'s.
    /// Whether some of what was found is part of a huge page, in system memory or on a device.
    fn range_fault(
        &self,
        notifier: &Notifier<Mirror>,
        seq: Sequence,
        owner: Owner,
        range: PageRange,
        wants: &[Want],
        found: &mut [Found],
    ) -> Result<bool, FaultError>;

    /// Has the system write-protect what can be of a range of at most 512 pages, see `hmm_core::duplicate`.
    fn protect(&self, owner: Owner, range: PageRange);

    /// Migrates what can be migrated of a range of at most 512 pages to the device. What is in system memory, or nowhere,
    /// is stored there; frames of the owner's other devices go through `from_peer`. A huge page that is in the range stays
    /// one. Returns how many pages are on the device now that were not.
    fn migrate_in(&self, device: u8, owner: Owner, range: PageRange, from_peer: &mut FromPeer<'_>) -> usize;

    /// Migrates what the owner's devices have of a range to system memory, where a huge page stays one. Returns how many pages
    /// came.
    fn migrate_home(&self, owner: Owner, range: PageRange) -> usize;
}
