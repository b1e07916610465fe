//! The device on the real kernel: threads that work at the same time, devices that end.

#![expect(clippy::tests_outside_test_module, reason = "integration test")]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};

use common::{PAGE, map, soft, space, unmap, watched};
use hmm::core::hints::{Advice, Preferred};
use hmm_soft::{Group, Ptr, Unit};

/// The program's allocator, so that the device may have any pointer.
#[global_allocator]
static ALLOCATOR: hmm::Heap = hmm::Heap;

#[test]
fn no_count_is_lost_between_the_cpu_and_two_devices() {
    watched(|| {
        let space = space();
        let group = Group::new();
        let build = || {
            hmm_soft::Soft::builder(&space).unwrap().memory(64 * PAGE).units(2).group(&group).build().unwrap()
        };
        let (one, two) = (build(), build());
        let words: Vec<AtomicU64> = (0..32 * PAGE / 8).map(|_| AtomicU64::new(0)).collect();
        let at = Ptr::<u64>::from_raw(words.as_ptr().cast());
        let (rounds, stride) = (3000, 61);
        let kernel = |unit: &Unit<'_>| {
            for round in 0..rounds {
                for index in (round % stride..words.len()).step_by(stride) {
                    unit.fetch_add(at.add(index), 1)?;
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            for soft in [&one, &two] {
                // SAFETY: everybody accesses the words atomically.
                scope.spawn(move || unsafe { soft.launch(kernel) }.unwrap());
            }
            for round in 0..rounds {
                for index in (round % stride..words.len()).step_by(stride) {
                    words[index].fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let mut expected = vec![0; stride];
        (0..rounds).for_each(|round| expected[round % stride] += 5);
        let is_right =
            |(index, word): (usize, &AtomicU64)| word.load(Ordering::Relaxed) == expected[index % stride];
        assert!(words.iter().enumerate().all(is_right));
        println!("{:?}\n{:?}", one.stats(), two.stats());
        assert!(one.stats().migrated + two.stats().migrated > 0);
    });
}

#[test]
fn no_count_is_lost_on_more_than_fits() {
    watched(|| {
        let space = space();
        let soft = hmm_soft::Soft::builder(&space).unwrap().memory(8 << 20).units(2).build().unwrap();
        let nr_pages = 4 * 2048 / 2;
        let at = map(nr_pages);
        let word = |page: usize| at + (page * PAGE) as u64;
        let here = Preferred::Device(soft.index());
        for moved in [None, Some(here)] {
            let pages = hmm::core::addr::PageRange::of_bytes(at, word(nr_pages));
            space.advise(pages, Advice::Preferred(moved));
            let kernel = |unit: &Unit<'_>| {
                for _ in 0..3 {
                    for page in unit.share(nr_pages) {
                        unit.fetch_add(Ptr::<u64>::new(word(page)), 1)?;
                    }
                }
                Ok(())
            };
            std::thread::scope(|scope| {
                // SAFETY: everybody accesses the words atomically.
                scope.spawn(|| unsafe { soft.launch(kernel) }.unwrap());
                (0..3 * nr_pages).for_each(|round| {
                    cpu_word(word(round * 61 % nr_pages)).fetch_add(1, Ordering::Relaxed);
                });
            });
            println!("{:?}", soft.stats());
        }
        let wrong = (0..nr_pages).find(|page| cpu_word(word(*page)).load(Ordering::Relaxed) != 12);
        assert_eq!(wrong, None);
        assert!(soft.stats().evicted > 0, "{:?}", soft.stats());
        unmap(at, nr_pages);
    });
}

#[expect(clippy::cast_possible_truncation, reason = "addresses have 64 bits here")]
fn cpu_word<'a>(at: u64) -> &'a AtomicU64 {
    // SAFETY: an aligned word of the test's memory, accessed atomically by everybody.
    unsafe { AtomicU64::from_ptr(std::ptr::with_exposed_provenance_mut(at as usize)) }
}

#[test]
fn pages_come_home_when_the_device_ends() {
    watched(|| {
        let space = space();
        let words: Vec<u64> = (0..200_000).collect();
        let soft = soft(&space, 1024);
        space.advise(hmm::mirror::pages(&words), Advice::Preferred(Some(Preferred::Device(soft.index()))));
        // What the program is changing at that moment stays: other tests map and unmap.
        let all_went = || {
            soft.prefetch(Ptr::of(&words).addr(), words.len() * 8);
            soft.resident_pages() > 300
        };
        assert!((0..10).any(|_| all_went()), "{} of 390 pages went", soft.resident_pages());
        drop(soft);
        drop(space);
        assert!(words.iter().enumerate().all(|(index, word)| *word == index as u64));
    });
}

#[test]
fn devices_of_a_group_copy_directly() {
    watched(|| {
        let space = space();
        let group = Group::new();
        let build =
            || hmm_soft::Soft::builder(&space).unwrap().memory(1 << 22).group(&group).build().unwrap();
        let (one, two) = (build(), build());
        let words: Vec<u64> = (0..100_000).collect();
        let (addr, nr_bytes) = (Ptr::of(&words).addr(), words.len() * 8);
        let there = one.prefetch(addr, nr_bytes);
        assert!(there > 100);
        assert_eq!(two.prefetch(addr, nr_bytes), there);
        assert_eq!((two.stats().from_peers, one.resident_pages()), (there as u64, 0));
        assert!(words.iter().enumerate().all(|(index, word)| *word == index as u64));
    });
}

#[test]
fn what_is_away_comes_home_when_the_space_ends() {
    watched(|| {
        let space = space();
        let soft = soft(&space, 1024);
        let words: Vec<u64> = (0..200_000).collect();
        let pages = hmm::mirror::pages(&words);
        // Half of it on a device, and the rest in staging.
        assert!(soft.prefetch(Ptr::of(&words).addr(), words.len() * 4) > 150);
        space.manage(pages).unwrap();
        assert!(space.evict_pages(pages) > 150);
        drop(soft);
        drop(space);
        assert!(words.iter().enumerate().all(|(index, word)| *word == index as u64));
    });
}
