//! The program goes on while pages are on their way: it overtakes the migration, and nothing is lost or leaks.

use hmm_core::driver::{Collected, Migration, Select};
use hmm_core::notifier::Cause;
use hmm_model::{Op, Pattern, Span};

use super::{DATA, Fixture, range, vpn};
use crate::kernel::SimKernel;

/// What the program does meanwhile to pages of `DATA`, or to the holes behind it.
const MEANWHILE: [Op; 8] = [
    Op::Write { page: 4, word: 9, value: 1 },
    Op::Read { page: 4, word: 9 },
    Op::DontNeed { span: Span::new(3, 4) },
    Op::Unmap { span: Span::new(3, 4) },
    Op::Unmap { span: Span::new(15, 4) },
    Op::Map { span: Span::new(3, 4) },
    Op::Remap { from: 2, to: 300, len: 8, keep_source: true },
    Op::Fill { span: Span::new(14, 6), pattern: Pattern::Noise, stamp: 5 },
];
const SPAN: Span = Span::new(0, 20);

/// At which stage it does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Collected,
    Copied,
    Committed,
}

fn migrate(world: &Fixture, select: Select, when: When, op: &Op, finish: bool) {
    let mut migration = world.setup(SPAN, select, &world.one);
    assert!(migration.nr_collected() >= 16);
    let meanwhile = |at| {
        if when == at {
            world.begin(op);
        }
    };
    meanwhile(When::Collected);
    copy(world, &mut migration, select);
    meanwhile(When::Copied);
    if finish {
        let migration = migration.pages();
        meanwhile(When::Committed);
        migration.finalize();
    } else {
        drop(migration);
    }
}

fn copy(world: &Fixture, migration: &mut Migration<'_, SimKernel, Collected>, select: Select) {
    if select == Select::SYSTEM {
        migration.store(world.one.id).expect("is its driver's");
    } else {
        migration.fetch();
    }
}

#[test]
fn whatever_the_program_does_at_whatever_stage() {
    for select in [Select::SYSTEM, Select::PRIVATE] {
        for op in MEANWHILE {
            for when in [When::Collected, When::Copied, When::Committed] {
                for finish in [true, false] {
                    let world = Fixture::new();
                    if select == Select::PRIVATE {
                        world.take(SPAN);
                    }
                    migrate(&world, select, when, &op, finish);
                    crate::runtime::settle(&world.world.shared(), world.engine());
                    world.scan(Span::new(0, 400));
                    world.verify();
                }
            }
        }
    }
}

#[test]
fn a_touch_keeps_the_page_in_system_memory() {
    let world = Fixture::new();
    let mut migration = world.setup(DATA, Select::SYSTEM, &world.one);
    world.begin(&Op::Write { page: 4, word: 9, value: 1 });
    assert_eq!(world.nr_waiting(), 0, "a touch does not wait for a driver that copies");
    migration.store(world.one.id).expect("is its driver's");
    let migration = migration.pages();
    assert_eq!(migration.nr_migrated(), 15);
    assert!(!migration.entries()[4].is_migrated());
    assert_eq!(migration.entries()[4].frame(), None);
    migration.finalize();
    assert!(!world.is_away(4));
    assert_eq!(world.one.nr_used(), 15, "the frame of the page that was touched is free");
    world.verify();
}

#[test]
fn who_touches_a_page_that_migrates_ends_copies_of_its_driver_too() {
    let world = Fixture::new();
    let migration = world.setup(DATA, Select::SYSTEM, &world.one);
    world.told();
    world.begin(&Op::Write { page: 4, word: 9, value: 1 });
    // The migration is a change of its own to the driver, who may not have dropped anything yet.
    assert_eq!(world.told(), [(range(4, 1), Cause::Clear, None)]);
    drop(migration);
    world.verify();
}

#[test]
fn a_hole_that_is_touched_does_not_migrate() {
    let world = Fixture::new();
    let mut migration = world.setup(Span::new(100, 8), Select::SYSTEM, &world.one);
    world.begin(&Op::Write { page: 103, word: 9, value: 1 });
    migration.store(world.one.id).expect("is its driver's");
    let migration = migration.pages();
    // A first touch brings its neighbours.
    assert!(migration.nr_migrated() < 8);
    assert!(!migration.entries()[3].is_migrated());
    migration.finalize();
    world.scan(Span::new(100, 8));
    world.verify();
}

#[test]
fn a_hole_that_is_unmapped_does_not_migrate() {
    let world = Fixture::new();
    let mut migration = world.setup(Span::new(100, 8), Select::SYSTEM, &world.one);
    migration.store(world.one.id).expect("is its driver's");
    world.begin(&Op::Unmap { span: Span::new(102, 3) });
    let migration = migration.pages();
    let migrated: Vec<_> = migration.entries().iter().map(|entry| entry.is_migrated()).collect();
    assert_eq!(migrated, [true, true, false, false, false, true, true, true]);
    assert_eq!(migration.finalize(), 5);
    assert_eq!(world.one.nr_used(), 5, "the others' frames are free");
    world.scan(Span::new(100, 8));
    world.verify();
}

/// A page that is there unknown to the engine goes along with its mapping. At its old place there is nothing then.
#[test]
fn no_hole_migrates_while_mappings_move() {
    let world = Fixture::new();
    let mut migration = world.setup(Span::new(100, 8), Select::SYSTEM, &world.one);
    migration.store(world.one.id).expect("is its driver's");
    // Nobody reads its event yet.
    world.world.start(&Op::Remap { from: 100, to: 300, len: 8, keep_source: true });
    let migration = migration.pages();
    assert_eq!(migration.nr_migrated(), 0);
    migration.finalize();
    assert_eq!(world.one.nr_used(), 0, "the frames are free");
    while crate::runtime::pump(&world.world.shared(), world.engine()) {}
    world.scan(Span::new(300, 8));
    world.verify();
}

#[test]
fn a_hole_that_was_touched_and_evicted_does_not_migrate() {
    let world = Fixture::new();
    let mut migration = world.setup(Span::new(100, 8), Select::SYSTEM, &world.one);
    world.begin(&Op::Write { page: 103, word: 9, value: 1 });
    // Nothing is mapped there again, and yet it is no hole.
    assert!(world.engine().evict_range(range(100, 8)) > 0);
    migration.store(world.one.id).expect("is its driver's");
    let migration = migration.pages();
    assert!(!migration.entries()[3].is_migrated());
    migration.finalize();
    world.scan(Span::new(100, 8));
    world.verify();
}

#[test]
fn two_drivers_want_the_same_pages() {
    let world = Fixture::new();
    let mut first = world.setup(DATA, Select::SYSTEM, &world.one);
    let second = world.setup(DATA, Select::SYSTEM | Select::PRIVATE, &world.two);
    assert_eq!(second.nr_collected(), 0, "they are in flight");
    first.store(world.one.id).expect("is its driver's");
    assert_eq!(first.pages().finalize(), 16);
    drop(second);
    assert!(world.is_away(0));
    world.verify();
}

#[test]
fn reclaim_and_migration_do_not_take_each_others_pages() {
    let world = Fixture::new();
    assert_eq!(world.engine().evict_range(range(0, 16)), 16);
    // What waits in staging is collected there.
    let mut migration = world.setup(DATA, Select::SYSTEM, &world.one);
    assert_eq!(migration.nr_collected(), 16);
    for _ in 0..4 {
        let _ = world.engine().reclaim();
    }
    assert!((0..16).all(|page| !world.is_away(page)), "reclaim left them alone");
    assert_eq!(world.engine().evict_range(range(0, 16)), 0);
    migration.store(world.one.id).expect("is its driver's");
    assert_eq!(migration.pages().finalize(), 16);
    assert!(matches!(world.engine().fault(vpn(0)), hmm_core::Outcome::Done));
    world.verify();
}
