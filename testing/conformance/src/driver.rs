//! A driver as simple as one can be: it mirrors all memory of the process, keeps its device's page table under the
//! notifiers' lock, migrates to its device and back, and tells what it was told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hmm::AddressSpace;
use hmm::core::DeviceId;
use hmm::core::addr::{BLOCK_PAGES, PAGE_SIZE, PageRange, Vpn};
use hmm::core::driver::Select;
use hmm::core::mirror::{Found, Pfn, RangeError, RangeFault, Request};
use hmm::core::notifier::{Cause, Change, Notifier, Owner, Pass, Sequence, Watch};
use hmm::core::state::Frame;
use hmm::device::{Device, Fetch, MemKind};
use hmm::heap::Inside;
use hmm::mirror::{MigrateError, TakeError};
use hmm::uapi::process_vm;
use hmm::uapi::sys::gettid;

use crate::memory::Page;

/// All addresses.
const ALL: PageRange = PageRange { start: Vpn(0), end: Vpn(1 << 35) };
/// How long a range may go on changing.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the device finds a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// In system memory, at its own address.
    System {
        /// It may be written to.
        write: bool,
    },
    /// In its own memory.
    Frame(Frame),
    /// In system memory, at this address, for itself alone.
    Exclusive(u64),
}

/// The device's page table, and what was taken from it.
#[derive(Debug, Default)]
pub struct Table {
    /// Its entries.
    pub entries: BTreeMap<Vpn, Entry>,
    /// Every change that the driver was told of, but for its own.
    pub changes: Vec<Change>,
}

impl Table {
    fn drop_entries(&mut self, range: PageRange) {
        self.entries.retain(|page, _| !range.contains(*page));
    }
}

/// Drops entries when it is told to.
#[derive(Debug)]
pub struct Mirror(Owner);

impl Watch for Mirror {
    type Table = Table;

    fn ignores(&self, change: &Change) -> bool {
        matches!(change.cause, Cause::Migrate | Cause::Exclusive) && change.owner == Some(self.0)
    }

    fn invalidate(&self, table: &mut Table, change: &Change) -> Pass {
        table.drop_entries(change.range);
        table.changes.push(*change);
        Pass::Done
    }
}

/// See the module.
#[derive(Debug)]
pub struct Driver {
    space: AddressSpace,
    device: Arc<dyn Device>,
    owner: Owner,
    id: DeviceId,
    notifier: Notifier<Mirror>,
}

impl Driver {
    /// Adds a device to the space, and mirrors all memory for it.
    ///
    /// # Panics
    /// If there are too many devices.
    pub fn new(space: &AddressSpace, device: Arc<dyn Device>, owner: Owner) -> Self {
        // What callbacks touch must not be memory that can be away.
        let _inside = Inside::enter();
        let id = space.add_device(Arc::clone(&device), owner).expect("there are few devices");
        let notifier = space.watch(ALL, Arc::new(Mutex::new(Table::default())), Mirror(owner));
        Self { space: space.clone(), device, owner, id, notifier: notifier.expect("it is not empty") }
    }

    /// The address space.
    pub const fn space(&self) -> &AddressSpace {
        &self.space
    }

    /// Its device's number.
    pub const fn id(&self) -> DeviceId {
        self.id
    }

    /// Who it is.
    pub const fn owner(&self) -> Owner {
        self.owner
    }

    /// Its notifier, for what is not done here.
    pub const fn notifier(&self) -> &Notifier<Mirror> {
        &self.notifier
    }

    fn kind(&self) -> MemKind {
        self.device.caps().kind
    }

    /// What its device's pages are collected by.
    pub fn select(&self) -> Select {
        match self.kind() {
            MemKind::Private => Select::PRIVATE,
            MemKind::Coherent => Select::COHERENT,
        }
    }

    /// Takes pages of the range to the device, as many as can be. Returns how many went.
    ///
    /// # Panics
    /// If the memory cannot be managed.
    pub fn to_device(&self, range: PageRange) -> usize {
        self.try_to_device(range).expect("can be managed")
    }

    /// The same, of memory that may not be there.
    ///
    /// # Errors
    /// [`MigrateError`].
    pub fn try_to_device(&self, range: PageRange) -> Result<usize, MigrateError> {
        parts(range).map(|part| self.part_to_device(part)).sum()
    }

    fn part_to_device(&self, part: PageRange) -> Result<usize, MigrateError> {
        // Memory that is taken over is looked at anew, which collides: so it is done before.
        self.space.manage(part)?;
        let seq = self.notifier.read_begin();
        let mut migration = self.space.migrate_setup(part, Select::SYSTEM, self.owner)?;
        self.forget(part);
        // Nothing is taken by a device that was removed.
        let _ = migration.store(self.id);
        let migration = migration.pages();
        let frames: Vec<(Vpn, Frame)> =
            migration.entries().iter().filter_map(|entry| Some((entry.page(), entry.frame()?))).collect();
        self.enter_frames(seq, &frames);
        Ok(migration.finalize())
    }

    /// Makes entries for frames that pages were taken to since `seq`; if somebody else has changed something since, the next
    /// fault makes them.
    pub fn enter_frames(&self, seq: Sequence, frames: &[(Vpn, Frame)]) {
        let _inside = Inside::enter();
        // A coherent frame is mapped where the program has it.
        let entry = |frame| match self.kind() {
            MemKind::Private => Entry::Frame(frame),
            MemKind::Coherent => Entry::System { write: true },
        };
        let _ = self.notifier.install_own(seq, |table| {
            table.entries.extend(frames.iter().map(|(page, frame)| (*page, entry(*frame))));
        });
    }

    /// Drops the device's entries: what is about to migrate is accessed by nobody. The driver is not told of its own
    /// migrations.
    pub fn forget(&self, range: PageRange) {
        self.notifier.table().drop_entries(range);
    }

    /// Brings pages of the range home that are on the device. Returns how many came.
    ///
    /// # Panics
    /// If the memory cannot be managed.
    pub fn to_system(&self, range: PageRange) -> usize {
        self.try_to_system(range).expect("can be managed")
    }

    /// The same, of memory that may not be there.
    ///
    /// # Errors
    /// [`MigrateError`].
    pub fn try_to_system(&self, range: PageRange) -> Result<usize, MigrateError> {
        let home = |part| {
            let mut migration = self.space.migrate_setup(part, self.select(), self.owner)?;
            self.forget(part);
            migration.fetch();
            Ok(migration.pages().finalize())
        };
        parts(range).map(home).sum()
    }

    /// What the device's fault does: reads the range, has pages brought if they are wanted, and makes entries of what is
    /// there.
    ///
    /// # Errors
    /// [`RangeError`].
    pub fn fault(&self, range: PageRange, want: Request) -> Result<Vec<Pfn>, RangeError> {
        let mut pfns = vec![Pfn::default(); usize::try_from(range.nr_pages()).unwrap_or(0)];
        loop {
            let mut fault = RangeFault::all(range, want, Some(self.owner), &mut pfns);
            let seq = self.space.range_fault_within(&self.notifier, &mut fault, PATIENCE)?;
            let _inside = Inside::enter();
            let entered = self.notifier.install(seq, |table| {
                let found = range.iter().zip(&pfns).filter_map(|(page, pfn)| Some((page, entry(pfn)?)));
                table.entries.extend(found);
            });
            if entered.is_ok() {
                return Ok(pfns);
            }
        }
    }

    /// What is there, without faults.
    ///
    /// # Panics
    /// If the range goes on changing.
    pub fn look(&self, range: PageRange) -> Vec<Pfn> {
        self.fault(range, Request::NONE).expect("looking never fails")
    }

    /// How many pages of the range are on the device.
    ///
    /// # Panics
    /// As [`look`](Self::look).
    pub fn nr_on_device(&self, range: PageRange) -> usize {
        self.look(range).iter().filter(|pfn| self.is_mine(pfn)).count()
    }

    fn is_mine(&self, pfn: &Pfn) -> bool {
        match pfn.found {
            Found::Private(frame) => frame.device == self.id.number(),
            Found::Coherent(_, owner) => owner == self.owner,
            Found::None | Found::Error | Found::System { .. } => false,
        }
    }

    /// Takes a page exclusively; its address until the table has no entry for it any more.
    ///
    /// # Errors
    /// [`TakeError`].
    pub fn take(&self, page: Vpn) -> Result<u64, TakeError> {
        loop {
            // It is brought home before: if that had to happen in between, it would collide for ever.
            let _ = self.fault(PageRange::new(page, 1), Request::FAULT | Request::WRITE);
            let seq = self.notifier.read_begin();
            let addr = self.space.make_exclusive(page, self.owner)?.addr;
            let _inside = Inside::enter();
            let enter = |table: &mut Table| table.entries.insert(page, Entry::Exclusive(addr));
            if self.notifier.install_own(seq, enter).is_ok() {
                return Ok(addr);
            }
        }
    }

    /// The page's entry.
    pub fn entry(&self, page: Vpn) -> Option<Entry> {
        self.notifier.table().entries.get(&page).copied()
    }

    /// The page's bytes as the device has them in its memory; `None` if it has no such entry. It accesses a coherent frame
    /// as the CPU does.
    ///
    /// # Panics
    /// If the device does not give them.
    pub fn bytes(&self, page: Vpn) -> Option<Box<Page>> {
        let table = self.notifier.table();
        let entry = table.entries.get(&page).copied();
        let mut bytes = Box::new([0xA5; PAGE_SIZE]);
        if self.kind() == MemKind::Coherent && entry.is_some() {
            // Not with the table locked: an access may have to wait.
            drop(table);
            let read = process_vm::read(gettid(), page.addr(), &mut bytes[..]);
            assert_eq!(read, Ok(()), "a page that is mapped");
            return Some(bytes);
        }
        let Some(Entry::Frame(frame)) = entry else { return None };
        let transfer = self.device.fetch(Fetch { frames: &[frame.pfn], bytes: &mut bytes[..] });
        assert_eq!(transfer.stop, None, "fetch of a page that is on the device");
        Some(bytes)
    }

    /// What it was told since the last time.
    pub fn told(&self) -> Vec<Change> {
        std::mem::take(&mut self.notifier.table().changes)
    }
}

/// A range in parts that one migration takes.
fn parts(range: PageRange) -> impl Iterator<Item = PageRange> {
    let most = BLOCK_PAGES as u64;
    (range.start.0..range.end.0)
        .step_by(BLOCK_PAGES)
        .map(move |start| PageRange::new(Vpn(start), most.min(range.end.0 - start)))
}

fn entry(pfn: &Pfn) -> Option<Entry> {
    match pfn.found {
        Found::None | Found::Error => None,
        // The CPU reaches a coherent frame at the page's address; so does its own device.
        Found::System { .. } | Found::Coherent(..) => Some(Entry::System { write: pfn.write }),
        Found::Private(frame) => Some(Entry::Frame(frame)),
    }
}
