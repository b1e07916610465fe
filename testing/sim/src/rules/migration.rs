//! Migration both ways: what is collected, by whom, and what becomes of it.

use hmm_core::driver::{Entry, RefusedDestination, Select, SetupError, Skip, Source};
use hmm_core::kernel::Stop;
use hmm_core::notifier::Cause;
use hmm_core::state::PageState;
use hmm_core::{Outcome, addr};
use hmm_model::{Op, Span};

use super::{DATA, Fixture, NR_FRAMES, range, vpn};
use crate::setup::Setup;
use crate::{Failure, Verb};

#[test]
fn pages_go_and_come_home_when_they_are_touched() {
    let world = Fixture::new();
    assert_eq!(world.take(DATA), 16);
    assert!((0..16).all(|page| world.is_away(page)));
    assert_eq!(world.one.nr_used(), 16);
    world.verify();
}

#[test]
fn the_driver_brings_pages_home() {
    let world = Fixture::new();
    world.take(DATA);
    let mut migration = world.setup(DATA, Select::PRIVATE, &world.one);
    assert_eq!(migration.nr_collected(), 16);
    assert_eq!(migration.fetch(), 16);
    assert_eq!(migration.pages().finalize(), 16);
    assert!((0..16).all(|page| !world.is_away(page)));
    assert_eq!(world.one.nr_used(), 0, "frames are freed");
    world.verify();
}

#[test]
fn a_page_that_is_left_out_stays_where_it_is() {
    let world = Fixture::new();
    let mut migration = world.setup(DATA, Select::SYSTEM, &world.one);
    let frame = world.one.frame();
    let mut stored = Vec::new();
    assert!(migration.with_bytes(3, &mut |bytes| stored = bytes.to_vec()));
    let store = hmm_device::Store { frames: &[frame], bytes: &stored, access: Default::default() };
    assert_eq!(hmm_device::Device::store(&*world.one.device, store).done, 1);
    migration.set_frame(3, world.one.id, frame).expect("is collected");
    let migration = migration.pages();
    assert_eq!(migration.nr_migrated(), 1);
    assert_eq!(migration.entries()[3].frame().map(|frame| frame.pfn), Some(frame));
    migration.finalize();
    let away: Vec<u32> = (0..16).filter(|page| world.is_away(*page)).collect();
    assert_eq!(away, [3]);
    // The same the other way: what is not filled stays on the device.
    world.take(DATA);
    let migration = world.setup(DATA, Select::PRIVATE, &world.one);
    assert_eq!(migration.nr_collected(), 16);
    let refused = migration.with_bytes(0, &mut |_| panic!("a page on a device has no bytes here"));
    assert!(!refused);
    assert_eq!(migration.pages().finalize(), 0);
    assert!((0..16).all(|page| world.is_away(page)));
    world.verify();
}

#[test]
fn what_cannot_be_collected_says_why() {
    let world = Fixture::new();
    let unmapped = Span::new(40, 4);
    world.world.op(&Op::Unmap { span: unmapped });
    // Even pages are pinned by a hold, odd ones shared: neither can be moved.
    world.world.shared().lock().memory.hold(Span::new(2, 1), crate::memory::Held::Pinned);
    world.engine().pin(range(5, 1), true);
    let mut migration = world.setup(Span::new(0, 44), Select::SYSTEM, &world.one);
    let source = |index: usize| migration.entries()[index].source();
    assert_eq!(source(0), Source::System);
    assert_eq!(source(2), Source::Skipped(Skip::Busy));
    assert_eq!(source(5), Source::Skipped(Skip::Busy));
    assert_eq!(source(30), Source::Hole);
    assert_eq!(source(41), Source::Skipped(Skip::Unmanaged));
    assert_eq!(migration.nr_collected(), 38);
    // Best effort: the others go.
    assert_eq!(migration.store(world.one.id), Ok(38));
    assert_eq!(migration.pages().finalize(), 38);
    let again = world.setup(Span::new(0, 44), Select::SYSTEM, &world.one);
    assert_eq!(again.entries()[0].source(), Source::Skipped(Skip::NotSelected));
    drop(again);
    world.engine().pin(range(5, 1), false);
    world.scan(Span::new(0, 40));
    world.verify();
}

#[test]
fn what_is_on_a_tier_is_not_migrated() {
    let world = Fixture::new();
    assert_eq!(world.engine().evict_range(range(0, 16)), 16);
    for _ in 0..8 {
        let _ = world.engine().reclaim();
    }
    assert!(world.is_away(0), "the tier has it");
    let migration = world.setup(DATA, Select::SYSTEM | Select::PRIVATE, &world.one);
    assert!(migration.entries().iter().all(|entry| entry.source() == Source::Skipped(Skip::Evicted)));
    drop(migration);
    world.verify();
}

#[test]
fn a_range_that_makes_no_sense_is_refused() {
    let world = Fixture::new();
    let end = addr::Vpn(1 << 35);
    for wrong in [
        range(0, 0),
        addr::PageRange { start: vpn(9), end: vpn(3) },
        addr::PageRange::new(vpn(0), 513),
        addr::PageRange::new(addr::Vpn(end.0 - 1), 2),
    ] {
        let refused = world.engine().migrate_setup(wrong, Select::SYSTEM, world.one.owner);
        assert_eq!(refused.err(), Some(SetupError::Range(wrong)));
    }
    assert!(world.told().is_empty(), "nothing was invalidated");
}

#[test]
fn frames_are_their_owners() {
    let world = Fixture::new();
    world.take(DATA);
    let theirs = world.setup(DATA, Select::PRIVATE | Select::SYSTEM, &world.two);
    assert_eq!(theirs.nr_collected(), 0, "another owner's frames are not collected");
    drop(theirs);
    let mut migration = world.setup(Span::new(20, 4), Select::SYSTEM, &world.two);
    let frame = world.one.frame();
    assert_eq!(migration.set_frame(0, world.one.id, frame), Err(RefusedDestination::NotYours));
    assert_eq!(migration.store(world.one.id), Err(RefusedDestination::NotYours));
    hmm_device::Device::free(&*world.one.device, &[frame]);
    drop(migration);
    world.verify();
}

#[test]
fn what_is_not_selected_is_not_collected() {
    let world = Fixture::new();
    // Eight pages on the device, eight at home, and holes elsewhere.
    world.take(Span::new(0, 8));
    let holes = Span::new(200, 4);
    let sources = |span, select| {
        let migration = world.setup(span, select, &world.one);
        migration.entries().iter().map(Entry::source).collect::<Vec<_>>()
    };
    let passed_over = |source: &Source| *source == Source::Skipped(Skip::NotSelected);
    let of_the_device = sources(DATA, Select::PRIVATE);
    assert!(of_the_device[..8].iter().all(|source| matches!(source, Source::Private(_))));
    assert!(of_the_device[8..].iter().all(passed_over), "{of_the_device:?}");
    assert!(sources(holes, Select::PRIVATE).iter().all(passed_over));
    let of_the_system = sources(DATA, Select::SYSTEM);
    assert!(of_the_system[..8].iter().all(passed_over), "{of_the_system:?}");
    assert_eq!(of_the_system[8..], [Source::System; 8]);
    assert_eq!(sources(holes, Select::SYSTEM), [Source::Hole; 4]);
    assert!(sources(DATA, Select::COHERENT).iter().all(passed_over), "the device is private");
    assert!(sources(holes, Select::COHERENT).iter().all(passed_over));
    world.verify();
}

#[test]
fn a_destination_is_set_once_and_only_where_it_makes_sense() {
    let world = Fixture::new();
    world.world.op(&Op::Unmap { span: Span::new(20, 1) });
    let mut migration = world.setup(Span::new(19, 2), Select::SYSTEM, &world.one);
    let frame = world.one.frame();
    assert_eq!(migration.set_frame(1, world.one.id, frame), Err(RefusedDestination::NotWanted), "skipped");
    assert_eq!(migration.set_frame(2, world.one.id, frame), Err(RefusedDestination::NotWanted), "no entry");
    assert_eq!(migration.set_frame(0, world.one.id, frame), Ok(()));
    assert_eq!(migration.set_frame(0, world.one.id, frame), Err(RefusedDestination::NotWanted), "twice");
    let system = migration.fill_system(0, &mut |_| panic!("a hole is not on a device"));
    assert_eq!(system, Err(RefusedDestination::NotWanted));
    drop(migration);
    assert_eq!(world.one.nr_used(), 0, "what was handed over is freed, once");
    world.verify();
}

#[test]
fn dropping_at_any_stage_restores_or_keeps() {
    let world = Fixture::new();
    drop(world.setup(DATA, Select::SYSTEM, &world.one));
    let mut stored = world.setup(DATA, Select::SYSTEM, &world.one);
    stored.store(world.one.id).expect("is its driver's");
    assert_eq!(world.one.nr_used(), 16);
    drop(stored);
    assert_eq!(world.one.nr_used(), 0, "unused frames are given back");
    assert!((0..16).all(|page| world.world.shared().lock().memory.is_present(page)), "mapped again at once");
    // Committed pages stay where they went.
    let mut committed = world.setup(DATA, Select::SYSTEM, &world.one);
    committed.store(world.one.id).expect("is its driver's");
    drop(committed.pages());
    assert!((0..16).all(|page| world.is_away(page)));
    drop(world.setup(DATA, Select::PRIVATE, &world.one));
    let mut fetched = world.setup(DATA, Select::PRIVATE, &world.one);
    assert_eq!(fetched.fetch(), 16);
    drop(fetched);
    assert!((0..16).all(|page| world.is_away(page)), "not committed: on the device as before");
    let mut fetched = world.setup(DATA, Select::PRIVATE, &world.one);
    fetched.fetch();
    drop(fetched.pages());
    assert!((0..16).all(|page| !world.is_away(page)));
    world.verify();
}

#[test]
fn a_hole_becomes_a_frame_of_zeroes() {
    let world = Fixture::new();
    let holes = Span::new(100, 40);
    world.told();
    assert_eq!(world.take(holes), 40);
    // Setup, and once more when something is put where nothing was.
    let told = world.told();
    let whole = (range(100, 40), Cause::Migrate, Some(world.one.owner));
    assert_eq!(told, [whole, whole]);
    assert_eq!(world.one.nr_used(), 40);
    world.scan(holes);
    world.verify();
}

#[test]
fn faults_wait_from_pages_to_finalize() {
    let world = Fixture::new();
    let mut migration = world.setup(DATA, Select::SYSTEM, &world.one);
    migration.store(world.one.id).expect("is its driver's");
    let migration = migration.pages();
    assert_eq!(world.engine().fault(vpn(4)), Outcome::Parked);
    world.begin(&Op::Read { page: 4, word: 0 });
    assert_eq!(world.nr_waiting(), 1);
    migration.finalize();
    runtime_settles(&world);
    assert!(!world.is_away(4), "it came home for the one who waited");
    // The other way from setup on.
    world.take(DATA);
    let mut migration = world.setup(DATA, Select::PRIVATE, &world.one);
    world.begin(&Op::Read { page: 4, word: 0 });
    assert_eq!(world.nr_waiting(), 1);
    migration.fetch();
    let migration = migration.pages();
    world.begin(&Op::Read { page: 5, word: 0 });
    assert_eq!(world.nr_waiting(), 2);
    migration.finalize();
    runtime_settles(&world);
    world.verify();
}

#[test]
fn those_who_wait_are_woken_by_a_drop() {
    let world = Fixture::new();
    world.take(DATA);
    let migration = world.setup(DATA, Select::PRIVATE, &world.one);
    world.begin(&Op::Read { page: 4, word: 0 });
    assert_eq!(world.nr_waiting(), 1);
    drop(migration);
    runtime_settles(&world);
    world.verify();
}

fn runtime_settles(world: &Fixture) {
    crate::runtime::settle(&world.world.shared(), world.engine());
    assert_eq!(world.nr_waiting(), 0);
}

#[test]
fn a_page_moves_from_one_device_of_a_driver_to_another() {
    let world = Fixture::new();
    world.take(DATA);
    let more = std::sync::Arc::new(hmm_device::Ram::new(16));
    let id = world.engine().add_device(std::sync::Arc::clone(&more) as _, world.one.owner).expect("is free");
    let mut migration = world.setup(Span::new(0, 1), Select::PRIVATE, &world.one);
    let Source::Private(old) = migration.entries()[0].source() else { panic!("is on the first") };
    let mut bytes = [0; hmm_device::PAGE_SIZE];
    let fetch = hmm_device::Fetch { frames: &[old.pfn], bytes: &mut bytes };
    assert_eq!(hmm_device::Device::fetch(&*world.one.device, fetch).done, 1);
    let mut frames = [hmm_device::DevicePfn::default()];
    assert_eq!(hmm_device::Device::alloc(&*more, &mut frames), 1);
    let store = hmm_device::Store { frames: &frames, bytes: &bytes, access: Default::default() };
    assert_eq!(hmm_device::Device::store(&*more, store).done, 1);
    migration.set_frame(0, id, frames[0]).expect("is the driver's, too");
    assert_eq!(migration.pages().finalize(), 1);
    assert_eq!(world.one.nr_used(), 15, "the old frame is free");
    world.scan(DATA);
    assert_eq!(hmm_device::Device::usage(&*more).frames, 0);
    world.verify();
}

/// As when a read by direct I/O has ended, and the kernel has not let go of its pages yet.
#[test]
fn what_cannot_be_moved_home_for_a_moment_is_copied() {
    let home = |kernel_failures| {
        let setup = Setup { budget_pages: 1300, kernel_failures, ..Setup::calm(1) };
        let world = Fixture::with_setup(NR_FRAMES, setup);
        world.take(DATA);
        let mut migration = world.setup(DATA, Select::PRIVATE, &world.one);
        migration.fetch();
        assert_eq!(migration.pages().finalize(), 16);
        world
    };
    let call = {
        let world = home(Vec::new());
        let shared = world.world.shared();
        let machine = shared.lock();
        machine.kernel_plan.made().iter().rposition(|made| made.verb == Verb::MoveHome)
    };
    let call = call.expect("pages are moved home");
    for done in [0, 5] {
        let world = home(vec![Failure { call, why: Stop::Busy, done }]);
        let is_home = |page| matches!(world.state(page), PageState::System { .. });
        assert!(DATA.pages().all(is_home), "behind {done} pages");
        world.verify();
    }
}
