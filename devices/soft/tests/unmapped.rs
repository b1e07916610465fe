//! Memory that the program unmaps. In a process of its own, one test at a time: a kernel that goes on with an address that was
//! given up accesses what others have mapped there since, as a thread of the program would.

#![expect(clippy::tests_outside_test_module, reason = "integration test")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use common::{PAGE, map, soft, space, unmap, watched};
use hmm_soft::{DeviceFault, LaunchError, Ptr, Unit, Why};

/// The program's allocator, so that the device may have any pointer.
#[global_allocator]
static ALLOCATOR: hmm::Heap = hmm::Heap;

fn one_at_a_time(test: impl FnOnce()) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    watched(test);
}

#[test]
fn memory_that_is_unmapped_during_a_kernel_is_a_fault_and_no_crash() {
    one_at_a_time(|| {
        let space = space();
        let soft = soft(&space, 256);
        // Less than anybody else maps at a time: a sanitizer's runtime took a place of 256 KiB as soon as it was free, and the kernel
        // went on there for ever.
        let nr_pages = 15;
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
fn what_was_unmapped_keeps_nothing_from_leaving() {
    one_at_a_time(|| {
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
        // Of a mapping that the kernel has joined with a neighbour more come.
        let before = soft.resident_pages();
        assert!(before >= 64);
        unmap(at + 7 * PAGE as u64, 3);
        assert_eq!(soft.evict(at, 64 * PAGE), 61);
        assert_eq!(soft.resident_pages(), before - 64);
        unmap(at, 64);
    });
}
