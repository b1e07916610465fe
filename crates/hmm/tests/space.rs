//! The library on the real kernel.

#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{MIB, space, within};
use hmm::Faults;
use hmm::device::Ram;
use hmm::uapi::maps::Perms;

fn pattern(index: usize, round: u64) -> u64 {
    (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ round
}

#[test]
fn four_times_the_budget_keeps_every_byte() {
    within(120, || {
        let space = space(32 * MIB, Arc::new(Ram::new(64 * 1024)));
        let mut region = space.alloc(128 * MIB).expect("allocates");
        let words = region.as_mut_slice::<u64>();
        words[0] = 1;
        let tables = space.stats().metadata_bytes;
        for round in 0..3 {
            for (index, word) in words.iter_mut().enumerate() {
                if round > 0 {
                    assert_eq!(*word, pattern(index, round - 1), "word {index} in round {round}");
                }
                *word = pattern(index, round);
            }
        }
        let snapshot = space.stats();
        eprintln!("{snapshot:?}");
        assert!(snapshot.peak_resident <= snapshot.budget, "I9: {snapshot:?}");
        assert_eq!(snapshot.overcharged, 0);
        assert!(snapshot.away > 0 && snapshot.stored > 0);
        let grown = snapshot.metadata_bytes - tables;
        // Where faults must not allocate all of them were made before.
        let is_made_before = space.faults() == Faults::InThread;
        assert_eq!(grown == 0, is_made_before);
        assert!(grown * 400 <= 128 * MIB as u64, "a quarter of a percent: {grown}");
        drop(region);
        assert_eq!(space.stats().away, 0, "frames are freed with the region");
    });
}

/// When all memory is in use, what was taken out is given to new pages: as many at a time as before, not one.
#[test]
fn memory_is_filled_by_many_pages_a_fault() {
    within(60, || {
        let space = space(16 * MIB, Arc::new(Ram::new(64 * 1024)));
        let mut region = space.alloc(128 * MIB).expect("allocates");
        let before = space.stats().faults;
        let words = region.as_mut_slice::<u64>();
        words.iter_mut().enumerate().for_each(|(index, word)| *word = pattern(index, 0));
        let faults = space.stats().faults - before;
        assert!(faults < (128 * MIB / 4096 / 4) as u64, "{faults} faults for {} pages", 128 * MIB / 4096);
    });
}

/// What waits in staging comes back 64 KiB at a time, wherever it is touched: it is in memory, and waking a thread for each
/// page is what takes the time.
#[test]
fn a_second_chance_is_that_of_the_neighbours_too() {
    within(60, || {
        let space = space(32 * MIB, Arc::new(Ram::new(64 * 1024)));
        let mut region = space.alloc(2 * MIB).expect("allocates");
        let words = region.as_mut_slice::<u64>();
        words.iter_mut().enumerate().for_each(|(index, word)| *word = pattern(index, 0));
        let nr_pages = 2 * MIB / 4096;
        assert_eq!(space.evict(&region), nr_pages);
        let before = space.stats();
        // The pages in an order that is no stream.
        for page in (0..nr_pages).map(|number| number * 163 % nr_pages) {
            assert_eq!(region.as_slice::<u64>()[page * 512 + 7], pattern(page * 512 + 7, 0), "page {page}");
        }
        let after = space.stats();
        let chances = after.second_chances - before.second_chances;
        assert!(chances >= 16, "{chances} second chances for {nr_pages} pages");
        // On a slow machine some are stored before they are touched: each of those may take a fault of its own.
        let (faults, stored) = (after.faults - before.faults, nr_pages as u64 - chances);
        assert!(faults <= chances.div_ceil(16) + stored, "{faults} faults for {chances} second chances");
    });
}

/// Pages that may not be written to cannot leave: what does not fit into the budget gets memory beyond it, and the budget is
/// what it was when they can leave again.
#[test]
fn read_only_memory_of_twice_the_budget_is_read_soon() {
    within(60, || {
        let space = space(16 * MIB, Arc::new(Ram::new(64 * 1024)));
        let mut region = space.alloc(32 * MIB).expect("allocates");
        let nr_words = region.as_mut_slice::<u64>().len();
        region
            .as_mut_slice::<u64>()
            .iter_mut()
            .enumerate()
            .for_each(|(index, word)| *word = pattern(index, 0));
        let pages = hmm::mirror::pages(region.as_slice::<u64>());
        // SAFETY: nobody writes while it is read-only.
        unsafe { space.protect(pages, Perms::READ) }.expect("protects");
        let begin = Instant::now();
        for index in (0..nr_words).step_by(512) {
            assert_eq!(region.as_slice::<u64>()[index], pattern(index, 0), "word {index}");
        }
        let (took, snapshot) = (begin.elapsed(), space.stats());
        eprintln!("{took:?} {snapshot:?}");
        assert!(snapshot.overcharged > 0, "it would not fit: {snapshot:?}");
        // Nobody waits two seconds to see that pages do not leave of which that is known.
        assert!(took < Duration::from_secs(2), "I4: {took:?}");
        // SAFETY: as before.
        unsafe { space.protect(pages, Perms::READ | Perms::WRITE) }.expect("protects");
        while space.stats().budget * 4096 > 16 * MIB as u64 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let snapshot = space.stats();
        assert!(snapshot.resident <= snapshot.budget, "I9: {snapshot:?}");
    });
}

#[test]
fn random_access_by_four_threads() {
    within(120, || {
        let space = space(16 * MIB, Arc::new(Ram::new(64 * 1024)));
        let mut region = space.alloc(64 * MIB).expect("allocates");
        let part = 64 * MIB / 8 / 4;
        std::thread::scope(|scope| {
            for (number, words) in region.as_mut_slice::<u64>().chunks_mut(part).enumerate() {
                scope.spawn(move || {
                    let mut seed = number as u64 + 1;
                    let mut shadow = vec![0u64; part / 512];
                    for step in 0..20_000u64 {
                        seed = seed
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        let page = (seed >> 33) as usize % shadow.len();
                        assert_eq!(
                            words[page * 512],
                            shadow[page],
                            "thread {number} page {page} step {step}"
                        );
                        shadow[page] = seed;
                        words[page * 512] = seed;
                    }
                });
            }
        });
        let snapshot = space.stats();
        eprintln!("{snapshot:?}");
        assert!(snapshot.peak_resident <= snapshot.budget, "I9: {snapshot:?}");
    });
}
