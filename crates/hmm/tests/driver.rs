//! Drivers on the real kernel: migration both ways, exclusive access, and devices that are removed, while threads of the
//! program use the memory.

#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

mod common;

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{MIB, space, within};
use hmm::core::DeviceId;
use hmm::core::addr::{BLOCK_PAGES, PageRange, Vpn};
use hmm::core::driver::Select;
use hmm::core::notifier::Owner;
use hmm::device::{Device, Ram};
use hmm::{AddressSpace, Region};

const MINE: Owner = Owner(1);
const WORDS_A_PAGE: usize = 512;

struct Driver {
    space: AddressSpace,
    device: Arc<Ram>,
    id: DeviceId,
}

impl Driver {
    fn new() -> Self {
        let space = AddressSpace::builder().build().expect("userfaultfd can be had");
        let device = Arc::new(Ram::new(16 * 1024));
        let id = space.add_device(Arc::clone(&device) as _, MINE).expect("there are few devices");
        Self { space, device, id }
    }

    fn region(&self, bytes: usize) -> (Region, PageRange) {
        let region = self.space.alloc(bytes).expect("there is memory");
        let start = region.as_ptr().expose_provenance() as u64;
        (region, PageRange::of_bytes(start, start + bytes as u64))
    }

    /// Takes a range to the device, a block at a time. Returns how many pages went.
    fn take(&self, range: PageRange) -> usize {
        parts(range)
            .map(|part| {
                let mut migration = self.space.migrate_setup(part, Select::SYSTEM, MINE).expect("is managed");
                migration.store(self.id).expect("is ours");
                migration.pages().finalize()
            })
            .sum()
    }

    fn bring(&self, range: PageRange) -> usize {
        parts(range)
            .map(|part| {
                let mut migration =
                    self.space.migrate_setup(part, Select::PRIVATE, MINE).expect("is managed");
                migration.fetch();
                migration.pages().finalize()
            })
            .sum()
    }

    fn nr_used(&self) -> u64 {
        self.device.usage().frames
    }

    /// A page is there, or given up, a moment before its frame is free: waits until so many frames are in use.
    fn await_used(&self, nr_frames: usize) {
        let start = Instant::now();
        while self.nr_used() != nr_frames as u64 {
            assert!(start.elapsed() < Duration::from_secs(10), "{} frames are in use", self.nr_used());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn parts(range: PageRange) -> impl Iterator<Item = PageRange> {
    let step = BLOCK_PAGES as u64;
    (range.start.0..range.end.0)
        .step_by(BLOCK_PAGES)
        .map(move |start| PageRange { start: Vpn(start), end: Vpn((start + step).min(range.end.0)) })
}

fn fill(region: &mut Region) {
    region.as_mut_slice::<u64>().iter_mut().zip(1..).for_each(|(word, value)| *word = value * 3);
}

fn verify(region: &Region) {
    for (word, value) in region.as_slice::<u64>().iter().zip(1..) {
        assert_eq!(*word, value * 3);
    }
}

#[test]
fn everything_goes_and_comes_back() {
    within(60, || {
        let driver = Driver::new();
        let (mut region, range) = driver.region(8 * MIB);
        fill(&mut region);
        let nr_pages = 8 * MIB / 4096;
        assert_eq!(driver.take(range), nr_pages);
        assert_eq!(driver.nr_used(), nr_pages as u64);
        verify(&region);
        driver.await_used(0);
        assert_eq!(driver.take(range), nr_pages);
        assert_eq!(driver.bring(range), nr_pages);
        assert_eq!(driver.nr_used(), 0);
        verify(&region);
    });
}

#[test]
fn holes_become_frames_of_zeroes() {
    within(60, || {
        let driver = Driver::new();
        let (region, range) = driver.region(MIB);
        assert_eq!(driver.take(range), MIB / 4096);
        assert!(region.as_slice::<u64>().iter().all(|word| *word == 0));
    });
}

#[test]
fn threads_count_on_while_their_pages_come_and_go() {
    within(120, || {
        let driver = Driver::new();
        let (region, range) = driver.region(4 * MIB);
        let nr_pages = 4 * MIB / 4096;
        let word = |page: usize| {
            let at = region.as_ptr().wrapping_add(page * 4096).cast::<u64>();
            // SAFETY: inside of the region, aligned, and accessed by atomics only while the threads run.
            unsafe { AtomicU64::from_ptr(at) }
        };
        let stop = AtomicBool::new(false);
        let (mut nr_taken, mut nr_brought) = (0, 0);
        let sums: Vec<u64> = std::thread::scope(|scope| {
            let counters: Vec<_> = (0..2)
                .map(|number| {
                    let (stop, word) = (&stop, &word);
                    scope.spawn(move || {
                        let mut nr_added = 0;
                        let mut page = number * 7;
                        while !stop.load(Ordering::Relaxed) {
                            page = (page * 5 + 3 + number) % nr_pages;
                            word(page).fetch_add(1, Ordering::Relaxed);
                            nr_added += 1;
                        }
                        nr_added
                    })
                })
                .collect();
            for _ in 0..30 {
                nr_taken += driver.take(range);
                nr_brought += driver.bring(range);
            }
            stop.store(true, Ordering::Relaxed);
            counters.into_iter().map(|thread| thread.join().expect("counts")).collect()
        });
        let counted: u64 = (0..nr_pages).map(|page| word(page).load(Ordering::Relaxed)).sum();
        assert_eq!(counted, sums.iter().sum::<u64>(), "I3: no lost write");
        assert!(nr_taken > nr_pages && nr_brought > 0, "{nr_taken} pages went, {nr_brought} were brought");
        driver.await_used(0);
    });
}

#[test]
fn a_device_adds_to_a_word_that_the_cpu_adds_to() {
    within(60, || {
        let driver = Driver::new();
        let (region, range) = driver.region(MIB);
        let on_cpu = region.as_ptr().cast::<u64>();
        let nr_rounds = 200;
        for _ in 0..nr_rounds {
            let exclusive = driver.space.make_exclusive(range.start, MINE).expect("is private memory");
            let device_at = std::ptr::with_exposed_provenance_mut::<u64>(
                usize::try_from(exclusive.addr).expect("an address"),
            );
            // SAFETY: the page is the device's until the CPU touches it, which this thread does below only.
            unsafe { *device_at += 1 };
            // SAFETY: the region's first word; nobody else writes to it.
            unsafe { *on_cpu += 1 };
        }
        assert_eq!(region.as_slice::<u64>()[0], 2 * nr_rounds);
    });
}

#[test]
fn within_a_budget_reclaim_and_the_driver_share_the_memory() {
    within(120, || {
        let tier = Arc::new(Ram::new(64 * 1024));
        let space = space(16 * MIB, Arc::clone(&tier) as _);
        let device = Arc::new(Ram::new(16 * 1024));
        let id = space.add_device(Arc::clone(&device) as _, MINE).expect("there are few devices");
        let driver = Driver { space, device, id };
        let (mut region, range) = driver.region(48 * MIB);
        fill(&mut region);
        // What reclaim has put on the tier stays there; the driver takes what is resident, and makes room so.
        let nr_taken = driver.take(range);
        assert!(nr_taken > 1000, "{nr_taken}");
        assert_eq!(driver.nr_used(), nr_taken as u64);
        verify(&region);
        let stats = driver.space.stats();
        assert!(stats.peak_resident <= stats.budget, "I9: {stats:?}");
        drop(region);
        driver.await_used(0);
        // A page that is on its way there when it is given up leaves its frame a moment later.
        let start = Instant::now();
        while tier.usage().frames > 0 {
            assert!(start.elapsed() < Duration::from_secs(10), "{:?}", tier.usage());
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

#[test]
fn a_device_is_removed_in_use() {
    within(60, || {
        let driver = Driver::new();
        let (mut region, range) = driver.region(4 * MIB);
        fill(&mut region);
        assert_eq!(driver.take(range), 4 * MIB / 4096);
        driver.space.remove_device(driver.id).expect("there is memory for its pages");
        assert_eq!(driver.nr_used(), 0);
        verify(&region);
        assert!(driver.space.remove_device(driver.id).is_err());
    });
}

#[test]
fn memory_that_is_given_up_frees_its_frames() {
    within(60, || {
        let driver = Driver::new();
        let (mut region, range) = driver.region(4 * MIB);
        fill(&mut region);
        driver.take(range);
        // SAFETY: the region's own memory, which reads as zeroes from here on.
        let discarded = unsafe {
            hmm::uapi::sys::madvise(
                hmm::uapi::AddrRange::new(range.start.addr(), MIB as u64),
                hmm::uapi::mapping::Advice::DontNeed,
            )
        };
        discarded.expect("may be discarded");
        driver.await_used(3 * MIB / 4096);
        assert!(region.as_slice::<u64>()[..MIB / 4096 * WORDS_A_PAGE].iter().all(|word| *word == 0));
        drop(region);
        assert_eq!(driver.nr_used(), 0);
    });
}

fn madvise(start: u64, len: usize, advice: i32) {
    let at =
        std::ptr::with_exposed_provenance_mut::<libc::c_void>(usize::try_from(start).expect("an address"));
    // SAFETY: a region's memory, of which the caller has no references.
    assert_eq!(unsafe { libc::madvise(at, len, advice) }, 0);
}

#[test]
fn what_is_written_after_memory_was_freed_lazily_stays() {
    within(60, || {
        let driver = Driver::new();
        let (mut region, range) = driver.region(MIB);
        let nr_pages = MIB / 4096;
        for round in 1..6 {
            region.as_mut_slice::<u64>().fill(round);
            // A half of them is on the device.
            let half = PageRange::new(range.start, nr_pages as u64 / 2);
            assert_eq!(driver.take(half), nr_pages / 2);
            madvise(range.start.addr(), MIB, libc::MADV_FREE);
            let words = region.as_mut_slice::<u64>();
            (0..nr_pages).step_by(3).for_each(|page| words[page * WORDS_A_PAGE + 5] = round + 100);
            // What is mapped unknown to us is no hole.
            driver.take(range);
            for page in 0..nr_pages {
                let word = region.as_slice::<u64>()[page * WORDS_A_PAGE + 5];
                let is_written = page % 3 == 0;
                let is_right = if is_written { word == round + 100 } else { word == round || word == 0 };
                assert!(is_right, "page {page} is {word} in round {round}");
            }
            driver.space.settle();
            driver.await_used(0);
        }
    });
}

#[test]
fn system_calls_get_pages_that_devices_have() {
    within(60, || {
        let driver = Driver::new();
        let (mut region, range) = driver.region(MIB);
        fill(&mut region);
        let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
        assert_eq!(driver.take(range), MIB / 4096);
        driver.space.make_exclusive(range.start, MINE).expect("is private memory");
        // The first page is a device's alone, the second is on it.
        let bytes = &region.as_slice::<u8>()[..2 * 4096];
        writer.write_all(bytes).expect("the kernel reads them");
        let mut read = vec![0; bytes.len()];
        reader.read_exact(&mut read).expect("they are in the pipe");
        for (word, value) in read.chunks_exact(8).zip(1u64..) {
            assert_eq!(word, (value * 3).to_ne_bytes());
        }
        driver.await_used(MIB / 4096 - 2);
        // And writes to them.
        writer.write_all(&7u64.to_ne_bytes()).expect("fits");
        reader.read_exact(&mut region.as_mut_slice::<u8>()[2 * 4096..][..8]).expect("is in the pipe");
        assert_eq!(region.as_slice::<u64>()[2 * WORDS_A_PAGE], 7);
        region.as_mut_slice::<u64>()[2 * WORDS_A_PAGE] = 3 * (2 * WORDS_A_PAGE as u64 + 1);
        verify(&region);
    });
}
