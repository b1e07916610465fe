//! Migration by a driver, page by page, best effort (Linux: `migrate_vma_setup`, `_pages`, `_finalize`).
//!
//! ```text
//!     setup      -> Migration<Collected>   pages are collected and unmapped, their bytes change no more
//!     the driver    allocates frames, copies, says where each page goes; may leave any out
//!     pages      -> Migration<Committed>   each page that nobody overtook has its new home; faults on it wait
//!     the driver    updates its device's page table
//!     finalize                             everybody may use the pages; what did not migrate is as it was
//! ```
//!
//! Dropping a migration at any stage loses nothing and duplicates nothing: collected pages are as they were, committed
//! ones stay where they went. A frame that was handed to the migration is the engine's: if its page does not go there
//! it is freed ([`hmm_device::Device::free`]), exactly once.
//!
//! # What a page is meanwhile
//!
//! | source | from setup to `pages` | from `pages` to `finalize` |
//! |---|---|---|
//! | in system memory | `Storing`: a touch overtakes the migration by a copy of the page, and the page stays | `Fetching`: faults wait |
//! | elsewhere, with [`Select::FAULT`] | `Fetching` until setup returns, then as in system memory | `Fetching`: faults wait |
//! | a hole | `None`: a touch fills it, and the page stays | `Fetching`: faults wait |
//! | on the device | `Fetching`: faults wait, because the driver is about to bring it home | the same |
//!
//! So a driver that copies slowly holds up nobody who needs a page that was the system's; one that brings pages home
//! holds up those who wait for them. An event of the program (a page is unmapped, discarded, moved) overtakes a migration
//! at any stage, too.
//!
//! # Huge pages
//!
//! With [`Select::COMPOUND`] a huge page of which all is asked for has one entry, and goes as one: out in one move, to a
//! large run of frames, and home in one move to a huge page. A driver that has no large run for it, or wants only a part of
//! it, makes its entry 512 ordinary ones ([`Migration::split`]); [`Migration::store`] and [`Migration::fetch`] do so by
//! themselves. If a part of a huge page was overtaken [`pages`](Migration::pages) splits its entry, and the rest migrates.
//!
//! # Rules for drivers
//!
//! - Setup invalidates the range with [`Cause::Migrate`](crate::notifier::Cause::Migrate) and the driver's owner. A
//!   driver that ignores its own migrations drops its own entries of the range itself, before it copies. A page that the
//!   CPU touches before that goes home, and all are told of it, the driver too
//!   ([`Cause::Clear`](crate::notifier::Cause::Clear), no owner). When the CPU brings a page home from the *device* the
//!   driver takes no part in it: it hears of the same, which it must not ignore.
//! - Between setup and `finalize` other threads of the program go on, and may unmap the range. So entries for what
//!   migrated are made with [`Notifier::install_own`](crate::notifier::Notifier::install_own), and a sequence from a
//!   `read_begin` in front of setup; if that collides the entry is not made, and the device's next fault finds out.
//! - Never on a thread that serves faults, nor under a lock that a callback takes. Between setup and `finalize` the
//!   thread touches no managed memory, its stack included: it might wait for itself.
//!
//! # Rules of Linux that do not apply
//!
//! - The mmap lock over all steps, `VM_SPECIAL`, hugetlb, DAX, file and shared memory: what is registered is private
//!   anonymous memory, other pages are skipped ([`Skip::Unmanaged`]).
//! - Page locks and "trylock, or skip": states and tickets take their place, nobody waits for a lock for long.
//! - `fault_page`: a CPU fault is served from [`hmm_device::Device::fetch`]; it needs no driver's migration.
//! - Unmapping through rmap in other processes, LRU, memcg, swap cache: one address space, charges stay with the page.
//! - "The page must come home or be marked as an error": a page that a driver leaves on the device stays there. When a
//!   fault needs it and the device fails, it is poisoned.
//! - Read-only device entries after fork or mprotect: a frame has no permissions, mappings of it have.

mod bring;
mod collect;
mod commit;
mod destination;
mod exclusive;
mod huge;
mod remove;

use std::marker::PhantomData;
use std::sync::Arc;

use crate::addr::{BLOCK_PAGES, PageRange, Slot, Vpn};
use crate::engine::Engine;
use crate::kernel::Kernel;
use crate::notifier::Owner;
use crate::registry::{MAX_DEVICES, Member};
use crate::state::{Frame, Ticket};

pub use destination::RefusedDestination;
pub use exclusive::{Exclusive, ExclusiveError};
pub use remove::RemoveError;

/// Pages of one migration at most.
pub const MAX_PAGES: usize = BLOCK_PAGES;

/// Which pages of a range a driver wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Select(u8);

impl Select {
    /// Pages in system memory, and holes.
    pub const SYSTEM: Self = Self(1);
    /// Pages on private devices of the driver's.
    pub const PRIVATE: Self = Self(2);
    /// Pages on coherent devices of the driver's.
    pub const COHERENT: Self = Self(4);
    /// A huge page of which all is asked for as one entry rather than many, see [`Entry::is_compound`]; a block of holes
    /// likewise.
    pub const COMPOUND: Self = Self(8);
    /// With [`SYSTEM`](Self::SYSTEM): pages that a device has to itself stay its own and are skipped, as in Linux.
    /// Without it they are taken back.
    pub const KEEP_EXCLUSIVE: Self = Self(16);
    /// With [`SYSTEM`](Self::SYSTEM): pages that are away elsewhere, on a tier or on another owner's device, are fetched and
    /// collected like pages in system memory, so that no range fault is needed in front of the migration. They come
    /// into staging only, not into the program.
    pub const FAULT: Self = Self(32);

    /// Whether all of `other` is in it.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl std::ops::BitOr for Select {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Why a page was not collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// It is of a kind that was not asked for, or another owner's.
    NotSelected,
    /// It is in no registered mapping.
    Unmanaged,
    /// It is on a tier: it is collected when it has been touched, or with [`Select::FAULT`]. With that: its device did not
    /// give it.
    Evicted,
    /// Pinned for I/O, shared by a fork, of a read-only mapping, or the program's mappings are changing just now.
    Busy,
    /// Somebody else moves it.
    InFlight,
    /// A device has it to itself, and keeps it.
    Exclusive,
    /// There is no staging memory to take it to.
    NoStaging,
    /// Its bytes are lost.
    Poisoned,
    /// It is part of the huge page whose entry is in front.
    Compound,
}

/// What was collected of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nothing.
    Skipped(Skip),
    /// The page was never touched, or given back: the driver may give a frame of zeroes.
    Hole,
    /// Its bytes wait in staging, see [`Migration::with_bytes`].
    System,
    /// It is in a frame of the driver's, of a private device.
    Private(Frame),
    /// It is in a frame of the driver's, of a coherent device.
    Coherent(Frame),
}

/// Where a page goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// Nowhere.
    Stay,
    Device(Frame),
    System(Slot),
}

/// One page of a migration, small or huge.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    page: Vpn,
    compound: bool,
    source: Source,
    /// Where the bytes of a system page are.
    slot: Slot,
    /// A frame on a tier that may still hold a system page.
    copy: Option<Frame>,
    /// A frame of somebody else's that the page is brought from.
    from: Option<Frame>,
    destination: Destination,
    migrated: bool,
    /// It comes home write-protected, if it can.
    protect: bool,
    /// When the migration ended its page was not where it was.
    elsewhere: bool,
}

impl Entry {
    const fn new(page: Vpn, source: Source) -> Self {
        Self {
            page,
            compound: false,
            source,
            slot: Slot(0),
            copy: None,
            from: None,
            destination: Destination::Stay,
            migrated: false,
            protect: false,
            elsewhere: false,
        }
    }

    /// The page.
    pub const fn page(&self) -> Vpn {
        self.page
    }

    /// Whether it stands for a huge page, which is the whole block: what is said of it is said of all 512 pages, frames
    /// and slots are the first of runs, and the 511 entries behind it are skipped ([`Skip::Compound`]).
    pub const fn is_compound(&self) -> bool {
        self.compound
    }

    /// The pages that it stands for.
    pub const fn nr_pages(&self) -> usize {
        if self.compound { BLOCK_PAGES } else { 1 }
    }

    /// What was collected of it.
    pub const fn source(&self) -> Source {
        self.source
    }

    /// Whether it was collected.
    pub const fn is_collected(&self) -> bool {
        !matches!(self.source, Source::Skipped(_))
    }

    /// Whether the migration has somewhere to take it.
    pub const fn has_destination(&self) -> bool {
        !matches!(self.destination, Destination::Stay)
    }

    /// Whether it went there; known behind [`Migration::pages`].
    pub const fn is_migrated(&self) -> bool {
        self.migrated
    }

    /// The frame that it went to, if it went to one.
    pub const fn frame(&self) -> Option<Frame> {
        match self.destination {
            Destination::Device(frame) if self.migrated => Some(frame),
            Destination::Stay | Destination::Device(_) | Destination::System(_) => None,
        }
    }
}

/// Pages are collected; none has another home yet.
#[derive(Debug)]
pub struct Collected;
/// Pages have their new homes.
#[derive(Debug)]
pub struct Committed;

/// Why there is no migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// No page, too many, or beyond the address space.
    #[error(
        "a migration takes 1 to {MAX_PAGES} pages of the 47-bit address space, not {0:?}: do it in parts"
    )]
    Range(PageRange),
    /// The device was removed, or is another owner's.
    #[error("the device is not one of this driver's: use what `add_device` returned, before `remove_device`")]
    NotYours,
}

/// A run of pages on their way, see the [module](self).
#[derive(Debug)]
#[must_use = "dropping a migration that is not committed undoes it"]
pub struct Migration<'e, K: Kernel, Stage> {
    engine: &'e Engine<K>,
    range: PageRange,
    owner: Owner,
    ticket: Ticket,
    entries: Vec<Entry>,
    /// The devices that pages go to: none of them is removed meanwhile.
    devices: Vec<Arc<Member>>,
    stage: PhantomData<Stage>,
}

impl<'e, K: Kernel> Migration<'e, K, Collected> {
    fn new(engine: &'e Engine<K>, range: PageRange, owner: Owner) -> Self {
        Self {
            engine,
            range,
            owner,
            ticket: engine.new_ticket(),
            entries: Vec::with_capacity(usize::try_from(range.nr_pages()).unwrap_or(0).min(MAX_PAGES)),
            // All memory is allocated now, see `settle_block`.
            devices: Vec::with_capacity(MAX_DEVICES),
            stage: PhantomData,
        }
    }
}

impl<K: Kernel> Migration<'_, K, Collected> {
    /// Pages that go back to where they were do so write-protected, see [`duplicate`](crate::duplicate).
    pub(crate) fn come_home_protected(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.protect = true);
    }
}

impl<K: Kernel, Stage> Migration<'_, K, Stage> {
    /// The pages, in the order of their addresses; for a range, one entry for each of its pages.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The driver that it is made for.
    pub const fn owner(&self) -> Owner {
        self.owner
    }

    /// How many pages were collected.
    pub fn nr_collected(&self) -> usize {
        self.entries.iter().filter(|entry| entry.is_collected()).map(Entry::nr_pages).sum()
    }

    /// How many have another home now. Zero in front of [`pages`](Self::pages).
    pub fn nr_migrated(&self) -> usize {
        self.entries.iter().filter(|entry| entry.is_migrated()).map(Entry::nr_pages).sum()
    }
}
