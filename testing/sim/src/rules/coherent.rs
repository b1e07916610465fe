//! Frames that the CPU reaches: what is mapped, who may have it, and what ends it.

use std::sync::{Arc, Mutex};

use hmm_core::addr::{PAGE_SIZE, Vpn};
use hmm_core::driver::{Collected, Committed, Migration, Select, Skip, Source};
use hmm_core::kernel::Stop;
use hmm_core::mirror::{Found, Pfn, RangeError, RangeFault, Request};
use hmm_core::notifier::{Cause, Notifier, Owner};
use hmm_core::state::PageState;
use hmm_core::{AddError, DeviceId, Engine, Outcome};
use hmm_device::{Caps, Device, DevicePfn, Fetch, MemKind, Ram, Store, Transfer, Usage};
use hmm_model::{Op, Pattern, Span};

use super::{DATA, Scribe, range, vpn};
use crate::device::{DeviceSetup, Frames, SimDevice};
use crate::kernel::SimKernel;
use crate::machine::Machine;
use crate::memory::{Entry, Held, Whose, zeroes};
use crate::setup::Setup;
use crate::world::World;
use crate::{check, runtime};

const OWNER: Owner = Owner(1);

/// A world with a coherent device of 64 frames.
struct Fixture {
    world: World,
    id: DeviceId,
    log: Notifier<Scribe>,
}

impl Fixture {
    fn new() -> Self {
        let setup = Setup { budget_pages: 1300, ..Setup::calm(1) };
        let arena = setup.arena.all();
        let world = World::new(setup);
        world.op(&Op::Map { span: arena });
        world.op(&Op::Fill { span: DATA, pattern: Pattern::Noise, stamp: 7 });
        let id = Self::add(&world, OWNER);
        let table = Arc::new(Mutex::new(Vec::new()));
        let log = Notifier::new(world.engine().notifiers(), Machine::range(arena), table, Scribe);
        Self { id, log: log.expect("has pages"), world }
    }

    /// Another coherent device.
    fn add(world: &World, owner: Owner) -> DeviceId {
        let shared = world.shared();
        let number = shared.lock().devices.len();
        let setup =
            DeviceSetup { capacity_pages: 64, keeps_copies: false, is_coherent: true, may_hang: false };
        shared.lock().devices.push(Frames::new(setup));
        let id = world.engine().add_device(Arc::new(SimDevice::new(shared, number)), owner);
        id.expect("there are few devices")
    }

    fn engine(&self) -> &Engine<SimKernel> {
        self.world.engine()
    }

    fn setup(&self, span: Span, select: Select, owner: Owner) -> Migration<'_, SimKernel, Collected> {
        self.engine().migrate_setup(Machine::range(span), select, owner).expect("a short range")
    }

    /// The data are in the device's frames, and not mapped yet.
    fn stored(&self) -> Migration<'_, SimKernel, Committed> {
        let mut migration = self.setup(DATA, Select::SYSTEM, OWNER);
        migration.store(self.id).expect("the device is its driver's");
        migration.pages()
    }

    fn take(&self, span: Span) -> usize {
        let mut migration = self.setup(span, Select::SYSTEM, OWNER);
        migration.store(self.id).expect("the device is its driver's");
        migration.pages().finalize()
    }

    /// The page's frame, if it is in one and mapped.
    fn frame(&self, page: u32) -> Option<DevicePfn> {
        if let PageState::Coherent { frame, .. } = self.engine().state(vpn(page)) {
            Some(frame.pfn)
        } else {
            None
        }
    }

    fn nr_mapped(&self, span: Span) -> usize {
        span.pages().filter(|page| self.frame(*page).is_some()).count()
    }

    fn nr_used(&self) -> usize {
        self.world.shared().lock().devices[usize::from(self.id.number())].used().count()
    }

    fn nr_charged(&self) -> u64 {
        self.world.shared().ledger.charged() - self.engine().nr_stock()
    }

    fn look(&self, span: Span, owner: Option<Owner>, want: Request) -> Vec<Pfn> {
        let mut pfns = vec![Pfn::default(); span.len as usize];
        let mut fault = RangeFault::all(Machine::range(span), want, owner, &mut pfns);
        self.engine().range_fault(&self.log, self.log.read_begin(), &mut fault).expect("can be read");
        pfns
    }

    /// Whether the drivers were told of a change of the page on nobody's behalf.
    fn is_told(&self, cause: Cause, page: u32) -> bool {
        let changes = std::mem::take(&mut *self.log.table());
        let is_it = |page: Vpn| {
            move |change: &hmm_core::notifier::Change| {
                change.cause == cause && change.owner.is_none() && change.range.contains(page)
            }
        };
        changes.iter().any(is_it(vpn(page)))
    }

    /// The program reads what it wrote, and everything is somewhere once.
    fn verify(&self) {
        runtime::settle(&self.world.shared(), self.engine());
        DATA.pages().for_each(|page| self.world.op(&Op::scan(Span::new(page, 1))));
        check::all(&self.world.shared(), self.engine());
        check::bytes(&self.world.shared(), self.engine());
    }
}

#[test]
fn the_cpu_accesses_pages_where_they_are() {
    let world = Fixture::new();
    let before = world.nr_charged();
    assert_eq!(world.take(DATA), 16);
    assert_eq!(world.nr_mapped(DATA), 16);
    assert_eq!(world.nr_charged(), before - 16, "what is in a device's memory is not charged");
    let nr_faults = world.world.shared().lock().nr_faults;
    world.world.op(&Op::Fill { span: DATA, pattern: Pattern::Noise, stamp: 8 });
    world.verify();
    assert_eq!(world.world.shared().lock().nr_faults, nr_faults, "no touch was a fault");
    assert_eq!((world.nr_mapped(DATA), world.nr_used()), (16, 16));
    // An old message of a fault changes nothing.
    assert_eq!(world.engine().fault(vpn(3)), Outcome::Done);
    assert_eq!(world.nr_mapped(DATA), 16);
}

#[test]
fn they_come_home_when_their_driver_wants_it() {
    let world = Fixture::new();
    world.take(DATA);
    let mut migration = world.setup(DATA, Select::COHERENT, OWNER);
    assert!(migration.entries().iter().all(|entry| matches!(entry.source(), Source::Coherent(_))));
    assert_eq!(migration.fetch(), 16);
    assert_eq!(migration.pages().finalize(), 16);
    assert_eq!((world.nr_mapped(DATA), world.nr_used()), (0, 0));
    world.verify();
}

#[test]
fn only_their_owner_collects_them_and_only_as_coherent() {
    let world = Fixture::new();
    world.take(DATA);
    let other = Fixture::add(&world.world, Owner(2));
    for (select, owner) in [
        (Select::SYSTEM | Select::PRIVATE, OWNER),
        (Select::SYSTEM | Select::PRIVATE | Select::COHERENT, Owner(2)),
    ] {
        let mut migration = world.setup(DATA, select, owner);
        let skipped = Source::Skipped(Skip::NotSelected);
        assert!(migration.entries().iter().all(|entry| entry.source() == skipped));
        let _ = migration.store(other);
        assert_eq!(migration.pages().finalize(), 0);
    }
    assert_eq!(world.nr_mapped(DATA), 16);
    world.verify();
}

#[test]
fn dropping_at_any_stage_restores_or_keeps() {
    let world = Fixture::new();
    let mut out = world.setup(DATA, Select::SYSTEM, OWNER);
    out.store(world.id).expect("is its driver's");
    drop(out);
    assert_eq!((world.nr_mapped(DATA), world.nr_used()), (0, 0), "as before");
    let mut out = world.setup(DATA, Select::SYSTEM, OWNER);
    out.store(world.id).expect("is its driver's");
    drop(out.pages());
    assert_eq!(world.nr_mapped(DATA), 16, "committed pages stay where they went");
    drop(world.setup(DATA, Select::COHERENT, OWNER));
    assert_eq!(world.nr_mapped(DATA), 16, "mapped again");
    let mut home = world.setup(DATA, Select::COHERENT, OWNER);
    home.fetch();
    drop(home);
    assert_eq!((world.nr_mapped(DATA), world.nr_used()), (16, 16));
    world.verify();
}

#[test]
fn what_could_not_be_mapped_is_when_it_is_touched() {
    let world = Fixture::new();
    let migration = world.stored();
    // The program is in the middle of something.
    world.world.start(&Op::Unmap { span: Span::new(300, 2) });
    let shared = world.world.shared();
    while shared.lock().events.is_empty() {
        assert!(shared.lock().advance_any());
    }
    assert_eq!(migration.finalize(), 16);
    assert_eq!((world.nr_mapped(DATA), world.nr_used()), (0, 16));
    let found = world.look(Span::new(0, 2), Some(OWNER), Request::NONE);
    assert!(found.iter().all(|pfn| pfn.found == Found::None), "faultable, and not at its own address");
    world.verify();
    assert_eq!((world.nr_mapped(DATA), world.nr_used()), (16, 16), "no touch brings them home");
}

#[test]
fn every_driver_sees_whose_they_are() {
    let world = Fixture::new();
    world.take(DATA);
    for owner in [None, Some(OWNER), Some(Owner(9))] {
        let want = Request::FAULT | Request::WRITE;
        for pfn in world.look(DATA, owner, want) {
            assert!(matches!(pfn.found, Found::Coherent(_, OWNER)) && pfn.write, "{pfn:?}");
        }
    }
    world.world.op(&Op::Protect { span: Span::new(0, 4), writable: false });
    assert!(world.look(Span::new(0, 4), None, Request::NONE).iter().all(|pfn| !pfn.write));
    assert_eq!(world.nr_mapped(DATA), 16, "a change of protection keeps them");
    // A read-only page cannot be taken out of the program.
    let migration = world.setup(Span::new(0, 5), Select::COHERENT, OWNER);
    assert_eq!(migration.entries()[0].source(), Source::Skipped(Skip::Busy));
    assert!(matches!(migration.entries()[4].source(), Source::Coherent(_)));
    drop(migration);
    world.verify();
}

#[test]
fn holes_become_zeroed_frames() {
    let world = Fixture::new();
    let holes = Span::new(100, 40);
    assert_eq!(world.take(holes), 40);
    assert_eq!(world.nr_mapped(holes), 40);
    holes.pages().for_each(|page| world.world.op(&Op::scan(Span::new(page, 1))));
    world.verify();
}

#[test]
fn a_frame_ends_with_its_page_and_moves_with_it() {
    let world = Fixture::new();
    world.take(DATA);
    world.world.op(&Op::DontNeed { span: Span::new(0, 4) });
    assert_eq!(world.nr_used(), 12, "discarded");
    world.world.op(&Op::Unmap { span: Span::new(4, 4) });
    assert_eq!(world.nr_used(), 8, "unmapped");
    let frames: Vec<_> = (8..16).map(|page| world.frame(page)).collect();
    world.world.op(&Op::Remap { from: 8, to: 520, len: 8, keep_source: true });
    assert_eq!((520..528).map(|page| world.frame(page)).collect::<Vec<_>>(), frames, "moved");
    check::all(&world.world.shared(), world.engine());
    check::bytes(&world.world.shared(), world.engine());
    let mut migration = world
        .engine()
        .migrate_device_range(world.id, DevicePfn(0)..DevicePfn(64), Select::COHERENT, OWNER)
        .expect("its own");
    assert_eq!(migration.fetch(), 8, "found by their frames");
    assert_eq!(migration.pages().finalize(), 8);
    assert_eq!(world.nr_used(), 0);
    check::all(&world.world.shared(), world.engine());
    check::bytes(&world.world.shared(), world.engine());
}

#[test]
fn pages_that_went_without_a_word_free_their_frames() {
    let world = Fixture::new();
    world.take(DATA);
    {
        let shared = world.world.shared();
        let mut machine = shared.lock();
        machine.memory.zap(Span::new(3, 2));
        machine.apply(&Op::DontNeed { span: Span::new(3, 2) });
    }
    // One is touched, the other one is looked for by its driver.
    let _ = world.is_told(Cause::Clear, 0);
    world.world.op(&Op::Read { page: 3, word: 0 });
    assert!(world.is_told(Cause::Clear, 3), "its driver may have an entry");
    assert_eq!(world.nr_used(), 15);
    let mut migration = world.setup(DATA, Select::COHERENT, OWNER);
    assert_eq!(migration.nr_collected(), 14);
    assert_eq!(world.nr_used(), 14, "known to be gone");
    migration.fetch();
    assert_eq!(migration.pages().finalize(), 14);
    assert_eq!((world.nr_used(), world.nr_mapped(DATA)), (0, 0));
    world.verify();
}

/// The program has a page of zeroes, of which nobody has told, where one is about to be mapped. Gives the frames and pages
/// that count by then; what was told before is forgotten.
fn replace(world: &Fixture, page: u32) -> (usize, u64) {
    let shared = world.world.shared();
    let mut machine = shared.lock();
    assert!(machine.memory.is_hole(page));
    machine.apply(&Op::DontNeed { span: Span::new(page, 1) });
    machine.memory.put(page, Entry::Present { bytes: zeroes(), held: Held::No, of: Whose::System });
    machine.strangers.insert(page);
    drop(machine);
    let _ = world.is_told(Cause::Clear, 0);
    (world.nr_used(), world.nr_charged())
}

/// The frame is free, its driver was told, and the program's page is charged.
fn is_replaced(world: &Fixture, page: u32, (used, charged): (usize, u64)) {
    assert_eq!(world.engine().state(vpn(page)), PageState::System { copy: None });
    world.world.shared().lock().strangers.remove(&page);
    assert!(world.is_told(Cause::Clear, page), "its driver may have an entry");
    assert_eq!(world.nr_used(), used - 1, "its frame is nobody's");
    assert_eq!(world.nr_charged(), charged + 1, "what was found is resident");
    world.verify();
    assert_eq!(world.nr_used(), used - 1);
}

#[test]
fn a_page_of_the_programs_own_replaces_one_that_is_to_be_mapped() {
    let world = Fixture::new();
    let migration = world.stored();
    let before = replace(&world, 3);
    assert_eq!(migration.finalize(), 16);
    is_replaced(&world, 3, before);
}

#[test]
fn a_page_of_the_programs_own_replaces_one_that_is_touched() {
    let world = Fixture::new();
    let migration = world.stored();
    // None of them can be mapped now.
    world.world.shared().lock().kernel_plan.fail_next(1, Stop::Changing);
    assert_eq!((migration.finalize(), world.nr_mapped(DATA)), (16, 0));
    let before = replace(&world, 3);
    assert_eq!(world.engine().fault(vpn(3)), Outcome::Done);
    is_replaced(&world, 3, before);
}

#[test]
fn reclaim_passes_them_by() {
    let world = Fixture::new();
    world.take(Span::new(0, 8));
    assert_eq!(world.engine().evict_range(range(0, 16)), 8, "the other half leaves");
    while world.engine().reclaim() == hmm_core::Reclaimed::Progress {}
    assert_eq!(world.nr_mapped(DATA), 8);
    world.verify();
    assert_eq!((world.nr_mapped(DATA), world.nr_used()), (8, 8));
}

#[test]
fn exclusive_pages_leave_the_device_first() {
    let world = Fixture::new();
    world.take(DATA);
    let exclusive = world.engine().make_exclusive(vpn(3), Owner(5));
    assert!(exclusive.is_ok(), "{exclusive:?}");
    assert!(world.is_told(Cause::Clear, 3), "its driver is told");
    assert_eq!(world.nr_used(), 15);
    world.verify();
}

#[test]
fn pages_that_are_shared_by_a_fork_are_unshared_or_left() {
    let world = Fixture::new();
    world.take(DATA);
    world.world.shared().lock().memory.hold(DATA, Held::Shared);
    let migration = world.setup(DATA, Select::COHERENT, OWNER);
    assert!(migration.entries().iter().all(|entry| entry.source() == Source::Skipped(Skip::Busy)));
    drop(migration);
    assert!(world.look(DATA, None, Request::NONE).iter().all(|pfn| !pfn.write), "a write makes a copy");
    assert_eq!(world.engine().remove_device(world.id), Ok(()));
    assert_eq!(world.nr_mapped(DATA), 0);
    world.verify();
}

#[test]
fn what_is_written_after_a_fork_is_system_memory() {
    let world = Fixture::new();
    let before = world.nr_charged();
    world.take(DATA);
    world.engine().share_frames();
    world.world.shared().lock().memory.hold(DATA, Held::Shared);
    let found = world.look(DATA, Some(OWNER), Request::NONE);
    let is_shared = |pfn: &Pfn| matches!(pfn.found, Found::Coherent(..)) && !pfn.write;
    assert!(found.iter().all(is_shared), "both sides have the frame");
    world.world.op(&Op::Write { page: 3, word: 1, value: 2 });
    let mut pfns = [Pfn::default(); 16];
    let mut fault = RangeFault::snapshot(Machine::range(DATA), None, &mut pfns);
    let seq = world.log.read_begin();
    assert_eq!(world.engine().range_fault(&world.log, seq, &mut fault), Err(RangeError::Busy));
    let changes = std::mem::take(&mut *world.log.table());
    let cleared = changes.iter().filter(|change| change.cause == Cause::Clear);
    let pages: Vec<Vpn> = cleared.flat_map(|change| change.range.iter()).collect();
    assert_eq!(pages, [vpn(3)], "its driver is told, and of no other page");
    let found = world.look(DATA, Some(OWNER), Request::NONE);
    assert_eq!((found[3].found, found[3].write), (Found::System { zero: false }, true));
    assert_eq!(found.iter().filter(|pfn| is_shared(pfn)).count(), 15);
    assert_eq!((world.nr_used(), world.nr_charged()), (15, before - 15));
    // A driver that wants them has copies made, too.
    world.world.shared().lock().memory.hold(DATA, Held::No);
    let mut migration = world.setup(DATA, Select::SYSTEM | Select::COHERENT, OWNER);
    assert_eq!(migration.entries().iter().filter(|entry| entry.source() == Source::System).count(), 16);
    migration.store(world.id).expect("is its driver's");
    assert_eq!(migration.pages().finalize(), 16);
    assert_eq!(world.nr_mapped(DATA), 16);
    world.verify();
}

#[test]
fn a_device_that_goes_away_leaves_its_pages_with_the_program() {
    let world = Fixture::new();
    let before = world.nr_charged();
    world.take(DATA);
    // One of them cannot be moved.
    world.world.shared().lock().memory.hold(Span::new(5, 1), Held::Pinned);
    let _ = world.is_told(Cause::Clear, 0);
    assert_eq!(world.engine().remove_device(world.id), Ok(()));
    assert!(world.is_told(Cause::Clear, 9));
    assert_eq!((world.nr_mapped(DATA), world.nr_used()), (0, 0));
    assert_eq!(world.nr_charged(), before, "they are system memory again");
    world.world.shared().lock().memory.hold(Span::new(5, 1), Held::No);
    world.verify();
}

/// Says that it is coherent, and gives no memory, or not enough.
#[derive(Debug)]
struct Liar(Ram, Option<std::ops::Range<u64>>);

impl Device for Liar {
    fn caps(&self) -> Caps {
        Caps { kind: MemKind::Coherent, ..self.0.caps() }
    }

    fn usage(&self) -> Usage {
        self.0.usage()
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        self.0.alloc(frames)
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        self.0.store(run)
    }

    fn fetch(&self, run: Fetch<'_>) -> Transfer {
        self.0.fetch(run)
    }

    fn free(&self, frames: &[DevicePfn]) {
        self.0.free(frames);
    }

    fn memory(&self) -> Option<std::ops::Range<u64>> {
        self.1.clone()
    }
}

#[test]
fn a_coherent_device_has_memory() {
    let world = Fixture::new();
    let page = PAGE_SIZE as u64;
    let start = 0x6000_0000_0000;
    for wrong in [None, Some(start..start + 63 * page), Some(start + 1..start + 1 + 64 * page)] {
        let added = world.engine().add_device(Arc::new(Liar(Ram::new(64), wrong)), OWNER);
        assert_eq!(added, Err(AddError::Memory));
    }
    world.verify();
}
