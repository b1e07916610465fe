//! Threads that serve their own faults, on the real kernel.

#![cfg(not(thread_sanitizer))]
#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

#[path = "../common/mod.rs"]
mod common;
mod handler;
mod pin;
mod signals;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{MIB, space, within};
use hmm::device::Ram;
use hmm::device::decorate::{Faulty, Throttle, Throttled};
use hmm::lz4::{Lz4, Lz4Config};
use hmm::manage::ManageError;
use hmm::mirror::pages;
use hmm::{AddressSpace, BuildError, Faults, InThreadError, Region};

pub(crate) fn pattern(index: usize, round: u64) -> u64 {
    (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ round
}

pub(crate) fn lz4() -> Arc<Lz4> {
    Arc::new(Lz4::new(Lz4Config::new(256 * MIB)).expect("there is memory"))
}

/// The first word of each page says which it is.
pub(crate) fn filled(space: &AddressSpace, len: usize) -> Region {
    let mut region = space.alloc(len).expect("allocates");
    for (page, words) in region.as_mut_slice::<u64>().chunks_mut(512).enumerate() {
        words.fill(pattern(page, 0));
    }
    region
}

/// Numbers without an order.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

#[test]
fn nobody_is_woken_for_a_fault() {
    within(60, || {
        let space = space(16 * MIB, lz4());
        assert_eq!(space.faults(), Faults::InThread);
        let region = filled(&space, 64 * MIB);
        let mut random = Random(1);
        let usage = || {
            // SAFETY: of zeroes it is a valid value.
            let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
            // SAFETY: writes the calling thread's figures.
            assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) }, 0);
            usage.ru_nvcsw
        };
        let (sleeps, faults) = (usage(), space.stats().faults);
        for _ in 0..20_000 {
            let page = random.below(64 * MIB / 4096);
            assert_eq!(region.as_slice::<u64>()[page * 512 + 17], pattern(page, 0));
        }
        let (sleeps, faults) = (usage() - sleeps, space.stats().faults - faults);
        assert!(faults > 5_000, "{faults} faults");
        // It sleeps now and then, for memory.
        assert!(i64::try_from(faults).expect("few") > 4 * sleeps, "{sleeps} sleeps in {faults} faults");
    });
}

/// Each thread reads what another one has written, and writes its own part.
#[test]
fn readers_and_writers_see_one_memory() {
    within(120, || {
        let space = space(16 * MIB, lz4());
        let region = space.alloc(64 * MIB).expect("allocates");
        // SAFETY: aligned words of the region, which are accessed as atomics only.
        let words = unsafe {
            std::slice::from_raw_parts(
                region.as_ptr().cast::<AtomicU64>(),
                region.len() / size_of::<AtomicU64>(),
            )
        };
        let nr_pages = words.len() / 512;
        std::thread::scope(|scope| {
            for number in 0..4 {
                scope.spawn(move || {
                    let mut random = Random(number as u64);
                    for _ in 0..15_000u64 {
                        let mine = random.below(nr_pages / 4) * 4 + number;
                        // What is in a page is twice the same, whoever has written it.
                        let value = words[mine * 512].fetch_add(1, Ordering::SeqCst) + 1;
                        words[mine * 512 + 511].store(value, Ordering::SeqCst);
                        let other = random.below(nr_pages) * 512;
                        let (last, first) =
                            (words[other + 511].load(Ordering::SeqCst), words[other].load(Ordering::SeqCst));
                        assert!(first >= last, "page {other}: {first} {last}");
                    }
                });
            }
        });
        let sum: u64 = (0..nr_pages).map(|page| words[page * 512].load(Ordering::SeqCst)).sum();
        assert_eq!(sum, 4 * 15_000, "no count is lost");
        assert!((0..nr_pages).all(|page| {
            words[page * 512].load(Ordering::SeqCst) == words[page * 512 + 511].load(Ordering::SeqCst)
        }));
    });
}

/// Threads that want the same page at the same time: one brings it, the others wait.
#[test]
fn all_want_the_same_page() {
    within(120, || {
        let throttle = Throttle { latency: Duration::from_micros(200), bytes_per_s: None };
        let space = space(16 * MIB, Arc::new(Throttled::new(Ram::new(64 * 1024), throttle)));
        let region = filled(&space, 32 * MIB);
        let nr_pages = 32 * MIB / 4096;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut random = Random(7);
                    for _ in 0..2_000 {
                        let page = random.below(nr_pages);
                        assert_eq!(region.as_slice::<u64>()[page * 512], pattern(page, 0));
                    }
                });
            }
        });
    });
}

/// Memory that is discarded while others work: events are messages, as ever.
#[test]
fn what_is_discarded_reads_as_zeroes() {
    within(120, || {
        let space = space(16 * MIB, lz4());
        let region = filled(&space, 48 * MIB);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (first, second) = region.as_slice::<u64>().split_at(24 * MIB / 8);
            scope.spawn(|| {
                let mut random = Random(3);
                while !over.load(Ordering::Relaxed) {
                    let page = random.below(second.len() / 512);
                    assert_eq!(second[page * 512], pattern(page + first.len() / 512, 0));
                }
            });
            for chunk in first.chunks(512 * 64) {
                let place = chunk.as_ptr().cast_mut().cast();
                // SAFETY: the words are plain, and nobody else reads them.
                let result = unsafe { libc::madvise(place, size_of_val(chunk), libc::MADV_DONTNEED) };
                assert_eq!(result, 0);
                // SAFETY: as above; read anew.
                let sum: u64 = chunk.iter().map(|word| unsafe { std::ptr::read_volatile(word) }).sum();
                assert_eq!(sum, 0);
            }
            over.store(true, Ordering::Relaxed);
        });
    });
}

#[test]
fn spaces_come_and_go() {
    within(120, || {
        for round in 0..40 {
            let (one, other) = (space(16 * MIB, lz4()), space(16 * MIB, lz4()));
            let (first, second) = (filled(&one, 20 * MIB), filled(&other, 20 * MIB));
            drop(one);
            let sum = |region: &Region| {
                region.as_slice::<u64>().chunks(512).map(|page| page[round]).fold(0, u64::wrapping_add)
            };
            assert_eq!(sum(&first), sum(&second));
        }
        let kept: Vec<_> = (0..16).map(|_| space(16 * MIB, lz4())).collect();
        let builder = AddressSpace::builder().ram(16 << 20).device(lz4()).faults(Faults::InThread);
        let Err(refused) = builder.build() else { return eprintln!("SKIPPED: others have built some") };
        assert!(matches!(refused, BuildError::InThread(InThreadError::TooMany)), "{refused}");
        drop(kept);
        drop(space(16 * MIB, lz4()));
    });
}

#[test]
fn what_cannot_be_is_refused() {
    let hung = Faulty::new(Ram::new(64), []).with_patience(Duration::from_secs(1));
    let builder = AddressSpace::builder().ram(16 << 20).device(Arc::new(hung)).faults(Faults::InThread);
    let refused = builder.build().expect_err("nobody could call the thread off");
    assert!(matches!(refused, BuildError::InThread(InThreadError::Patience)), "{refused}");

    let space = space(16 * MIB, lz4());
    let others = vec![1u64; MIB];
    assert_eq!(space.manage(pages(&others)), Err(ManageError::InThread));
    let region = filled(&space, MIB);
    assert_eq!(space.manage(pages(region.as_slice::<u64>())), Ok(()), "it is already");
}
