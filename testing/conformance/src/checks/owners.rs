//! Whose frames they are.

use std::sync::Arc;

use hmm::core::driver::{RefusedDestination, RemoveError, Select, SetupError, Skip, Source};
use hmm::core::mirror::{Found, Request};
use hmm::core::notifier::{Cause, Owner};
use hmm::core::state::Frame;
use hmm::device::{DevicePfn, Ram};

use super::{SEED, is_told, with_pages_on_device};
use crate::driver::{Driver, Entry};
use crate::ground::Make;
use crate::watchdog::Watched;

/// Another driver never sees or collects frames; if it wants the page, the page comes home first.
///
/// # Panics
/// If it does.
pub fn other_owners_get_nothing(make: Make, watched: &Watched) {
    let (ground, map) = with_pages_on_device(make, watched, 40);
    let other = Driver::new(&ground.space, Arc::new(Ram::new(64)), Owner(8));
    let mine = &ground.driver;
    if ground.comes_home() {
        assert!(
            other.look(map.pages()).iter().all(|pfn| pfn.found == Found::None),
            "to others they are away"
        );
    }
    let everything = Select::SYSTEM | Select::PRIVATE | Select::COHERENT;
    let mut migration =
        ground.space.migrate_setup(map.pages(), everything, other.owner()).expect("a short range");
    for entry in migration.entries() {
        assert_eq!(entry.source(), Source::Skipped(Skip::NotSelected), "{:?}", entry.page());
    }
    assert_eq!(migration.store(mine.id()), Err(RefusedDestination::NotYours));
    assert_eq!(
        migration.set_frame(0, mine.id(), DevicePfn(0)),
        Err(RefusedDestination::NotYours),
        "nor does it send pages to others' devices"
    );
    drop(migration);
    let by_frames = ground.space.migrate_device_range(
        mine.id(),
        DevicePfn(0)..DevicePfn(u32::MAX),
        other.select(),
        other.owner(),
    );
    assert_eq!(by_frames.err(), Some(SetupError::NotYours));
    assert_eq!(mine.nr_on_device(map.pages()), 40, "nothing has happened to them");
    // Wanting them is a touch.
    mine.told();
    let found = other.fault(map.part(5, 3), Request::FAULT).expect("they can be had");
    if ground.comes_home() {
        assert!(found.iter().all(|pfn| pfn.found == Found::System { zero: false }), "{found:?}");
        assert!(is_told(&mine.told(), Cause::Clear, map.page(6)), "their driver is told");
    }
    map.expect(0..40, SEED, "in the end");
    drop(map);
    drop(other);
    ground.finish();
}

/// A device that is removed while pages are on it gives them all back first, and takes no more.
///
/// # Panics
/// If not.
pub fn a_device_is_removed_in_use(make: Make, watched: &Watched) {
    let (ground, map) = with_pages_on_device(make, watched, 60);
    let driver = &ground.driver;
    map.expect([30], SEED, "touched");
    // Held by a migration it is not removed, and nothing is lost.
    let mut migration =
        ground.space.migrate_setup(map.part(30, 1), Select::SYSTEM, driver.owner()).expect("a short range");
    if ground.comes_home() {
        assert_eq!(migration.store(driver.id()), Ok(1));
        assert_eq!(ground.space.remove_device(driver.id()), Err(RemoveError::Busy));
    }
    drop(migration);
    assert_eq!(ground.space.remove_device(driver.id()), Ok(()));
    assert_eq!(ground.device.nr_live(), 0, "all pages are at home");
    assert!(ground.driver.entry(map.page(10)).is_none_or(|entry| entry == Entry::System { write: true }));
    assert_eq!(ground.space.remove_device(driver.id()), Err(RemoveError::Unknown));
    assert_eq!(driver.to_device(map.pages()), 0, "a device that is not there takes nothing");
    map.expect(0..60, SEED, "the device was removed");
    // Another one takes its place.
    let next = Driver::new(&ground.space, ground.another(), driver.owner());
    assert_eq!(next.to_device(map.pages()), 60);
    map.expect(0..60, SEED, "on the next device");
    assert_eq!(ground.space.remove_device(next.id()), Ok(()));
    drop(map);
    ground.expect_sound();
}

/// With [`Select::FAULT`] one call collects pages wherever they are: on another driver's device, exclusive to it, at home,
/// and holes.
///
/// # Panics
/// If it does not.
pub fn pages_elsewhere_are_taken_in_one_walk(make: Make, watched: &Watched) {
    let (ground, map) = with_pages_on_device(make, watched, 40);
    if !ground.comes_home() {
        // The CPU has such pages mapped: they are in nobody's way.
        drop(map);
        return ground.finish();
    }
    let other = Driver::new(&ground.space, Arc::new(Ram::new(64)), Owner(8));
    map.expect(0..3, SEED, "at home");
    map.discard(30, 4);
    ground.driver.take(map.page(1)).expect("it is at home");
    let select = Select::SYSTEM | Select::FAULT;
    let mut migration =
        ground.space.migrate_setup(map.pages(), select, other.owner()).expect("can be managed");
    assert_eq!(migration.nr_collected(), 40, "{:?}", migration.entries());
    assert_eq!(ground.device.nr_live(), 0, "their frames are free");
    assert_eq!(ground.driver.entry(map.page(20)), None, "their driver was told");
    assert_eq!(migration.store(other.id()), Ok(40));
    assert_eq!(migration.pages().finalize(), 40);
    assert_eq!(other.nr_on_device(map.pages()), 40);
    map.expect((0..40).filter(|page| !(30..34).contains(page)), SEED, "taken");
    map.expect_zero(30..34, "discarded");
    drop(map);
    drop(other);
    ground.finish();
}

/// Pages are collected by the frames that they are in, without their addresses.
///
/// # Panics
/// If not.
pub fn pages_are_found_by_frames(make: Make, watched: &Watched) {
    let (ground, map) = with_pages_on_device(make, watched, 60);
    let driver = &ground.driver;
    let mut frames: Vec<DevicePfn> =
        driver.look(map.pages()).iter().filter_map(frame_of).map(|frame| frame.pfn).collect();
    frames.sort_unstable();
    let (low, high) = (frames[20], frames[40]);
    let mut migration = ground
        .space
        .migrate_device_range(driver.id(), low..high, driver.select(), driver.owner())
        .expect("the device is the driver's");
    driver.forget(map.pages());
    assert_eq!(migration.nr_collected(), 20, "those frames and no others");
    for entry in migration.entries() {
        let (Source::Private(frame) | Source::Coherent(frame)) = entry.source() else {
            panic!("{entry:?} is in a frame");
        };
        assert!((low..high).contains(&frame.pfn), "{frame:?} was not asked for");
    }
    assert_eq!(migration.fetch(), 20);
    assert_eq!(migration.pages().finalize(), 20);
    assert_eq!(driver.nr_on_device(map.pages()), 40);
    let left = driver.look(map.pages());
    assert!(left.iter().filter_map(frame_of).all(|frame| !(low..high).contains(&frame.pfn)), "{left:?}");
    map.expect(0..60, SEED, "in the end");
    drop(map);
    ground.finish();
}

fn frame_of(pfn: &hmm::core::mirror::Pfn) -> Option<Frame> {
    match pfn.found {
        Found::Private(frame) | Found::Coherent(frame, _) => Some(frame),
        Found::None | Found::Error | Found::System { .. } => None,
    }
}
