//! Pages that the device has to itself, in system memory.

use std::sync::atomic::{AtomicU64, Ordering};

use hmm::core::driver::Select;
use hmm::core::mirror::{Found, Request};
use hmm::core::notifier::{Cause, Owner};
use hmm::uapi::maps::Perms;

use super::{SEED, is_told, with_pages_on_device};
use crate::driver::{Driver, Entry};
use crate::ground::Make;
use crate::memory::content;
use crate::watchdog::Watched;

/// The device's atomics on a page that it has taken, if it has it still.
fn add(driver: &Driver, page: hmm::core::addr::Vpn, word: usize, value: u64) -> Option<u64> {
    let table = driver.notifier().table();
    let Some(Entry::Exclusive(addr)) = table.entries.get(&page) else { return None };
    let at = std::ptr::with_exposed_provenance_mut::<u64>(usize::try_from(*addr).ok()?).wrapping_add(word);
    // SAFETY: while the table, which is locked, has the entry, the page is at this address for us alone (I5).
    let word = unsafe { AtomicU64::from_ptr(at) };
    Some(word.fetch_add(value, Ordering::SeqCst))
}

fn word(page: usize, word: usize) -> u64 {
    u64::from_ne_bytes(content(page, SEED)[word * 8..][..8].try_into().unwrap_or_default())
}

/// A page from the device or from home is the device's alone until the CPU, another device or a migration wants it; what
/// the device did to it is seen then.
///
/// # Panics
/// If not.
pub fn exclusive_until_touched(make: Make, watched: &Watched) {
    let (ground, map) = with_pages_on_device(make, watched, 8);
    let driver = &ground.driver;
    let other = Driver::new(&ground.space, ground.another(), Owner(8));
    let expected = |page| word(page, 5).wrapping_add(3);
    for page in 0..4 {
        driver.take(map.page(page)).expect("private anonymous memory");
        assert_eq!(
            add(driver, map.page(page), 5, 3),
            Some(word(page, 5)),
            "the device sees the page's bytes"
        );
        assert_eq!(driver.look(map.part(page, 1))[0].found, Found::None, "it is nowhere else");
        other.told();
        driver.told();
        match page {
            0 => assert_eq!(map.read(0, 5), expected(0), "the CPU sees what the device did"),
            1 => {
                let found = other.fault(map.part(1, 1), Request::FAULT).expect("can be had");
                assert_eq!(found[0].found, Found::System { zero: false });
            }
            2 => {
                let migration = ground.space.migrate_setup(map.part(2, 1), Select::SYSTEM, other.owner());
                assert_eq!(
                    migration.expect("a short range").nr_collected(),
                    1,
                    "it is given up for a migration"
                );
            }
            _ => {
                other.take(map.page(page)).expect("given up for another device");
                assert_eq!(add(&other, map.page(page), 5, 0), Some(expected(page)));
            }
        }
        assert!(is_told(&driver.told(), Cause::Clear, map.page(page)), "its driver is told, case {page}");
        assert_eq!(add(driver, map.page(page), 5, 1), None, "it has it no more, case {page}");
        assert_eq!(map.read(page, 5), expected(page), "in the end, case {page}");
    }
    assert_eq!(driver.take(map.page(0)).map(|_| ()), Ok(()), "again");
    map.fill(0, SEED);
    map.expect([0, 4, 5, 6, 7], SEED, "the others");
    drop(other);
    drop(map);
    ground.finish();
}

/// A page that is unmapped, discarded or moved is the device's no more; what may not be written to never is.
///
/// # Panics
/// If not.
pub fn exclusive_pages_end_with_their_memory(make: Make, watched: &Watched) {
    let (ground, map) = with_pages_on_device(make, watched, 8);
    let driver = &ground.driver;
    let take = |page| {
        driver.take(map.page(page)).expect("private anonymous memory");
        assert!(add(driver, map.page(page), 1, 1).is_some(), "it has it");
    };
    take(1);
    map.discard(1, 1);
    ground.space.settle();
    assert_eq!(add(driver, map.page(1), 1, 1), None, "discarded");
    map.expect_zero([1], "discarded");
    take(2);
    let old = map.page(2);
    map.relocate().expect("the whole mapping moves");
    ground.space.settle();
    assert_eq!(add(driver, old, 1, 1), None, "moved");
    assert_eq!(map.read(2, 1), word(2, 1).wrapping_add(1), "what the device did moved along");
    take(3);
    map.unmap(3, 1);
    ground.space.settle();
    assert_eq!(add(driver, map.page(3), 1, 1), None, "unmapped");
    // Another test of this process may have mapped something there by now.
    assert!(driver.take(map.page(3)).is_err() || map.is_mapped(3), "there is nothing");
    // SAFETY: there are no references into the memory, and nobody writes to it.
    unsafe { ground.space.protect(map.part(7, 1), Perms::READ) }.expect("protects");
    assert!(driver.take(map.page(7)).is_err(), "a device may not write where the program may not");
    map.expect([0, 4, 5, 6, 7], SEED, "the others");
    drop(map);
    ground.finish();
}
