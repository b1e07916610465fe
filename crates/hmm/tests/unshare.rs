//! Sharing with a child of a fork ends while pages leave, on the real kernel: who ends it may be the one who would have to
//! bring them.

#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

#[path = "common/bare.rs"]
mod bare;
#[path = "common/memory.rs"]
mod memory;
#[path = "common/watchdog.rs"]
mod watchdog;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hmm::core::addr::PageRange;
use hmm::core::kernel::Kernel;
use hmm::core::{Engine, Outcome};
use hmm::mm::Mm;
use watchdog::within;

/// Less than a block.
const NR_PAGES: usize = 256;
const NR_ROUNDS: usize = 200;

/// Brings the pages, of which some are there.
fn bring(engine: &Engine<Mm>, range: PageRange) {
    range.iter().for_each(|page| assert_ne!(engine.fault(page), Outcome::Unmanaged));
}

/// Nobody serves here but the test itself, as if it were the only handler.
#[test]
fn who_ends_sharing_never_waits_for_a_page() {
    within(120, || {
        let (_memory, bytes) = memory::pages(NR_PAGES);
        let range = PageRange::of_bytes(bytes.start, bytes.end);
        let runtime = bare::runtime();
        assert_eq!(runtime.discover(bytes).ranges, 1);
        let (engine, mm) = (runtime.engine(), runtime.engine().kernel());
        bring(engine, range);
        let (nr_ended, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    mm.unshare(range);
                    nr_ended.fetch_add(1, Ordering::Relaxed);
                }
            });
            let mut stuck = false;
            for _ in 0..NR_ROUNDS {
                assert!(engine.evict_range(range) > 0);
                let (before, since) = (nr_ended.load(Ordering::Relaxed), Instant::now());
                while nr_ended.load(Ordering::Relaxed) < before + 2 && !stuck {
                    std::thread::yield_now();
                    stuck = since.elapsed() > Duration::from_secs(5);
                }
                bring(engine, range);
                if stuck {
                    break;
                }
            }
            is_over.store(true, Ordering::Relaxed);
            assert!(!stuck, "it waits for a page that nobody brings");
        });
    });
}
