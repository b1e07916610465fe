//! Huge pages of the real kernel's: they come, are entered and go as one, and are taken apart by whoever takes a part.

#![expect(clippy::tests_outside_test_module, reason = "integration test")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use common::{PAGE, map, soft, space, unmap, watched};
use hmm::core::hints::{Advice, Preferred};
use hmm_soft::{Group, Ptr, Soft};
use hmm_uapi::mapping::Advice as Use;
use hmm_uapi::maps::Perms;
use hmm_uapi::pagemap::{Categories, PageRegion, Pagemap, ScanArgs};
use hmm_uapi::{AddrRange, Mapping};

/// The program's allocator, so that the device may have any pointer.
#[global_allocator]
static ALLOCATOR: hmm::Heap = hmm::Heap;

const HUGE: usize = 2 << 20;
const HUGE_PAGES: u64 = 512;

/// Runs a test while no other of this file maps and unmaps: what changes at that moment does not migrate.
fn one_at_a_time(test: impl FnOnce()) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    watched(test);
}

/// Memory of huge pages between others of nobody's; a word for each page is used.
struct Huge {
    mapping: Mapping,
    nr_bytes: usize,
}

impl Huge {
    /// So many huge pages, or `None` where the kernel gives none.
    fn new(nr: usize) -> Option<Self> {
        let nr_bytes = nr * HUGE;
        let mapping = Mapping::reserve_aligned(nr_bytes + 2 * HUGE, HUGE).expect("addresses");
        mapping.commit(HUGE, nr_bytes).expect("memory");
        mapping.advise(HUGE, nr_bytes, Use::HugePage).expect("advises");
        let huge = Self { mapping, nr_bytes };
        (0..huge.nr_pages()).for_each(|page| huge.word(page).store(page as u64, Ordering::Relaxed));
        if huge.nr_huge() < nr {
            eprintln!("SKIPPED: the kernel gives no huge pages");
            return None;
        }
        Some(huge)
    }

    fn nr_pages(&self) -> usize {
        self.nr_bytes / PAGE
    }

    fn addr(&self) -> u64 {
        self.mapping.range().start + HUGE as u64
    }

    fn ptr(&self, page: usize) -> Ptr<u64> {
        Ptr::new(self.addr() + (page * PAGE) as u64)
    }

    #[expect(clippy::cast_possible_truncation, reason = "addresses have 64 bits here")]
    fn word(&self, page: usize) -> &AtomicU64 {
        let word = std::ptr::with_exposed_provenance_mut(self.ptr(page).addr() as usize);
        // SAFETY: an aligned word of the mapping, accessed atomically by everybody.
        unsafe { AtomicU64::from_ptr(word) }
    }

    /// Whether each page's word is its number, plus something.
    fn has(&self, plus: u64) -> bool {
        (0..self.nr_pages()).all(|page| self.word(page).load(Ordering::Relaxed) == page as u64 + plus)
    }

    /// How many huge pages are mapped.
    fn nr_huge(&self) -> usize {
        let mut nr_bytes = 0;
        let mut at = AddrRange::new(self.addr(), self.nr_bytes as u64);
        let pagemap = Pagemap::open().expect("a pagemap");
        while at.start < at.end {
            let mut regions = [PageRegion::default(); 16];
            let scanned = pagemap.scan(at, ScanArgs::any(Categories::HUGE), &mut regions).expect("scans");
            nr_bytes += regions[..scanned.nr_regions].iter().map(|region| region.range().len()).sum::<u64>();
            at.start = scanned.walk_end;
        }
        usize::try_from(nr_bytes).expect("64 bits") / HUGE
    }
}

fn device(space: &hmm::AddressSpace, nr_huge: usize, group: &Group) -> Soft {
    let builder = Soft::builder(space).expect("a builder");
    builder.memory(nr_huge * HUGE).units(2).group(group).build().expect("a device")
}

/// Adds one to every word, by two units.
fn add_one(soft: &Soft, huge: &Huge) {
    // SAFETY: the words are accessed atomically.
    let result = unsafe {
        soft.launch(|unit| {
            unit.share(huge.nr_pages()).try_for_each(|page| unit.fetch_add(huge.ptr(page), 1).map(|_| ()))
        })
    };
    result.expect("the pages are there");
}

#[test]
fn they_come_and_go_as_one() {
    one_at_a_time(|| {
        let Some(huge) = Huge::new(4) else { return };
        let space = space();
        let soft = device(&space, 8, &Group::new());
        for round in 1..=5 {
            add_one(&soft, &huge);
            let stats = soft.stats();
            assert_eq!(stats.migrated, 4 * HUGE_PAGES * round, "{stats:?}");
            assert!(stats.huge >= 4 * round, "{stats:?}");
            assert_eq!(huge.nr_huge(), 0);
            assert_eq!(soft.evict(huge.addr(), huge.nr_bytes), huge.nr_pages());
            assert!(huge.has(round));
            assert_eq!(huge.nr_huge(), 4, "they are huge again");
        }
        // A fault for each, or two if both units meet.
        assert!(soft.stats().faults <= 40, "{:?}", soft.stats());
        assert_eq!(soft.resident_pages(), 0);
    });
}

#[test]
fn more_than_fits_leaves_and_comes_back_as_one() {
    one_at_a_time(|| {
        let Some(huge) = Huge::new(8) else { return };
        let space = space();
        let soft = device(&space, 4, &Group::new());
        let here = Preferred::Device(soft.index());
        space.advise(
            hmm::core::addr::PageRange::of_bytes(huge.addr(), huge.addr() + huge.nr_bytes as u64),
            Advice::Preferred(Some(here)),
        );
        for _ in 0..3 {
            add_one(&soft, &huge);
        }
        let stats = soft.stats();
        assert!(stats.evicted >= 4 * HUGE_PAGES, "{stats:?}");
        assert!(huge.nr_huge() >= 4, "what was evicted is huge: {}", huge.nr_huge());
        assert!(huge.has(3));
    });
}

#[test]
fn the_program_takes_parts_of_them() {
    one_at_a_time(|| {
        let Some(huge) = Huge::new(2) else { return };
        let space = space();
        let soft = device(&space, 8, &Group::new());
        add_one(&soft, &huge);
        let rounds = 300;
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..rounds {
                    let page = round * 67 % huge.nr_pages();
                    huge.word(page).fetch_add(1 << 32, Ordering::Relaxed);
                }
                over.store(true, Ordering::Release);
            });
            while !over.load(Ordering::Acquire) {
                add_one(&soft, &huge);
                // Each round counts in the low half: taken back at the end.
                (0..huge.nr_pages()).for_each(|page| {
                    huge.word(page).fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        let mut expected: Vec<u64> = (1..=huge.nr_pages() as u64).collect();
        (0..rounds).for_each(|round| expected[round * 67 % huge.nr_pages()] += 1 << 32);
        let found: Vec<_> =
            (0..huge.nr_pages()).map(|page| huge.word(page).load(Ordering::Relaxed)).collect();
        assert_eq!(found, expected);
    });
}

#[test]
fn unmapping_protecting_and_copies_take_them_apart() {
    one_at_a_time(|| {
        let Some(huge) = Huge::new(1) else { return };
        let space = space();
        let soft = device(&space, 8, &Group::new());
        add_one(&soft, &huge);
        assert!(soft.stats().huge > 0);
        unmap(huge.ptr(100).addr(), 2);
        let load = |page: usize| {
            let value = AtomicU64::new(0);
            // SAFETY: the words are accessed atomically.
            let result = unsafe {
                soft.launch(|unit| {
                    value.store(unit.load(huge.ptr(page))?, Ordering::Relaxed);
                    Ok(())
                })
            };
            result.map(|()| value.into_inner())
        };
        // SAFETY: as above.
        let store = |page: usize| unsafe { soft.launch(|unit| unit.store(huge.ptr(page), 9)) };
        assert!(load(100).is_err() && load(101).is_err());
        assert_eq!((load(99).unwrap(), load(102).unwrap()), (100, 103));
        let range = |first: usize, nr: usize| {
            hmm::core::addr::PageRange::of_bytes(huge.ptr(first).addr(), huge.ptr(first + nr).addr())
        };
        // SAFETY: memory of the test's own, to which nobody writes but the device.
        unsafe { space.protect(range(200, 3), Perms::READ) }.unwrap();
        assert!(store(201).is_err());
        assert_eq!((load(201).unwrap(), load(199).unwrap()), (202, 200));
        store(199).unwrap();
        // What is read mostly is copied, and written by whom it is written.
        space.advise(range(300, 8), Advice::ReadMostly(true));
        assert_eq!(soft.evict(huge.addr(), HUGE), 510, "what was unmapped keeps nothing from going home");
        assert_eq!(load(303).unwrap(), 304);
        assert!(soft.stats().duplicated > 0, "{:?}", soft.stats());
        huge.word(303).store(7, Ordering::Relaxed);
        assert_eq!(load(303).unwrap(), 7);
    });
}

#[test]
fn small_pages_are_none() {
    one_at_a_time(|| {
        let space = space();
        let soft = soft(&space, 4096);
        // Of three blocks in a row at least two are whole, and get frames side by side.
        let nr_pages = 3 * 512;
        let at = map(nr_pages);
        let pages = hmm::core::addr::PageRange::of_bytes(at, at + (nr_pages * PAGE) as u64);
        space.advise(pages, Advice::Preferred(Some(Preferred::Device(soft.index()))));
        for _ in 0..2 {
            assert_eq!(soft.prefetch(at, nr_pages * PAGE), nr_pages);
            // SAFETY: nobody else accesses the memory.
            let result = unsafe {
                soft.launch(|unit| {
                    (0..nr_pages as u64)
                        .try_for_each(|page| unit.store(Ptr::new(at + page * PAGE as u64), page))
                })
            };
            result.unwrap();
            assert_eq!(soft.evict(at, nr_pages * PAGE), nr_pages);
        }
        assert_eq!(soft.stats().huge, 0);
        unmap(at, nr_pages);
    });
}

#[test]
fn devices_of_a_group_copy_them_directly() {
    one_at_a_time(|| {
        let Some(huge) = Huge::new(2) else { return };
        let space = space();
        let group = Group::new();
        let (one, two) = (device(&space, 8, &group), device(&space, 8, &group));
        for _ in 0..3 {
            add_one(&one, &huge);
            add_one(&two, &huge);
        }
        let stats = two.stats();
        assert!(stats.from_peers == 3 * 2 * HUGE_PAGES && stats.huge >= 6, "{stats:?}");
        assert!(huge.has(6));
    });
}
