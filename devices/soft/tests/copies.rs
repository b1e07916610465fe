//! Copies of pages that everybody only reads, on the real kernel: whoever writes, nobody reads what was there before.

#![expect(clippy::tests_outside_test_module, reason = "integration test")]

mod common;

use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use common::{PAGE, map, soft, space, unmap, watched};
use hmm::AddressSpace;
use hmm::core::addr::PageRange;
use hmm::core::hints::Advice;
use hmm_soft::{Ptr, Soft, Unit};

/// The program's allocator, so that the device may have any pointer.
#[global_allocator]
static ALLOCATOR: hmm::Heap = hmm::Heap;

const NR_PAGES: usize = 64;

/// A fork shares the whole process's memory with a child, and what is shared is not protected: each test runs alone.
fn alone(test: impl FnOnce()) {
    static ONE: Mutex<()> = Mutex::new(());
    let _alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    watched(test);
}

/// Memory of the test's own, a word for each page, that is said to be read mostly.
struct Pages {
    at: u64,
}

impl Pages {
    fn new(space: &AddressSpace) -> Self {
        let pages = Self { at: map(NR_PAGES) };
        (0..NR_PAGES).for_each(|page| pages.word(page).store(page as u64, Ordering::Relaxed));
        pages.advise(space);
        pages
    }

    fn advise(&self, space: &AddressSpace) {
        space.advise(self.range(), Advice::ReadMostly(true));
    }

    fn range(&self) -> PageRange {
        PageRange::of_bytes(self.at, self.at + (NR_PAGES * PAGE) as u64)
    }

    #[expect(clippy::cast_possible_truncation, reason = "addresses have 64 bits here")]
    fn word(&self, page: usize) -> &AtomicU64 {
        let word = std::ptr::with_exposed_provenance_mut(self.at as usize + page * PAGE);
        // SAFETY: an aligned word of the mapping, accessed atomically by everybody.
        unsafe { AtomicU64::from_ptr(word) }
    }

    fn ptr(&self, page: usize) -> Ptr<u64> {
        Ptr::new(self.at + (page * PAGE) as u64)
    }

    /// What a device reads.
    fn seen_by(&self, soft: &Soft) -> Vec<u64> {
        let seen = Mutex::new(Vec::new());
        let kernel = |unit: &Unit<'_>| {
            let words: Result<Vec<_>, _> = (0..NR_PAGES).map(|page| unit.load(self.ptr(page))).collect();
            *seen.lock().expect("no kernel panics") = words?;
            Ok(())
        };
        // SAFETY: the words are accessed atomically.
        unsafe { soft.launch(kernel) }.expect("the pages are there");
        seen.into_inner().expect("no kernel panics")
    }

    fn seen_by_the_cpu(&self) -> Vec<u64> {
        (0..NR_PAGES).map(|page| self.word(page).load(Ordering::Relaxed)).collect()
    }
}

fn nr_faults(space: &AddressSpace) -> u64 {
    space.stats().faults
}

#[test]
fn both_sides_read_and_nobody_has_a_fault() {
    alone(|| {
        let space = space();
        let (one, two) = (soft(&space, 256), soft(&space, 256));
        let pages = Pages::new(&space);
        let expected: Vec<u64> = (0..NR_PAGES as u64).collect();
        assert_eq!(pages.seen_by(&one), expected);
        assert_eq!(pages.seen_by(&two), expected);
        for soft in [&one, &two] {
            let stats = soft.stats();
            assert_eq!((stats.duplicated, stats.in_place, stats.migrated), (NR_PAGES as u64, 0, 0));
            assert_eq!(soft.resident_pages(), NR_PAGES as u64);
        }
        // The second device's copies were no reason to drop the first's.
        let before = (nr_faults(&space), one.stats().faults, two.stats().faults);
        assert_eq!(pages.seen_by_the_cpu(), expected);
        assert_eq!((pages.seen_by(&one), pages.seen_by(&two)), (expected.clone(), expected.clone()));
        assert_eq!((nr_faults(&space), one.stats().faults, two.stats().faults), before);
        // Given up, nothing comes home: it is there.
        assert_eq!(one.evict(pages.at, NR_PAGES * PAGE), NR_PAGES);
        assert_eq!(
            (one.resident_pages(), one.stats().evicted, one.stats().uncopied),
            (0, 0, NR_PAGES as u64)
        );
        assert_eq!(pages.seen_by(&one), expected);
    });
}

#[test]
fn a_write_of_the_cpu_is_read_by_all_devices() {
    alone(|| {
        let space = space();
        let (one, two) = (soft(&space, 256), soft(&space, 256));
        let pages = Pages::new(&space);
        let mut expected: Vec<u64> = (0..NR_PAGES as u64).collect();
        for round in 0..50 {
            assert_eq!(pages.seen_by(&one), expected, "{round}");
            assert_eq!(pages.seen_by(&two), expected, "{round}");
            let page = round * 7 % NR_PAGES;
            expected[page] = 1000 + round as u64;
            pages.word(page).store(expected[page], Ordering::Relaxed);
        }
        assert!(one.stats().duplicated > NR_PAGES as u64, "{:?}", one.stats());
    });
}

#[test]
fn a_write_of_the_kernels_is_read_too() {
    alone(|| {
        let space = space();
        let soft = soft(&space, 256);
        let pages = Pages::new(&space);
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let mut expected: Vec<u64> = (0..NR_PAGES as u64).collect();
        for round in 0..20 {
            assert_eq!(pages.seen_by(&soft), expected);
            writer.write_all(&(5000_u64 + round).to_ne_bytes()).unwrap();
            // SAFETY: a word of the mapping, and no kernel runs.
            let into = unsafe { std::slice::from_raw_parts_mut(pages.word(9).as_ptr().cast::<u8>(), 8) };
            reader.read_exact(into).unwrap();
            expected[9] = 5000 + round;
        }
        assert_eq!(pages.seen_by(&soft), expected);
        assert!(soft.stats().duplicated > NR_PAGES as u64);
    });
}

#[test]
fn a_write_of_a_device_drops_the_copies_and_migrates() {
    alone(|| {
        let space = space();
        let (one, two) = (soft(&space, 256), soft(&space, 256));
        let pages = Pages::new(&space);
        let mut expected = pages.seen_by(&one);
        assert_eq!(pages.seen_by(&two), expected);
        for round in 0..20 {
            let page = round * 5 % NR_PAGES;
            // SAFETY: the words are accessed atomically.
            unsafe { two.launch(|unit| unit.store(pages.ptr(page), 7000 + round as u64)) }.unwrap();
            expected[page] = 7000 + round as u64;
            assert_eq!(pages.seen_by(&one), expected);
            assert_eq!(pages.seen_by(&two), expected);
            assert_eq!(pages.seen_by_the_cpu(), expected);
        }
        assert!(two.stats().migrated > 0, "{:?}", two.stats());
    });
}

#[test]
fn what_is_written_first_is_read_first() {
    alone(|| {
        let space = space();
        let soft = soft(&space, 256);
        let pages = Pages::new(&space);
        (0..NR_PAGES).for_each(|page| pages.word(page).store(0, Ordering::Relaxed));
        let over = AtomicBool::new(false);
        let (first, second) = (3, 40);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for value in 1..3000 {
                    pages.word(first).store(value, Ordering::Release);
                    pages.word(second).store(value, Ordering::Release);
                    if value % 8 == 0 {
                        std::thread::yield_now();
                    }
                }
                over.store(true, Ordering::Release);
            });
            let kernel = |unit: &Unit<'_>| {
                let mut last = 0;
                while !over.load(Ordering::Acquire) {
                    let later = unit.load(pages.ptr(second))?;
                    let earlier = unit.load(pages.ptr(first))?;
                    assert!(earlier >= later, "{later} was written behind {earlier}");
                    assert!(later >= last, "{later} behind {last}");
                    last = later;
                }
                Ok(())
            };
            // SAFETY: the words are accessed atomically.
            unsafe { soft.launch(kernel) }.unwrap();
        });
        assert_eq!(pages.seen_by(&soft), pages.seen_by_the_cpu());
        println!("{:?}", soft.stats());
        assert!(soft.stats().duplicated > 0);
    });
}

#[test]
fn what_the_program_does_to_its_mappings_ends_copies() {
    alone(|| {
        let space = space();
        let soft = soft(&space, 256);
        let mut pages = Pages::new(&space);
        let expected = pages.seen_by(&soft);
        assert_eq!(soft.stats().duplicated, NR_PAGES as u64);
        // Evicted, and read again.
        assert_eq!(space.evict_pages(pages.range()), NR_PAGES);
        assert_eq!(pages.seen_by(&soft), expected);
        assert_eq!(pages.seen_by_the_cpu(), expected);
        // Moved: the new place is written to and read.
        pages.advise(&space);
        assert_eq!(pages.seen_by(&soft), expected);
        let to = map(NR_PAGES);
        let old = std::ptr::with_exposed_provenance_mut(usize::try_from(pages.at).unwrap());
        let new = std::ptr::with_exposed_provenance_mut::<libc::c_void>(usize::try_from(to).unwrap());
        let (len, flags) = (NR_PAGES * PAGE, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED);
        // SAFETY: two mappings of the test's own.
        assert_eq!(unsafe { libc::mremap(old, len, len, flags, new) }, new);
        pages.at = to;
        pages.advise(&space);
        assert_eq!(pages.seen_by(&soft), expected);
        pages.word(5).store(99, Ordering::Relaxed);
        assert_eq!(pages.seen_by(&soft)[5], 99);
        // Discarded: zeroes, and what is written behind them.
        // SAFETY: memory of the test's own.
        assert_eq!(unsafe { libc::madvise(new, len, libc::MADV_DONTNEED) }, 0);
        assert_eq!(pages.seen_by(&soft), [0; NR_PAGES]);
        pages.word(6).store(66, Ordering::Relaxed);
        assert_eq!(pages.seen_by(&soft)[6], 66);
        // Unmapped, and new memory at the same place.
        unmap(pages.at, NR_PAGES);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: the place that was given up just now.
        let again = unsafe { libc::mmap(new, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        assert_eq!(again, new);
        pages.word(7).store(77, Ordering::Relaxed);
        assert_eq!((pages.seen_by(&soft)[6], pages.seen_by(&soft)[7]), (0, 77));
    });
}

#[test]
fn a_fork_changes_nothing() {
    alone(|| {
        let space = space();
        let soft = soft(&space, 256);
        let pages = Pages::new(&space);
        let mut expected = pages.seen_by(&soft);
        for round in 0..10 {
            // SAFETY: the child writes to its own copies of pages, and ends.
            let child = unsafe { hmm_conformance::fork() };
            if child == 0 {
                (0..NR_PAGES).for_each(|page| pages.word(page).store(1 << 40, Ordering::Relaxed));
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) };
            }
            let page = round * 6 + 1;
            expected[page] = 300 + round as u64;
            pages.word(page).store(expected[page], Ordering::Relaxed);
            assert_eq!(pages.seen_by(&soft), expected);
            let mut status = 1;
            // SAFETY: our child, and a place for its status.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0, "the child was stopped by its own write");
            assert_eq!(pages.seen_by(&soft), expected);
        }
        assert_eq!(pages.seen_by_the_cpu(), expected);
    });
}

#[test]
fn copies_leave_for_others_without_being_copied_back() {
    alone(|| {
        let space = space();
        // Room for half of them.
        let soft = soft(&space, NR_PAGES / 2);
        let pages = Pages::new(&space);
        let expected: Vec<u64> = (0..NR_PAGES as u64).collect();
        for _ in 0..5 {
            assert_eq!(pages.seen_by(&soft), expected);
        }
        let stats = soft.stats();
        assert_eq!((stats.evicted, stats.migrated), (0, 0));
        // What of a window does not fit is read in place, so how many leave depends on how faults fall.
        assert!(stats.uncopied >= NR_PAGES as u64 / 2, "{stats:?}");
    });
}
