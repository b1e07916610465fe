//! What a mirror needs of the address space that it mirrors.
//!
//! It is the mirror API of the engine, cut down to what this driver uses, with the stages of a migration turned into
//! callbacks. None of these functions is called with a mirror's table locked.

use std::sync::Arc;

use hmm_core::addr::{PAGE_SIZE, PageRange, Vpn};
use hmm_core::notifier::{Notifier, Notifiers, Sequence};
use hmm_device::DevicePfn;

use crate::abi::{Failure, Number};
use crate::table::Follow;

/// How pages are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// As they are: nothing is faulted.
    Snapshot,
    /// Readable.
    Read,
    /// Writable.
    Write,
}

/// What a page is, seen by a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Nothing is there yet, or it is on another private device.
    #[default]
    None,
    /// There cannot be anything.
    Error,
    /// System memory.
    System {
        /// The kernel's page of zeroes.
        zero: bool,
    },
    /// A frame of this private device.
    Private(DevicePfn),
    /// A frame of a coherent device.
    Coherent(Number),
}

/// A page, seen by a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// What it is.
    pub kind: Kind,
    /// Whether it may be written.
    pub write: bool,
    /// log2 of the pages that are mapped as one.
    pub order: u8,
}

/// A mapping of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vma {
    /// The page behind its last.
    pub end: Vpn,
    /// Whether it may be read.
    pub readable: bool,
    /// Whether it may be written to.
    pub writable: bool,
    /// Whether its pages can migrate at all: those of huge page files and of devices cannot.
    pub can_migrate: bool,
}

/// Chooses a frame for a page that migrates, and fills it: from the bytes, or with zeroes where there was a hole. `None`
/// leaves the page where it is.
pub type Fill<'a> = dyn FnMut(Vpn, Option<&[u8]>) -> Option<DevicePfn> + 'a;
/// Copies a frame's bytes into the memory that the page will have. False leaves the page where it is.
pub type Drain<'a> = dyn FnMut(Vpn, DevicePfn, &mut [u8]) -> bool + 'a;
/// Hears of each page that has migrated, while it still stands still; with its frame and whether that may be written.
pub type Moved<'a> = dyn FnMut(Vpn, DevicePfn, bool) + 'a;

/// See the module. Every range is of whole pages, and pages are in order.
pub trait Space: Send + Sync + 'static {
    /// Who hears of changes.
    fn notifiers(&self) -> &Arc<Notifiers>;

    /// Returns when whoever watches has heard of every change of mappings that was made before.
    fn settle(&self);

    /// Looks at a range for a device, with its pages faulted in first if asked for: `seen` has one entry for each page.
    ///
    /// # Errors
    /// [`Failure::Busy`]: the range has changed since `seq`. [`Failure::Fault`]: no memory there, or not for reading.
    /// [`Failure::Permission`]: not for writing. [`Failure::NoMemory`].
    fn range_fault(
        &self,
        device: Number,
        reading: (&Notifier<Follow>, Sequence),
        range: PageRange,
        request: Request,
        seen: &mut [Seen],
    ) -> Result<(), Failure>;

    /// The mapping that has the page.
    fn vma(&self, page: Vpn) -> Option<Vma>;

    /// Copies a system page as the CPU would read it. False if it may not be read.
    fn load(&self, page: Vpn, to: &mut [u8; PAGE_SIZE]) -> bool;

    /// Writes a system page as the CPU would. False if it may not be written.
    fn store(&self, page: Vpn, from: &[u8; PAGE_SIZE]) -> bool;

    /// Reads from a page, which comes home for it if it is in a private device's memory.
    fn touch(&self, page: Vpn);

    /// Migrates pages of a range inside one mapping to the device.
    ///
    /// # Errors
    /// [`Failure::Invalid`]: not a mapping whose pages can migrate. That a page did not migrate is no error.
    fn migrate_to_device(
        &self,
        device: Number,
        range: PageRange,
        fill: &mut Fill<'_>,
        moved: &mut Moved<'_>,
    ) -> Result<(), Failure>;

    /// Migrates pages of a range inside one mapping from the device to system memory.
    ///
    /// # Errors
    /// As [`migrate_to_device`](Self::migrate_to_device); [`Failure::NoMemory`].
    fn migrate_to_system(
        &self,
        device: Number,
        range: PageRange,
        drain: &mut Drain<'_>,
        moved: &mut Moved<'_>,
    ) -> Result<(), Failure>;

    /// Makes a page exclusive to the device. Returns the address of its bytes; they stay there until the notifiers hear that
    /// they do not. This thread's [`Follow::migrating`] keeps the change itself from being heard.
    ///
    /// # Errors
    /// [`Failure::Fault`]: no memory there, or not for writing. [`Failure::Unsupported`]: not private anonymous memory.
    /// [`Failure::Busy`], [`Failure::NoMemory`].
    fn make_exclusive(&self, device: Number, page: Vpn) -> Result<u64, Failure>;

    /// Copies the bytes of an exclusive page, whose address `make_exclusive` told. The only function that is called with
    /// the table locked: so long the bytes are there.
    fn load_exclusive(&self, addr: u64, to: &mut [u8; PAGE_SIZE]);

    /// Brings every page home that is in the device's memory, in this address space.
    fn evict(&self, device: Number);
}
