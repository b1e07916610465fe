//! Devices that come and go, and migration by frames.

use hmm_core::driver::{RemoveError, Select, SetupError};
use hmm_core::notifier::Cause;
use hmm_device::DevicePfn;
use hmm_model::{Op, Span};

use super::{DATA, Driver, Fixture, NR_FRAMES};

#[test]
fn a_device_in_use_is_removed() {
    let world = Fixture::new();
    world.take(DATA);
    world.told();
    assert_eq!(world.engine().remove_device(world.one.id), Ok(()));
    assert!((0..16).all(|page| !world.is_away(page)));
    // Its driver is told, and not as of a migration of its own.
    assert!(world.told().iter().any(|(_, cause, owner)| *cause == Cause::Clear && owner.is_none()));
    assert_eq!(world.engine().remove_device(world.one.id), Err(RemoveError::Unknown));
    let next = Driver::new(world.engine(), 3, NR_FRAMES);
    assert_eq!(next.id, world.one.id, "the number is free again");
    world.verify();
}

#[test]
fn a_device_is_not_removed_under_a_migration() {
    let world = Fixture::new();
    let mut migration = world.setup(DATA, Select::SYSTEM, &world.one);
    migration.store(world.one.id).expect("is its driver's");
    assert_eq!(world.engine().remove_device(world.one.id), Err(RemoveError::Busy));
    let migration = migration.pages();
    assert_eq!(world.engine().remove_device(world.one.id), Err(RemoveError::Busy));
    migration.finalize();
    // It takes nothing any more.
    let mut late = world.setup(Span::new(30, 2), Select::SYSTEM, &world.one);
    assert!(late.store(world.one.id).is_err());
    drop(late);
    assert_eq!(world.engine().remove_device(world.one.id), Ok(()));
    world.verify();
}

#[test]
fn pages_of_some_frames_are_collected_without_their_addresses() {
    let world = Fixture::new();
    world.take(DATA);
    // The pages have other addresses by now, which the driver does not know.
    world.world.op(&Op::Remap { from: 0, to: 520, len: 16, keep_source: true });
    let frames = DevicePfn(4)..DevicePfn(8);
    let foreign =
        world.engine().migrate_device_range(world.one.id, frames.clone(), Select::PRIVATE, world.two.owner);
    assert_eq!(foreign.err(), Some(SetupError::NotYours));
    let mut migration = world
        .engine()
        .migrate_device_range(world.one.id, frames, Select::PRIVATE, world.one.owner)
        .expect("its own");
    assert_eq!(migration.nr_collected(), 4);
    assert_eq!(migration.fetch(), 4);
    assert_eq!(migration.pages().finalize(), 4);
    assert_eq!(world.one.nr_used(), 12);
    world.scan(Span::new(520, 16));
    world.verify();
}

#[test]
fn there_are_sixteen_devices_at_most() {
    let world = Fixture::new();
    let device = || std::sync::Arc::new(hmm_device::Ram::new(NR_FRAMES));
    // One tier, and two of drivers.
    for _ in 3..16 {
        world.engine().add_device(device(), world.one.owner).expect("there is room");
    }
    assert_eq!(world.engine().add_device(device(), world.one.owner), Err(hmm_core::AddError::TooMany));
}
