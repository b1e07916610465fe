//! A driver with a device of its own: it mirrors the arena, migrates pages to its device and back, and its device reads
//! and writes the program's memory through a page table of its own.
//!
//! The driver is a thread like the runtime's others: between any two of its steps everybody else may come first. It may
//! leave pages out, and drop a migration at any stage.

mod copies;
mod held;

pub(crate) use held::held;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};

use hmm_core::addr::{BLOCK_PAGES, PageRange, Slot, Vpn};
use hmm_core::driver::{Collected, MAX_PAGES, Migration, RemoveError, Select, Source};
use hmm_core::notifier::{Cause, Change, Notifier, Owner, Pass, Sequence, Watch};
use hmm_core::state::{Frame, PageState};
use hmm_core::{DeviceId, Engine, HeldFrame};
use hmm_device::{Device, DevicePfn, MemKind, PAGE_SIZE};
use hmm_model::{Entropy, Generator, Mix, Op, Span};

use crate::device::SimDevice;
use crate::kernel::{SimKernel, slot_at};
use crate::machine::Machine;
use crate::memory::{Bytes, Entry};
use crate::shared::Shared;

type SimEngine = Engine<SimKernel>;
/// The device's page table.
type Table = BTreeMap<Vpn, Mapping>;

/// Where the device finds a page.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Mapping {
    Frame(Frame),
    /// Where the program has it.
    Coherent(Frame),
    /// In system memory, and the device reads a copy of its own.
    Copy(Bytes),
    /// In system memory, and nobody else accesses it.
    Exclusive(Slot),
}

/// Drops entries when it is told to.
#[derive(Debug)]
struct Mirror {
    owner: Owner,
}

impl Watch for Mirror {
    type Table = Table;

    fn ignores(&self, change: &Change) -> bool {
        matches!(change.cause, Cause::Migrate | Cause::Exclusive) && change.owner == Some(self.owner)
    }

    fn invalidate(&self, table: &mut Table, change: &Change) -> Pass {
        drop_entries(table, change.range);
        Pass::Done
    }
}

fn drop_entries(table: &mut Table, range: PageRange) {
    table.retain(|page, _| !range.contains(*page));
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Driver {
    id: DeviceId,
    owner: Owner,
    /// The engine has it; it has the world, which has the driver.
    device: Weak<SimDevice>,
    notifier: Notifier<Mirror>,
    removed: AtomicBool,
    /// Frames that it refers to, whatever becomes of their pages.
    held: Mutex<Vec<HeldFrame>>,
    /// Changes of its own, which it ignores as a notifier's.
    nr_changes: AtomicU32,
}

impl Driver {
    /// The driver of device `number`.
    pub(crate) fn new(shared: &Arc<Shared>, engine: &SimEngine, number: u8) -> Self {
        let owner = Owner(u64::from(number));
        let device = Arc::new(SimDevice::new(Arc::clone(shared), usize::from(number)));
        let weak = Arc::downgrade(&device);
        let id = engine.add_device(device, owner).expect("there are few devices");
        assert_eq!(id.number(), number, "devices are numbered in the order in which they come");
        let arena = Machine::range(shared.lock().arena().all());
        let table = Arc::new(Mutex::new(Table::new()));
        let notifier =
            Notifier::new(engine.notifiers(), arena, table, Mirror { owner }).expect("an arena has pages");
        Self {
            id,
            owner,
            device: weak,
            notifier,
            removed: AtomicBool::new(false),
            held: Mutex::default(),
            nr_changes: AtomicU32::new(0),
        }
    }
}

/// A driver does something.
pub(crate) fn act(shared: &Shared, engine: &SimEngine) {
    let (driver, range, choice) = {
        let mut machine = shared.lock();
        let nr_drivers = u32::try_from(shared.drivers().len()).expect("few drivers");
        let driver = &shared.drivers()[machine.entropy.below(nr_drivers) as usize];
        (driver, any_range(&mut machine), machine.entropy.below(11))
    };
    if driver.removed.load(Ordering::Relaxed) {
        return;
    }
    match choice {
        0 | 1 => driver.migrate_to_device(shared, engine, range),
        2 => driver.migrate_to_system(shared, engine, range),
        3 => driver.map_frames(shared, engine, range),
        4 => driver.take_exclusively(shared, engine, range.start),
        6 => driver.hold_or_let_go(shared, engine, range.start),
        // As if the program forked.
        5 => engine.share_frames(),
        7 | 8 => driver.duplicate(shared, engine, range),
        _ => driver.access(shared, range),
    }
}

/// A run of pages such as programs like.
fn any_range(machine: &mut Machine) -> PageRange {
    let generator = Generator { arena: machine.arena(), mix: Mix::PROGRAM };
    let span = loop {
        if let Some(span) = generator.op(&mut machine.entropy).span() {
            break span;
        }
    };
    if machine.depth == 0 && machine.entropy.one_in(3) {
        // A whole block, which may be a huge page.
        let block = machine.block_of(span.first);
        return Machine::range(block);
    }
    // What happens in the middle of something else is short.
    let most = if machine.depth == 0 { MAX_PAGES } else { 16 };
    let most = u32::try_from(most).expect("a block is small");
    Machine::range(Span::new(span.first, span.len.min(most)))
}

impl Driver {
    fn migrate_to_device(&self, shared: &Shared, engine: &SimEngine, range: PageRange) {
        self.nr_changes.fetch_add(1, Ordering::Relaxed);
        let seq = self.notifier.read_begin();
        let select = compound(shared, Select::SYSTEM);
        let select = if shared.lock().entropy.one_in(3) { select | Select::FAULT } else { select };
        let mut migration = engine.migrate_setup(range, select, self.owner).expect("a short range");
        drop_entries(&mut self.notifier.table(), range);
        shared.lock().note(|| format!("{:?} takes {} of {range:?}", self.owner, migration.nr_collected()));
        shared.intervene();
        if self.gives_up(shared) {
            return;
        }
        if shared.lock().entropy.one_in(2) {
            migration.store(self.id).expect("the device is ours");
        } else {
            self.store_some(shared, &mut migration);
        }
        shared.intervene();
        if self.gives_up(shared) {
            return;
        }
        let destined = migration.entries().iter().filter(|entry| entry.has_destination());
        let nr_destined: usize = destined.map(hmm_core::driver::Entry::nr_pages).sum();
        let migration = migration.pages();
        shared.intervene();
        let frames: Vec<(Vpn, Frame)> = migration.entries().iter().flat_map(frames_of).collect();
        shared.lock().note(|| format!("{:?} has {} pages of {range:?}", self.owner, frames.len()));
        self.install(shared, seq, &frames);
        shared.lock().count("migrated", frames.len());
        shared.lock().count("overtaken", nr_destined - frames.len());
        shared.intervene();
        if !self.gives_up(shared) {
            assert_eq!(migration.finalize(), frames.len(), "what migrated went to frames");
        }
    }

    /// The driver ends a migration where it is.
    fn gives_up(&self, shared: &Shared) -> bool {
        let mut machine = shared.lock();
        let gives_up = machine.entropy.one_in(10);
        if gives_up {
            machine.note(|| format!("{:?} drops its migration", self.owner));
        }
        gives_up
    }

    /// Copies page by page, and leaves some out.
    fn store_some(&self, shared: &Shared, migration: &mut Migration<'_, SimKernel, Collected>) {
        let device = self.device.upgrade().expect("the engine keeps it");
        for index in 0..migration.entries().len() {
            let source = migration.entries()[index].source();
            if !matches!(source, Source::Hole | Source::System) || shared.lock().entropy.one_in(4) {
                continue;
            }
            if migration.entries()[index].is_compound() {
                if self.store_large(shared, &device, migration, index) {
                    continue;
                }
                assert!(migration.split(index), "a huge page without a destination");
                assert!(!migration.split(index), "it is none any more");
            }
            let mut page = [0; PAGE_SIZE];
            let has_bytes = migration.with_bytes(index, &mut |bytes| page.copy_from_slice(bytes));
            assert_eq!(has_bytes, source == Source::System, "only pages have bytes");
            let mut frames = [DevicePfn::default()];
            if device.alloc(&mut frames) == 0 {
                return;
            }
            shared.lock().devices[self.index()].store(frames[0], &page);
            migration.set_frame(index, self.id, frames[0]).expect("it was collected");
            let again = migration.set_frame(index, self.id, frames[0]);
            assert!(again.is_err(), "a page has one destination");
        }
    }

    /// Copies a huge page to a large run, or says that it does not.
    fn store_large(
        &self,
        shared: &Shared,
        device: &SimDevice,
        migration: &mut Migration<'_, SimKernel, Collected>,
        index: usize,
    ) -> bool {
        if shared.lock().entropy.one_in(3) {
            return false;
        }
        let Some(first) = device.alloc_large() else { return false };
        let mut bytes = vec![0; BLOCK_PAGES * PAGE_SIZE];
        migration.with_bytes(index, &mut |huge| bytes.copy_from_slice(huge));
        let (pages, _) = bytes.as_chunks();
        for (number, page) in pages.iter().enumerate() {
            shared.lock().devices[self.index()].store(first.add(number), page);
        }
        assert!(migration.set_frame(index, self.id, first).is_err(), "a huge page goes to a large run");
        migration.set_large_frame(index, self.id, first).expect("it was collected");
        shared.lock().count("large", 1);
        true
    }

    fn migrate_to_system(&self, shared: &Shared, engine: &SimEngine, range: PageRange) {
        self.nr_changes.fetch_add(1, Ordering::Relaxed);
        let own = if self.is_coherent() { Select::COHERENT } else { Select::PRIVATE };
        let select = if shared.lock().entropy.one_in(3) { own | Select::SYSTEM } else { own };
        let select = compound(shared, select);
        let mut migration = engine.migrate_setup(range, select, self.owner).expect("a short range");
        // The device lets go of the frames before they are read: the driver is not told of its own migrations.
        drop_entries(&mut self.notifier.table(), range);
        shared.intervene();
        if self.gives_up(shared) {
            return;
        }
        let fetched = if shared.lock().entropy.one_in(2) {
            migration.fetch()
        } else {
            self.fetch_some(shared, &mut migration)
        };
        shared.lock().note(|| format!("{:?} fetched {fetched} of {range:?}", self.owner));
        shared.intervene();
        if self.gives_up(shared) {
            return;
        }
        let migration = migration.pages();
        shared.intervene();
        assert!(migration.nr_migrated() <= fetched, "what was not fetched stays");
        let nr_home = migration.finalize();
        shared.lock().count("came_home", nr_home);
        shared.lock().count("stayed_away", fetched - nr_home);
    }

    /// Copies page by page, and leaves some out.
    fn fetch_some(&self, shared: &Shared, migration: &mut Migration<'_, SimKernel, Collected>) -> usize {
        let mut nr_filled = 0;
        for index in 0..migration.entries().len() {
            let (Source::Private(frame) | Source::Coherent(frame)) = migration.entries()[index].source()
            else {
                continue;
            };
            if shared.lock().entropy.one_in(4) {
                continue;
            }
            let nr_pages = migration.entries()[index].nr_pages();
            let mut fill = |bytes: &mut [u8]| {
                let (pages, _) = bytes.as_chunks_mut::<PAGE_SIZE>();
                assert_eq!(pages.len(), nr_pages, "room for what was collected");
                for (number, page) in pages.iter_mut().enumerate() {
                    let content = shared.lock().devices[self.index()].bytes(frame.pfn.add(number)).cloned();
                    page.copy_from_slice(&content.expect("a collected frame holds bytes")[..]);
                }
            };
            if migration.fill_system(index, &mut fill).is_ok() {
                nr_filled += nr_pages;
            } else if migration.split(index)
                && migration
                    .fill_system(index, &mut |bytes| {
                        let content = shared.lock().devices[self.index()].bytes(frame.pfn).cloned();
                        bytes.copy_from_slice(&content.expect("a collected frame holds bytes")[..]);
                    })
                    .is_ok()
            {
                nr_filled += 1;
            }
        }
        nr_filled
    }

    fn is_coherent(&self) -> bool {
        self.device.upgrade().is_some_and(|device| device.caps().kind == MemKind::Coherent)
    }

    fn index(&self) -> usize {
        usize::from(self.id.number())
    }

    /// Entries for frames.
    fn frames_of(&self, frames: &[(Vpn, Frame)]) -> impl Iterator<Item = (Vpn, Mapping)> {
        let mapping = if self.is_coherent() { Mapping::Coherent } else { Mapping::Frame };
        frames.iter().map(move |(page, frame)| (*page, mapping(*frame)))
    }

    /// Maps what has migrated since `seq`.
    fn install(&self, shared: &Shared, seq: Sequence, frames: &[(Vpn, Frame)]) {
        let installed = self.notifier.install_own(seq, |table| table.extend(self.frames_of(frames))).is_ok();
        shared.lock().count(if installed { "installed" } else { "collided" }, 1);
    }

    /// The device takes a page to itself.
    fn take_exclusively(&self, shared: &Shared, engine: &SimEngine, page: Vpn) {
        self.nr_changes.fetch_add(1, Ordering::Relaxed);
        let seq = self.notifier.read_begin();
        let made = engine.make_exclusive(page, self.owner);
        drop_entries(&mut self.notifier.table(), PageRange::new(page, 1));
        shared.lock().note(|| format!("{:?} takes {page:?} exclusively: {made:?}", self.owner));
        let Ok(exclusive) = made else { return };
        shared.intervene();
        let mapping = Mapping::Exclusive(slot_at(exclusive.addr));
        let installed = self.notifier.install_own(seq, |table| table.insert(page, mapping)).is_ok();
        shared.lock().count(if installed { "exclusive" } else { "not_exclusive" }, 1);
    }

    /// The device is taken out of the running machine.
    pub(crate) fn remove(&self, shared: &Shared, engine: &SimEngine) {
        self.let_go(shared, usize::MAX);
        let removed = engine.remove_device(self.id);
        shared.lock().note(|| format!("{:?} is removed: {removed:?}", self.owner));
        // Whatever came of it, no page goes there any more.
        self.removed.store(true, Ordering::Relaxed);
        match removed {
            Ok(()) => {
                let machine = shared.lock();
                assert_eq!(machine.devices[self.index()].used().count(), 0, "a removed device has no frames");
                drop(machine);
                shared.lock().count("removed", 1);
            }
            Err(RemoveError::NoMemory) => {}
            Err(error) => panic!("nobody uses the device: {error}"),
        }
    }

    /// What a fault of the device does: maps those pages of the range that are on the device.
    fn map_frames(&self, shared: &Shared, engine: &SimEngine, range: PageRange) {
        let seq = self.notifier.read_begin();
        let frames: Vec<(Vpn, Frame)> = range
            .iter()
            .filter_map(|page| {
                let (PageState::Device { frame } | PageState::Coherent { frame, .. }) = engine.state(page)
                else {
                    return None;
                };
                (engine.owner_of(frame) == Some(self.owner)).then_some((page, frame))
            })
            .collect();
        // Others act meanwhile, and other threads of this driver.
        shared.intervene();
        let installed = self.notifier.install(seq, |table| table.extend(self.frames_of(&frames))).is_ok();
        shared.lock().count(if installed { "mapped" } else { "collided" }, 1);
    }

    /// The device reads and writes pages that its table maps.
    fn access(&self, shared: &Shared, range: PageRange) {
        let table = self.notifier.table();
        let mut machine = shared.lock();
        // Of an unmapping the engine hears when it is over.
        if machine.devices[self.index()].is_lost() || machine.events.is_changing() {
            return;
        }
        for (page, mapping) in table.range(range.start..range.end) {
            let number = machine.page(*page).expect("the arena is mirrored");
            if machine.dropping.iter().any(|span| span.contains(number)) {
                // The program discards it just now: what was there and zeroes are both right.
                continue;
            }
            // A coherent frame may not be mapped yet: its device would wait for the fault.
            let Some(mut bytes) = self.bytes(&mut machine, number, mapping) else { continue };
            machine.check_page(number, &bytes);
            if matches!(mapping, Mapping::Copy(_)) {
                machine.count("copy_reads", 1);
                continue;
            }
            let (word, value) = (7, machine.entropy.bits());
            let write = Op::Write { page: number, word, value };
            if machine.entropy.one_in(2) && machine.model.check(&write).is_ok() {
                machine.note(|| format!("{:?} writes {value:#x} to page {number}", self.owner));
                let at = usize::from(word) * 8;
                Arc::make_mut(&mut bytes)[at..at + 8].copy_from_slice(&value.to_ne_bytes());
                self.write(&mut machine, number, mapping, bytes);
                machine.apply(&write);
                let what = match mapping {
                    Mapping::Frame(_) => "device_writes",
                    Mapping::Coherent(_) => "coherent_writes",
                    Mapping::Exclusive(_) | Mapping::Copy(_) => "exclusive_writes",
                };
                machine.count(what, 1);
            }
        }
    }

    fn bytes(&self, machine: &mut Machine, page: u32, mapping: &Mapping) -> Option<Bytes> {
        match *mapping {
            Mapping::Frame(frame) => Some(machine.devices[self.index()].bytes_mut(frame.pfn).clone()),
            Mapping::Exclusive(slot) => Some(machine.slots.page_mut(slot).clone()),
            Mapping::Copy(ref bytes) => Some(Arc::clone(bytes)),
            Mapping::Coherent(_) => match machine.memory.entry(page)? {
                Entry::Present { bytes, .. } => Some(Arc::clone(bytes)),
                Entry::Poisoned => None,
            },
        }
    }

    fn write(&self, machine: &mut Machine, page: u32, mapping: &Mapping, bytes: Bytes) {
        match *mapping {
            Mapping::Frame(frame) => *machine.devices[self.index()].bytes_mut(frame.pfn) = bytes,
            Mapping::Exclusive(slot) => *machine.slots.page_mut(slot) = bytes,
            Mapping::Copy(_) => unreachable!("copies are read-only"),
            Mapping::Coherent(_) => machine.memory.write(page, bytes),
        }
    }
}

/// Half of the drivers know huge pages.
fn compound(shared: &Shared, select: Select) -> Select {
    if shared.lock().entropy.one_in(2) { select | Select::COMPOUND } else { select }
}

/// Where the pages of an entry went.
fn frames_of(entry: &hmm_core::driver::Entry) -> Vec<(Vpn, Frame)> {
    let Some(first) = entry.frame() else { return Vec::new() };
    let frame = |index: usize| Frame { pfn: first.pfn.add(index), ..first };
    (0..entry.nr_pages()).map(|index| (entry.page().add(index as u64), frame(index))).collect()
}

/// What a device's table maps is where the page is (I2).
pub(crate) fn check(shared: &Shared, machine: &Machine, engine: &SimEngine) {
    for driver in shared.drivers() {
        for (page, mapping) in driver.notifier.table().iter() {
            let number = machine.page(*page);
            let state = engine.state(*page);
            let is_there = match *mapping {
                Mapping::Frame(frame) => state == PageState::Device { frame },
                Mapping::Exclusive(slot) => state == PageState::Exclusive { slot },
                Mapping::Copy(ref copy) => {
                    copies::check(machine, number.expect("the arena is mirrored"), copy);
                    matches!(state, PageState::System { .. })
                }
                // At the program's address, or there as soon as it is touched.
                Mapping::Coherent(frame) => {
                    matches!(state, PageState::Coherent { frame: at, .. } | PageState::Device { frame: at } if at == frame)
                }
            };
            assert!(is_there, "{:?} maps page {number:?} elsewhere: {state:?}", driver.owner);
        }
    }
}
