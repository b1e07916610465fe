//! Huge pages go and come home as one, as long as all of them is meant and nobody takes a part away.

use hmm_core::addr::BLOCK_PAGES;
use hmm_core::driver::{Collected, Migration, RefusedDestination, Select, Skip, Source};
use hmm_core::state::PageState;
use hmm_device::{Device, DevicePfn};
use hmm_model::{Op, Pattern, Span};

use super::{Fixture, range};
use crate::kernel::SimKernel;
use crate::{check, runtime};

const BLOCK: Span = Span::new(0, 512);
const ALL: usize = BLOCK_PAGES;
const OUT: Select = Select::SYSTEM;
const HOME: Select = Select::PRIVATE;

/// A world in which the first block is a huge page, and devices have a large run and some frames more.
fn world() -> Fixture {
    with_huge_page(Fixture::with_frames(ALL + 64))
}

fn with_huge_page(world: Fixture) -> Fixture {
    // Noise, so that pages of zeroes are not taken for others.
    world.world.op(&Op::Fill { span: BLOCK, pattern: Pattern::Noise, stamp: 3 });
    world.world.shared().lock().memory.set_huge(0);
    world
}

fn setup(world: &Fixture, select: Select) -> Migration<'_, SimKernel, Collected> {
    world.setup(BLOCK, select | Select::COMPOUND, &world.one)
}

/// Takes the block to the device. Returns whether it went as one.
fn take(world: &Fixture) -> bool {
    let mut migration = setup(world, OUT);
    assert_eq!(migration.store(world.one.id), Ok(ALL));
    let migration = migration.pages();
    let is_one = migration.entries()[0].is_compound();
    assert_eq!(migration.finalize(), ALL);
    is_one
}

/// Brings home what is on the device. Returns how many pages came, and whether they came as one.
fn bring(world: &Fixture) -> (usize, bool) {
    let mut migration = setup(world, HOME);
    let nr = migration.fetch();
    let migration = migration.pages();
    let is_one = migration.entries()[0].is_compound();
    assert_eq!(migration.finalize(), nr);
    (nr, is_one)
}

fn is_huge(world: &Fixture) -> bool {
    world.world.shared().lock().memory.is_huge(0)
}

fn large_run(world: &Fixture) -> bool {
    let PageState::Device { frame: first } = world.state(0) else { return false };
    let is_next = |page: u32| matches!(world.state(page), PageState::Device { frame } if frame.pfn == first.pfn.add(page as usize));
    first.pfn.is_large_start() && BLOCK.pages().all(is_next)
}

fn verify(world: &Fixture) {
    runtime::settle(&world.world.shared(), world.engine());
    world.scan(BLOCK);
    check::all(&world.world.shared(), world.engine());
    check::bytes(&world.world.shared(), world.engine());
    assert_eq!(world.one.nr_used(), 0, "frames of pages that are home");
}

#[test]
fn a_huge_page_goes_and_comes_home_as_one() {
    let world = world();
    for round in 0..3 {
        let mut migration = setup(&world, OUT);
        let head = migration.entries()[0];
        assert_eq!((head.is_compound(), head.source(), head.nr_pages()), (true, Source::System, ALL));
        let rest = &migration.entries()[1..];
        assert_eq!(rest.len(), ALL - 1);
        assert!(rest.iter().all(|entry| entry.source() == Source::Skipped(Skip::Compound)));
        assert_eq!(migration.nr_collected(), ALL);
        let mut nr_bytes = 0;
        assert!(migration.with_bytes(0, &mut |bytes| nr_bytes = bytes.len()));
        assert_eq!(nr_bytes, ALL * hmm_device::PAGE_SIZE);
        assert!(!migration.with_bytes(1, &mut |_| panic!("what is behind has no bytes of its own")));
        assert_eq!(migration.store(world.one.id), Ok(ALL));
        let migration = migration.pages();
        assert!(migration.entries()[0].frame().is_some_and(|frame| frame.pfn.is_large_start()));
        assert_eq!(migration.finalize(), ALL);
        assert!(large_run(&world), "in round {round}");
        assert_eq!(bring(&world), (ALL, true), "in round {round}");
        assert!(is_huge(&world), "in round {round}");
        assert_eq!(world.one.nr_used(), 0);
    }
    verify(&world);
}

#[test]
fn the_memory_that_it_left_is_where_it_comes_home_to() {
    let world = with_huge_page(Fixture::that_reuses_memory(ALL + 64));
    let charged = world.engine().nr_stock();
    assert!(take(&world));
    assert_eq!(world.engine().nr_stock(), charged + ALL as u64, "its memory is kept");
    assert_eq!(bring(&world), (ALL, true));
    assert_eq!(world.engine().nr_stock(), charged, "and used, so that nothing is allocated");
    verify(&world);
}

#[test]
fn memory_that_is_kept_is_given_back_when_nobody_uses_it() {
    let world = Fixture::mirrored();
    let span = Span::new(0, 16);
    assert_eq!(world.take(span), 16);
    for _ in 0..40 {
        world.engine().trim_idle();
    }
    assert_eq!(world.engine().nr_stock(), 16, "kept for a while");
    world.scan(Span::new(0, 1));
    let left = world.engine().nr_stock();
    for _ in 0..40 {
        world.engine().trim_idle();
    }
    assert_eq!(world.engine().nr_stock(), left, "it was used meanwhile");
    for _ in 0..20 {
        world.engine().trim_idle();
    }
    assert_eq!(world.engine().nr_stock(), 0);
    world.verify();
}

#[test]
fn without_being_asked_for_huge_pages_are_small_ones() {
    let world = world();
    let mut migration = world.setup(BLOCK, OUT, &world.one);
    assert!(migration.entries().iter().all(|entry| !entry.is_compound() && entry.is_collected()));
    assert_eq!(migration.store(world.one.id), Ok(ALL));
    assert_eq!(migration.pages().finalize(), ALL);
    let migration = world.setup(BLOCK, HOME, &world.one);
    assert!(migration.entries().iter().all(|entry| !entry.is_compound()));
    drop(migration);
    verify(&world);
}

#[test]
fn a_part_of_a_huge_page_is_small_pages() {
    let world = world();
    let mut migration = world.setup(Span::new(0, 511), OUT | Select::COMPOUND, &world.one);
    assert!(migration.entries().iter().all(|entry| !entry.is_compound()));
    assert_eq!(migration.store(world.one.id), Ok(511));
    assert_eq!(migration.pages().finalize(), 511);
    verify(&world);
}

#[test]
fn a_device_without_a_large_run_gets_small_pages() {
    let world = world();
    let in_the_way = world.one.frame();
    assert!(!take(&world), "its entry was split");
    assert!(!large_run(&world));
    world.one.device.free(&[in_the_way]);
    assert_eq!(bring(&world), (ALL, false), "they come home as they went");
    verify(&world);
}

#[test]
fn a_huge_hole_is_a_large_run_of_zeroes() {
    let world = world();
    world.world.op(&Op::DontNeed { span: BLOCK });
    let migration = setup(&world, OUT);
    assert_eq!(migration.entries()[0].source(), Source::Hole);
    assert!(migration.entries()[0].is_compound());
    drop(migration);
    assert!(take(&world) && large_run(&world));
    assert_eq!(bring(&world), (ALL, true));
    assert!(is_huge(&world));
    verify(&world);
    // One page in it, and it is none.
    world.world.op(&Op::DontNeed { span: BLOCK });
    world.world.op(&Op::Write { page: 100, word: 1, value: 1 });
    let migration = setup(&world, OUT);
    assert!(!migration.entries()[0].is_compound());
    drop(migration);
    verify(&world);
}

#[test]
fn dropped_at_any_stage_it_is_huge_where_it_was() {
    let world = world();
    drop(setup(&world, OUT));
    assert!(is_huge(&world), "collected");
    let mut stored = setup(&world, OUT);
    assert_eq!(stored.store(world.one.id), Ok(ALL));
    drop(stored);
    assert!(is_huge(&world), "stored");
    assert_eq!(world.one.nr_used(), 0);
    let mut split = setup(&world, OUT);
    assert!(split.split(0) && !split.split(0) && !split.split(1));
    drop(split);
    assert!(is_huge(&world), "split");
    let mut committed = setup(&world, OUT);
    assert_eq!(committed.store(world.one.id), Ok(ALL));
    drop(committed.pages());
    assert!(large_run(&world), "committed");
    drop(setup(&world, HOME));
    assert!(large_run(&world), "collected on the way home");
    let mut fetched = setup(&world, HOME);
    assert_eq!(fetched.fetch(), ALL);
    drop(fetched);
    assert!(large_run(&world), "fetched");
    let mut fetched = setup(&world, HOME);
    assert_eq!(fetched.fetch(), ALL);
    drop(fetched.pages());
    assert!(is_huge(&world), "committed on the way home");
    verify(&world);
}

#[test]
fn what_takes_a_part_away_leaves_small_pages() {
    let ops = [
        (Op::Read { page: 5, word: 0 }, 511),
        (Op::Write { page: 511, word: 0, value: 9 }, 511),
        (Op::DontNeed { span: Span::new(0, 9) }, 503),
        (Op::Unmap { span: Span::new(500, 12) }, 500),
        (Op::Remap { from: 100, to: 600, len: 50, keep_source: false }, 462),
    ];
    for (op, nr_left) in ops {
        let world = world();
        assert!(take(&world));
        world.world.op(&op);
        let (nr, is_one) = bring(&world);
        assert_eq!((nr, is_one), (nr_left, false), "{op:?}");
        // What moved out of the block comes when it is touched.
        world.scan(Span::new(600, 50));
        verify(&world);
    }
}

#[test]
fn a_part_that_is_overtaken_stays_and_the_rest_goes() {
    for select in [OUT, HOME] {
        for (op, page) in
            [(Op::Write { page: 7, word: 3, value: 1 }, 7), (Op::DontNeed { span: Span::new(511, 1) }, 511)]
        {
            let world = world();
            if select == HOME {
                assert!(take(&world));
            }
            let mut migration = setup(&world, select);
            if select == OUT {
                assert_eq!(migration.store(world.one.id), Ok(ALL));
            } else {
                assert_eq!(migration.fetch(), ALL);
            }
            world.begin(&op);
            let is_touch = matches!(op, Op::Write { .. });
            let migration = migration.pages();
            // A touch waits for who brings the page home.
            let nr = if select == HOME && is_touch { ALL } else { ALL - 1 };
            assert_eq!(migration.nr_migrated(), nr, "{op:?}");
            let is_migrated = migration
                .entries()
                .iter()
                .any(|entry| entry.page() == super::vpn(page) && entry.is_migrated());
            assert!(!is_migrated, "it has no entry of its own, or one that was overtaken: {op:?}");
            assert_eq!(migration.finalize(), nr);
            verify(&world);
        }
    }
}

#[test]
fn by_frames_it_is_one_if_all_its_frames_are_meant() {
    let world = world();
    assert!(take(&world));
    let by_frames = |frames: std::ops::Range<u32>, select| {
        let frames = DevicePfn(frames.start)..DevicePfn(frames.end);
        world.engine().migrate_device_range(world.one.id, frames, select, world.one.owner).expect("its own")
    };
    let migration = by_frames(0..512, HOME);
    assert!(migration.entries().iter().all(|entry| !entry.is_compound()), "not asked for");
    drop(migration);
    let migration = by_frames(0..511, HOME | Select::COMPOUND);
    assert!(migration.nr_collected() == 511 && !migration.entries()[0].is_compound(), "not all of it");
    drop(migration);
    let mut migration = by_frames(0..512, HOME | Select::COMPOUND);
    assert!(migration.entries()[0].is_compound());
    assert_eq!((migration.fetch(), migration.pages().finalize()), (ALL, ALL));
    assert!(is_huge(&world));
    verify(&world);
}

#[test]
fn a_removed_device_gives_huge_pages_back() {
    let world = world();
    assert!(take(&world));
    assert_eq!(world.engine().remove_device(world.one.id), Ok(()));
    assert!(is_huge(&world));
    verify(&world);
}

#[test]
fn the_driver_copies_a_huge_page_itself() {
    let world = world();
    let mut migration = setup(&world, OUT);
    let first = world.one.device.alloc_large().expect("the device is empty");
    let refused = Err(RefusedDestination::NotWanted);
    assert_eq!(migration.set_frame(0, world.one.id, first), refused, "a huge page is no small one");
    assert_eq!(
        migration.set_large_frame(0, world.one.id, first.add(1)),
        refused,
        "no large run begins there"
    );
    assert_eq!(migration.set_large_frame(1, world.one.id, first), refused, "not collected");
    let frames: Vec<DevicePfn> = (0..ALL).map(|number| first.add(number)).collect();
    assert!(migration.with_bytes(0, &mut |bytes| {
        let store = hmm_device::Store { frames: &frames, bytes, access: hmm_device::Access::Stream };
        assert_eq!(world.one.device.store(store).stop, None);
    }));
    assert_eq!(migration.set_large_frame(0, world.one.id, first), Ok(()));
    assert!(!migration.split(0), "it has a destination");
    let mut small = world.setup(Span::new(600, 1), OUT | Select::COMPOUND, &world.one);
    assert_eq!(small.set_large_frame(0, world.one.id, first), refused, "a small page is no huge one");
    drop(small);
    assert_eq!(migration.pages().finalize(), ALL);
    let mut migration = setup(&world, HOME);
    let filled = migration.fill_system(0, &mut |bytes| {
        assert_eq!(world.one.device.fetch(hmm_device::Fetch { frames: &frames, bytes }).stop, None);
    });
    assert_eq!(filled, Ok(()));
    assert_eq!(migration.pages().finalize(), ALL);
    assert!(is_huge(&world));
    verify(&world);
}

#[test]
fn a_huge_page_that_waits_in_staging_is_collected_as_one() {
    let world = world();
    assert_eq!(world.engine().evict_range(range(0, 512)), ALL);
    assert!(take(&world) && large_run(&world));
    assert_eq!(bring(&world), (ALL, true));
    verify(&world);
}
