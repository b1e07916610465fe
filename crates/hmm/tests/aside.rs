//! Memory that is set aside for a child, or given to others, on the real kernel.

#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

#[path = "common/bare.rs"]
mod bare;
#[path = "common/watchdog.rs"]
mod watchdog;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hmm::core::Reclaimed;
use hmm::core::addr::PageRange;
use hmm::core::kernel::Kernel;
use hmm::uapi::Mapping;
use watchdog::within;

const NR_PAGES: u64 = 900;
/// Whole steps of reclaim: what is too much in the last is free.
const NR_ASIDE: u64 = 448;
const NR_ROUNDS: usize = 200;

/// What leaves for a child is never free in between: who waits for memory would have it at once.
#[test]
fn what_leaves_for_a_child_is_nobody_elses() {
    within(60, || {
        let memory = Mapping::anonymous(8 << 20).expect("maps");
        let range = PageRange::of_bytes(memory.range().start, memory.range().start + NR_PAGES * 4096);
        let runtime = bare::runtime();
        assert_eq!(runtime.discover(memory.range()).ranges, 1);
        let engine = runtime.engine();
        let ledger = engine.kernel().ledger();
        let (aside, others) = (ledger.share(1), ledger.share(2));
        let (is_over, nr_stolen) = (AtomicBool::new(false), AtomicU64::new(0));
        for _ in 0..NR_ROUNDS {
            range.iter().for_each(|page| _ = engine.fault(page));
            is_over.store(false, Ordering::Relaxed);
            let free = ledger.free();
            assert!(others.try_charge(free));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        let free = ledger.free();
                        if free > 0 && others.try_charge(free) {
                            nr_stolen.fetch_add(free, Ordering::Relaxed);
                        }
                    }
                });
                // Half of it leaves for the other half.
                while aside.charged() < NR_ASIDE && engine.reclaim_own() == Reclaimed::Progress {
                    engine.set_aside(aside, NR_ASIDE - aside.charged());
                }
                is_over.store(true, Ordering::Relaxed);
            });
            assert_eq!(nr_stolen.load(Ordering::Relaxed), 0, "pages that somebody else took");
            aside.clear();
            others.clear();
        }
    });
}

/// Or a fork waits for it.
#[test]
fn who_gives_memory_to_others_looks_up_from_it() {
    within(60, || {
        let memory = Mapping::anonymous(8 << 20).expect("maps");
        let range = PageRange::of_bytes(memory.range().start, memory.range().start + NR_PAGES * 4096);
        let runtime = bare::runtime();
        assert_eq!(runtime.discover(memory.range()).ranges, 1);
        let engine = runtime.engine();
        range.iter().for_each(|page| _ = engine.fault(page));
        let charged = || engine.kernel().share().charged();
        let before = charged();
        engine.kernel().ledger().ask();
        engine.share(&|| false);
        assert_eq!(charged(), before);
        engine.kernel().ledger().ask();
        engine.share(&|| true);
        assert!(charged() <= before - before / 8, "{} of {before}", charged());
    });
}
