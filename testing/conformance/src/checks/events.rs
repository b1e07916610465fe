//! What the program does to its mappings while pages are on the device.

use hmm::core::mirror::{Found, Request};
use hmm::core::notifier::Cause;
use hmm::uapi::maps::Perms;

use super::{SEED, is_told, with_pages_on_device};
use crate::ground::Make;
use crate::watchdog::Watched;

/// Frames of pages that are unmapped are freed, once, and the driver is told.
///
/// # Panics
/// If not.
pub fn unmapped_pages_free_their_frames(make: Make, watched: &Watched) {
    let (ground, map) = with_pages_on_device(make, watched, 60);
    map.unmap(10, 30);
    ground.space.settle();
    assert_eq!(ground.device.nr_live(), 30, "30 of 60 were unmapped");
    let told = ground.driver.told();
    assert!(
        is_told(&told, Cause::Unmap, map.page(10)) && is_told(&told, Cause::Unmap, map.page(39)),
        "{told:?}"
    );
    assert!(!is_told(&told, Cause::Unmap, map.page(9)), "nobody unmapped the page in front: {told:?}");
    assert_eq!(ground.driver.entry(map.page(20)), None, "what was unmapped has no entry");
    assert!(ground.driver.entry(map.page(9)).is_some(), "what was not has one");
    map.expect((0..10).chain(40..60), SEED, "not unmapped");
    drop(map);
    ground.finish();
}

/// Pages that the program discards are zeroes, their frames free, and the driver is told.
///
/// # Panics
/// If not.
pub fn discarded_pages_read_zero(make: Make, watched: &Watched) {
    let (ground, map) = with_pages_on_device(make, watched, 60);
    map.discard(10, 50);
    ground.space.settle();
    assert_eq!(ground.device.nr_live(), 10, "50 of 60 were discarded");
    let told = ground.driver.told();
    assert!(
        is_told(&told, Cause::Clear, map.page(10)) && is_told(&told, Cause::Clear, map.page(59)),
        "{told:?}"
    );
    assert_eq!(ground.driver.entry(map.page(59)), None, "what was discarded has no entry");
    map.expect_zero(10..60, "discarded");
    map.fill(30, SEED);
    map.expect([30], SEED, "written after it was discarded");
    drop(map);
    ground.finish();
}

/// Another mapping at the place of one whose pages are on the device has none of them.
///
/// # Panics
/// If it has.
pub fn a_new_mapping_reads_zero(make: Make, watched: &Watched) {
    let (ground, map) = with_pages_on_device(make, watched, 60);
    map.replace();
    ground.space.settle();
    assert_eq!(ground.device.nr_live(), 0, "the mapping is gone");
    assert!(is_told(&ground.driver.told(), Cause::Unmap, map.page(0)));
    assert_eq!(ground.driver.nr_on_device(map.pages()), 0);
    map.expect_zero(0..60, "of the new mapping");
    (0..60).for_each(|page| map.fill(page, SEED + 1));
    assert_eq!(ground.driver.to_device(map.pages()), 60, "pages of the new mapping go as well");
    map.expect(0..60, SEED + 1, "of the new mapping");
    drop(map);
    ground.finish();
}

/// Pages that the program moves stay on the device, and are found at their new addresses.
///
/// # Panics
/// If not.
pub fn moved_pages_keep_their_frames(make: Make, watched: &Watched) {
    let (ground, map) = with_pages_on_device(make, watched, 60);
    let old = map.pages();
    map.relocate().expect("the whole mapping moves");
    ground.watch(map.pages());
    ground.space.settle();
    assert!(
        is_told(&ground.driver.told(), Cause::Unmap, old.start),
        "the driver is told of the old addresses"
    );
    assert_eq!(ground.driver.entry(old.start), None, "nothing is left at the old addresses");
    assert_eq!(ground.device.nr_live(), 60, "moving frees no frame");
    assert_eq!(ground.driver.nr_on_device(map.pages()), 60, "they are on the device at the new addresses");
    assert_eq!(ground.driver.to_system(map.part(0, 20)), 20, "a driver brings some home from there");
    map.expect(0..60, SEED, "moved");
    drop(map);
    ground.finish();
}

/// A page of a read-only mapping does not get lost: it comes home, does not leave, and cannot be written to by a device.
///
/// # Panics
/// If not.
pub fn read_only_pages(make: Make, watched: &Watched) {
    let (ground, map) = with_pages_on_device(make, watched, 60);
    // SAFETY: there are no references into the memory, and nobody writes to it.
    unsafe { ground.space.protect(map.pages(), Perms::READ) }.expect("protects");
    assert!(is_told(&ground.driver.told(), Cause::ProtectVma, map.page(59)), "the driver is told");
    assert_eq!(ground.driver.entry(map.page(59)), None, "its entries might have let it write");
    let on_device = ground.driver.look(map.pages());
    assert!(on_device.iter().all(|pfn| !pfn.write), "may not be written to: {on_device:?}");
    ground.driver.to_system(map.part(0, 20));
    map.expect(0..40, SEED, "of a read-only mapping");
    let wanted = ground.driver.fault(map.part(0, 20), Request::FAULT | Request::WRITE);
    assert_eq!(wanted, Err(hmm::core::mirror::RangeError::Permission), "of pages at home");
    ground.driver.to_device(map.pages());
    map.expect(0..60, SEED, "of a read-only mapping that was to go");
    // SAFETY: as above.
    unsafe { ground.space.protect(map.pages(), Perms::READ | Perms::WRITE) }.expect("protects");
    (0..60).for_each(|page| map.fill(page, SEED + 1));
    assert!(!ground.comes_home() || ground.driver.to_device(map.pages()) == 60, "as if nothing had happened");
    map.expect(0..60, SEED + 1, "written again");
    let found = ground.driver.fault(map.pages(), Request::FAULT | Request::WRITE).expect("writable again");
    assert!(found.iter().all(|pfn| pfn.found != Found::None && pfn.write), "{found:?}");
    drop(map);
    ground.finish();
}

/// Pages of a mapping that mprotect has divided come home all the same, and are there before they are touched.
///
/// # Panics
/// If not.
pub fn pages_of_a_divided_mapping(make: Make, watched: &Watched) {
    let (ground, map) = with_pages_on_device(make, watched, 60);
    for (first, len, perms) in [(20, 3, Perms::READ), (30, 1, Perms::READ), (40, 10, Perms::READ)] {
        // SAFETY: there are no references into the memory, and nobody writes to it.
        unsafe { ground.space.protect(map.part(first, len), perms) }.expect("protects");
    }
    let nr_home = ground.driver.to_system(map.pages());
    // What is in a coherent frame does not leave a read-only mapping.
    assert_eq!(nr_home, if ground.comes_home() { 60 } else { 60 - 14 });
    let found = ground.driver.look(map.pages());
    let nr_system = found.iter().filter(|pfn| matches!(pfn.found, Found::System { .. })).count();
    assert_eq!(nr_system, nr_home, "not mapped: {found:?}");
    map.expect(0..60, SEED, "of a mapping that was divided");
    drop(map);
    ground.finish();
}
