//! Several devices, on the real kernel: what is in use is on the first.

#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

#[path = "common/watchdog.rs"]
mod watchdog;

use std::sync::Arc;
use std::time::Duration;

use hmm::device::decorate::{Verb, WithStats};
use hmm::device::{Device, Ram};
use hmm::lz4::{Lz4, Lz4Config};
use hmm::{AddressSpace, Region};
use watchdog::within;

const MIB: usize = 1 << 20;

/// Managed memory, and the part of it that is used again and again: more than may be resident, and less than that and what
/// the first device holds.
const ALL: usize = 64 * MIB;
const HOT: std::ops::Range<usize> = 40 * MIB / 8..60 * MIB / 8;
const WORDS_OF_PAGE: usize = 512;
/// Rounds of use. In the last of them nearly all that is used is on the first device.
const ROUNDS: usize = 60;
const LAST: usize = 10;

/// Half of each page compresses to nothing.
const fn word(index: usize) -> u64 {
    let is_noise = index % WORDS_OF_PAGE < WORDS_OF_PAGE / 2;
    if is_noise { (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) } else { 0 }
}

fn check(region: &Region, words: std::ops::Range<usize>, plus: u64) {
    let slice = &region.as_slice::<u64>()[words.clone()];
    for (index, found) in words.zip(slice) {
        assert_eq!(*found, word(index).wrapping_add(plus), "word {index}");
    }
}

/// What is used is only read, or written to as well.
fn the_first_device_serves(writes: bool) {
    within(240, move || {
        let upper = Arc::new(WithStats::new(Lz4::new(Lz4Config::new(8 * MIB)).expect("there is memory")));
        let lower = Arc::new(WithStats::new(Ram::new(ALL / 4096)));
        let (first, second): (Arc<dyn Device>, Arc<dyn Device>) = (upper.clone(), lower.clone());
        let builder = AddressSpace::builder().ram(16 * MIB as u64).device(first).device(second);
        let space = builder.build().expect("userfaultfd can be had");
        let mut region = space.alloc(ALL).expect("allocates");
        region.as_mut_slice::<u64>().iter_mut().enumerate().for_each(|(index, at)| *at = word(index));
        let fetched = || (upper.snapshot()[Verb::Fetch].pages, lower.snapshot()[Verb::Fetch].pages);
        let mut before = (0, 0);
        for round in 0..ROUNDS {
            if round == ROUNDS - LAST {
                before = (fetched().0 - space.stats().demoted, fetched().1);
            }
            let plus = if writes { round as u64 } else { 0 };
            check(&region, HOT, plus);
            if writes {
                region.as_mut_slice::<u64>()[HOT].iter_mut().for_each(|at| *at = at.wrapping_add(1));
            }
        }
        let after = (fetched().0 - space.stats().demoted, fetched().1);
        let (by_first, by_second) = (after.0 - before.0, after.1 - before.1);
        let snapshot = space.stats();
        eprintln!("{by_first} pages of the first, {by_second} of the second: {snapshot:?}");
        assert!(snapshot.demoted > 0 && snapshot.overcharged == 0, "{snapshot:?}");
        assert!(snapshot.peak_resident <= snapshot.budget, "I9: {snapshot:?}");
        assert!(by_first > 2 * by_second, "{by_first} pages of the first, {by_second} of the second");
        let plus = if writes { ROUNDS as u64 } else { 0 };
        check(&region, 0..HOT.start, 0);
        check(&region, HOT, plus);
        check(&region, HOT.end..ALL / 8, 0);
        drop(region);
        // What is under way ends, and finds that nobody needs it any more.
        while (space.stats().away, upper.usage().frames, lower.usage().frames) != (0, 0, 0) {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

#[test]
fn what_is_written_to_is_on_the_first_device() {
    the_first_device_serves(true);
}

#[test]
fn what_is_only_read_is_on_the_first_device_in_the_end() {
    the_first_device_serves(false);
}
