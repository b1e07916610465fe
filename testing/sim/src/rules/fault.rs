//! Fault and migrate in one walk: pages that are away elsewhere are brought and collected.

use hmm_core::driver::{Select, Skip, Source};
use hmm_core::notifier::Cause;
use hmm_core::state::PageState;
use hmm_model::{Op, Span};

use super::{DATA, Fixture, range, vpn};
use crate::runtime;

const WANTED: Select = Select::SYSTEM;

fn is_present(world: &Fixture, page: u32) -> bool {
    world.world.shared().lock().memory.is_present(page)
}

/// Has the tier take all of the data.
fn evict(world: &Fixture) {
    assert_eq!(world.engine().evict_range(range(0, 16)), 16);
    for _ in 0..8 {
        let _ = world.engine().reclaim();
    }
    assert!(DATA.pages().all(|page| world.is_away(page)), "the tier has it");
}

#[test]
fn pages_on_a_tier_go_on_to_the_device_and_not_by_the_program() {
    let world = Fixture::new();
    evict(&world);
    let mut migration = world.setup(DATA, WANTED | Select::FAULT, &world.one);
    assert!(migration.entries().iter().all(|entry| entry.source() == Source::System));
    assert!(
        !DATA.pages().any(|page| is_present(&world, page)),
        "they are brought no further than they have to"
    );
    assert_eq!(migration.store(world.one.id), Ok(16));
    assert_eq!(migration.pages().finalize(), 16);
    assert_eq!(world.one.nr_used(), 16);
    world.verify();
}

#[test]
fn pages_on_anothers_device_are_taken_and_their_driver_is_told() {
    let world = Fixture::new();
    assert_eq!(world.take(DATA), 16);
    world.told();
    let mut migration = world.setup(DATA, WANTED | Select::FAULT, &world.two);
    assert_eq!(world.told(), [(range(0, 16), Cause::Migrate, Some(world.two.owner))], "one walk, one change");
    assert_eq!((migration.nr_collected(), world.one.nr_used()), (16, 0), "their frames are free");
    assert!(!DATA.pages().any(|page| is_present(&world, page)));
    assert_eq!(migration.store(world.two.id), Ok(16));
    assert_eq!(migration.pages().finalize(), 16);
    assert_eq!(world.two.nr_used(), 16);
    world.verify();
}

#[test]
fn own_frames_stay_unless_they_are_selected() {
    let world = Fixture::new();
    assert_eq!(world.take(DATA), 16);
    let migration = world.setup(DATA, WANTED | Select::FAULT, &world.one);
    assert!(migration.entries().iter().all(|entry| entry.source() == Source::Skipped(Skip::NotSelected)));
    drop(migration);
    let migration = world.setup(DATA, WANTED | Select::FAULT | Select::PRIVATE, &world.one);
    assert!(migration.entries().iter().all(|entry| matches!(entry.source(), Source::Private(_))));
    drop(migration);
    world.verify();
}

#[test]
fn holes_and_pages_of_all_kinds_in_one_call() {
    let world = Fixture::new();
    evict(&world);
    world.scan(Span::new(0, 4));
    assert_eq!(world.take(Span::new(0, 2)), 2);
    world.engine().make_exclusive(vpn(3), world.one.owner).expect("it is at home");
    // Two pages on another's device, one at home, one exclusive, twelve on the tier, four holes.
    let all = Span::new(0, 20);
    let mut migration = world.setup(all, WANTED | Select::FAULT, &world.two);
    assert_eq!(migration.nr_collected(), 20, "{:?}", migration.entries());
    assert_eq!(migration.store(world.two.id), Ok(20));
    assert_eq!(migration.pages().finalize(), 20);
    assert!(all.pages().all(|page| world.is_away(page)));
    world.scan(all);
    world.verify();
}

#[test]
fn what_was_brought_is_at_home_when_the_migration_is_dropped() {
    let world = Fixture::new();
    evict(&world);
    drop(world.setup(DATA, WANTED | Select::FAULT, &world.one));
    assert!(DATA.pages().all(|page| is_present(&world, page)), "as a fault would have brought it");
    world.verify();
}

#[test]
fn a_touch_gets_what_was_brought() {
    let world = Fixture::new();
    evict(&world);
    let mut migration = world.setup(DATA, WANTED | Select::FAULT, &world.one);
    world.begin(&Op::Write { page: 4, word: 9, value: 1 });
    assert_eq!(world.nr_waiting(), 0, "it does not wait for the driver");
    assert_eq!(migration.store(world.one.id), Ok(16));
    assert_eq!(migration.pages().finalize(), 15, "and stays");
    assert!(matches!(world.state(4), PageState::System { .. }));
    runtime::settle(&world.world.shared(), world.engine());
    world.verify();
}

#[test]
fn what_its_device_does_not_give_stays_there() {
    let world = Fixture::new();
    evict(&world);
    let failure = hmm_device::DeviceError::Io;
    world.world.shared().lock().device_plan.fail_next(3, failure);
    let migration = world.setup(DATA, WANTED | Select::FAULT, &world.one);
    assert!(migration.entries().iter().all(|entry| entry.source() == Source::Skipped(Skip::Evicted)));
    drop(migration);
    assert!(DATA.pages().all(|page| world.is_away(page)), "nothing is lost");
    world.verify();
}
