//! Pages leave while their entries in the page table change, on the real kernel, which does not count all that it moves then.

#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

#[path = "common/bare.rs"]
mod bare;
#[path = "common/memory.rs"]
mod memory;
#[path = "common/watchdog.rs"]
mod watchdog;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hmm::core::Outcome;
use hmm::core::addr::{BLOCK_PAGES, PAGE_SIZE, PageRange};
use hmm::core::kernel::Kernel;
use hmm::uapi::AddrRange;
use watchdog::within;

const NR_BLOCKS: usize = 4;
const NR_PAGES: usize = NR_BLOCKS * BLOCK_PAGES;
const NR_ROUNDS: u64 = 200;
/// Calls that take pages of a block out, and the time before each, in which a few pages are unshared.
const NR_TRIES: usize = 8;
const LEAD: Duration = Duration::from_micros(50);

/// The first word of a page.
fn word(bytes: AddrRange, index: usize) -> &'static AtomicU64 {
    let at = std::ptr::with_exposed_provenance(
        usize::try_from(bytes.start).expect("an address") + index * PAGE_SIZE,
    );
    // SAFETY: the test's memory is mapped, and accessed in no other way, until the test ends.
    unsafe { &*at }
}

/// A child that has all of our memory, until it is killed.
fn child() -> i32 {
    // SAFETY: the child makes system calls only.
    let child = unsafe { hmm_conformance::fork() };
    if child == 0 {
        loop {
            // SAFETY: as above.
            unsafe { libc::pause() };
        }
    }
    child
}

fn kill(child: i32) {
    // SAFETY: our child.
    assert_eq!(unsafe { libc::kill(child, libc::SIGKILL) }, 0);
    // SAFETY: our child.
    assert_eq!(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }, child);
}

/// Since a fork all pages are shared. One thread ends that, page by page; another takes the pages out, as far as they are not
/// shared any more, and so the two meet at a page. Nobody serves here but the test itself.
#[test]
fn what_changes_while_it_leaves_is_not_lost() {
    within(240, || {
        let (_memory, bytes) = memory::pages(NR_PAGES);
        let range = PageRange::of_bytes(bytes.start, bytes.end);
        let runtime = bare::runtime();
        assert_eq!(runtime.discover(bytes).ranges, 1);
        let (engine, mm) = (runtime.engine(), runtime.engine().kernel());
        let bring = |range: PageRange| {
            range.iter().for_each(|page| assert_ne!(engine.fault(page), Outcome::Unmanaged));
        };
        bring(range);
        (0..NR_PAGES).for_each(|index| word(bytes, index).store(index as u64 + 1, Ordering::Relaxed));
        // Blocks that are not to be shared any more, since the test began.
        let begun = AtomicU64::new(0);
        let block = |number: u64| {
            let start = range.start.add((number % NR_BLOCKS as u64) * BLOCK_PAGES as u64);
            PageRange::new(start, BLOCK_PAGES as u64)
        };
        mm.lend();
        let mut lost = vec![];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..NR_ROUNDS * NR_BLOCKS as u64 {
                    while begun.load(Ordering::Acquire) <= number {
                        std::hint::spin_loop();
                    }
                    mm.unshare(block(number));
                }
            });
            for round in 0..NR_ROUNDS {
                let child = child();
                for number in round * NR_BLOCKS as u64..(round + 1) * NR_BLOCKS as u64 {
                    begun.store(number + 1, Ordering::Release);
                    for _ in 0..NR_TRIES {
                        // Some more pages are not shared by then.
                        let since = Instant::now();
                        while since.elapsed() < LEAD {}
                        engine.evict_range(block(number));
                    }
                }
                kill(child);
                bring(range);
                for index in 0..NR_PAGES {
                    if word(bytes, index).swap(index as u64 + 1, Ordering::Relaxed) != index as u64 + 1 {
                        lost.push((round, index));
                    }
                }
            }
        });
        assert_eq!(lost, [], "(round, page)");
    });
}
