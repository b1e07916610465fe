//! The device on the real kernel: memory that comes and goes, threads that work at the same time, devices that end.

#![expect(clippy::tests_outside_test_module, reason = "integration test")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{PAGE, map, soft, space, unmap, watched};
use hmm::core::hints::{Advice, Preferred};
use hmm_soft::{DeviceFault, Group, LaunchError, Ptr, Unit, Why};

/// The program's allocator, so that the device may have any pointer.
#[global_allocator]
static ALLOCATOR: hmm::Heap = hmm::Heap;

#[test]
fn memory_that_is_unmapped_during_a_kernel_is_a_fault_and_no_crash() {
    watched(|| {
        let space = space();
        let soft = soft(&space, 256);
        let nr_pages = 64;
        let mut faults = 0;
        for round in 0..40 {
            let at = map(nr_pages);
            let started = AtomicBool::new(false);
            let result = std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !started.load(Ordering::Acquire) {
                        std::hint::spin_loop();
                    }
                    unmap(at, nr_pages);
                });
                let kernel = |unit: &Unit<'_>| -> Result<(), DeviceFault> {
                    for pass in 0.. {
                        for page in 0..nr_pages {
                            let word = Ptr::<u64>::new(at + (page * PAGE) as u64);
                            match round % 4 {
                                // In place, migrated, as a slice, atomically.
                                0 => unit.load(word).map(|_| ())?,
                                1 => unit.store(word, 1)?,
                                2 => unit.chunks(word, 512, |_, _| {})?,
                                _ => unit.fetch_add(word, 1).map(|_| ())?,
                            }
                        }
                        started.store(pass > 0, Ordering::Release);
                    }
                    Ok(())
                };
                // SAFETY: nobody else accesses the memory; that it is unmapped is what this is about.
                unsafe { soft.launch(kernel) }
            });
            match result {
                Err(LaunchError::Fault(fault)) => {
                    assert!(matches!(fault.why, Why::NoMapping | Why::Vanished), "{fault}");
                    faults += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(faults, 40);
        println!("{:?}", soft.stats());
    });
}

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
fn what_was_unmapped_keeps_nothing_from_leaving() {
    watched(|| {
        let space = space();
        let soft = soft(&space, 256);
        let at = map(64);
        // SAFETY: nobody else accesses the memory.
        let result = unsafe {
            soft.launch(|unit| {
                (0..64).try_for_each(|page| unit.store(Ptr::new(at + page * PAGE as u64), page))
            })
        };
        result.unwrap();
        assert_eq!(soft.resident_pages(), 64);
        unmap(at + 7 * PAGE as u64, 3);
        assert_eq!(soft.evict(at, 64 * PAGE), 61);
        assert_eq!(soft.resident_pages(), 0);
        unmap(at, 64);
    });
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
