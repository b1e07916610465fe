//! Pages leave while their entries in the page table change, on the real kernel, which does not count all that it moves then.

#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

#[path = "common/bare.rs"]
mod bare;
#[path = "common/memory.rs"]
mod memory;
#[path = "common/watchdog.rs"]
mod watchdog;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hmm::core::Outcome;
use hmm::core::addr::{BLOCK_PAGES, PAGE_SIZE, PageRange, Vpn};
use hmm::core::kernel::{Kernel, Progress};
use hmm::mm::Mm;
use hmm::uapi::AddrRange;
use hmm_conformance::with_child;
use watchdog::within;

const NR_BLOCKS: usize = 4;
const NR_PAGES: usize = NR_BLOCKS * BLOCK_PAGES;
const NR_ROUNDS: u64 = 200;
/// Calls that take pages of a block out, and the time before each, in which a few pages are unshared.
const NR_TRIES: usize = 8;
const LEAD: Duration = Duration::from_micros(50);

/// One test at a time: a child of the other one shares the memory of this one.
static ALONE: Mutex<()> = Mutex::new(());

/// The first word of a page.
fn word(bytes: AddrRange, index: usize) -> &'static AtomicU64 {
    let at = std::ptr::with_exposed_provenance(
        usize::try_from(bytes.start).expect("an address") + index * PAGE_SIZE,
    );
    // SAFETY: the test's memory is mapped, and accessed in no other way, until the test ends.
    unsafe { &*at }
}

/// Each page has a word of its own from now on.
fn fill(bytes: AddrRange) {
    (0..NR_PAGES).for_each(|index| word(bytes, index).store(index as u64 + 1, Ordering::Relaxed));
}

/// The pages that have another one, which is put right.
fn lost(bytes: AddrRange) -> Vec<usize> {
    let own = |index: usize| index as u64 + 1;
    let is_lost = |index: &usize| word(bytes, *index).swap(own(*index), Ordering::Relaxed) != own(*index);
    (0..NR_PAGES).filter(is_lost).collect()
}

/// Waits without sleeping.
fn spin(time: Duration) {
    let since = Instant::now();
    while since.elapsed() < time {}
}

/// Shares all memory with a child, ends that block by block on another thread, and has `take` take pages of the same block out
/// meanwhile, again and again, as far as they are not shared any more: so the two meet at a page. When the child is gone `look` says
/// which pages were lost; none may be.
fn while_sharing_ends(mm: &Mm, range: PageRange, take: impl Fn(PageRange), look: impl Fn() -> Vec<usize>) {
    // Blocks that are not to be shared any more, since it began.
    let begun = AtomicU64::new(0);
    let block = |number: u64| {
        let start = range.start.add((number % NR_BLOCKS as u64) * BLOCK_PAGES as u64);
        PageRange::new(start, BLOCK_PAGES as u64)
    };
    mm.lend();
    let mut all_lost = vec![];
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
            with_child(|| {
                for number in round * NR_BLOCKS as u64..(round + 1) * NR_BLOCKS as u64 {
                    begun.store(number + 1, Ordering::Release);
                    for _ in 0..NR_TRIES {
                        spin(LEAD);
                        take(block(number));
                    }
                }
            });
            all_lost.extend(look().into_iter().map(|index| (round, index)));
        }
    });
    assert_eq!(all_lost, [], "(round, page)");
}

/// Nobody serves here but the test itself.
#[test]
fn what_changes_while_it_leaves_is_not_lost() {
    within(240, || {
        let _alone = ALONE.lock().expect("no test has failed");
        let (_memory, bytes) = memory::pages(NR_PAGES);
        let range = PageRange::of_bytes(bytes.start, bytes.end);
        let runtime = bare::runtime();
        assert_eq!(runtime.discover(bytes).ranges, 1);
        let engine = runtime.engine();
        let bring = || range.iter().for_each(|page| assert_ne!(engine.fault(page), Outcome::Unmanaged));
        bring();
        fill(bytes);
        let take = |block| _ = engine.evict_range(block);
        while_sharing_ends(engine.kernel(), range, take, || {
            bring();
            lost(bytes)
        });
    });
}

/// The same for pages that go back to the frames of a coherent device.
#[test]
fn what_changes_while_it_goes_back_to_its_frame_is_not_lost() {
    within(240, || {
        let _alone = ALONE.lock().expect("no test has failed");
        let (_memory, bytes) = memory::pages(NR_PAGES);
        let (_frames, frames) = memory::pages(NR_PAGES);
        let range = PageRange::of_bytes(bytes.start, bytes.end);
        let runtime = bare::runtime();
        assert_eq!(runtime.discover(bytes).ranges, 1);
        let mm = runtime.engine().kernel();
        fill(frames);
        assert!(mm.lend_frames(frames.start..frames.end));
        assert_eq!(mm.map_frames(frames.start, range), Progress::complete(NR_PAGES));
        let frame_of = |page: Vpn| frames.start + page.addr() - bytes.start;
        // What is shared, or has gone back before, is passed over.
        let take = |part: PageRange| {
            let mut at = part.start;
            while at < part.end {
                let rest = PageRange { start: at, end: part.end };
                at = at.add(mm.unmap_frames(rest, frame_of(at)).done as u64 + 1);
            }
        };
        while_sharing_ends(mm, range, take, || {
            mm.unshare(range);
            take(range);
            let lost = lost(frames);
            assert_eq!(mm.map_frames(frames.start, range), Progress::complete(NR_PAGES));
            lost
        });
    });
}
