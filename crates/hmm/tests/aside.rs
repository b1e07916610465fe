//! Memory that is set aside for a child, or given to others, on the real kernel.

#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

#[path = "common/bare.rs"]
mod bare;
#[path = "common/memory.rs"]
mod memory;
#[path = "common/watchdog.rs"]
mod watchdog;

use hmm::core::Reclaimed;
use hmm::core::addr::PageRange;
use hmm::core::kernel::Kernel;
use hmm::runtime::Runtime;
use hmm::uapi::Mapping;
use watchdog::within;

const NR_PAGES: usize = 900;
/// Whole steps of reclaim: what is too much in the last is free.
const NR_ASIDE: u64 = 448;

/// A runtime that manages so much memory, all of it there. It goes before the memory does.
fn with_pages() -> (Mapping, Runtime) {
    let (memory, bytes) = memory::pages(NR_PAGES);
    let runtime = bare::runtime();
    assert_eq!(runtime.discover(bytes).ranges, 1);
    let range = PageRange::of_bytes(bytes.start, bytes.end);
    range.iter().for_each(|page| _ = runtime.engine().fault(page));
    (memory, runtime)
}

/// Others that are as short of memory do not get it, however much they want.
#[test]
fn what_leaves_for_a_child_is_nobody_elses() {
    within(60, || {
        let (_memory, runtime) = with_pages();
        let engine = runtime.engine();
        let ledger = engine.kernel().ledger();
        let (own, aside, others) = (engine.kernel().share(), ledger.share(1), ledger.share(2));
        // What becomes free is not enough for anybody.
        others.charge_found(ledger.free() + 1000);
        let charged = ledger.charged();
        while aside.charged() < NR_ASIDE {
            assert_eq!(engine.reclaim_own(), Reclaimed::Progress, "{} pages set aside", aside.charged());
            engine.set_aside(aside, NR_ASIDE - aside.charged());
        }
        assert_eq!((aside.charged(), own.charged()), (NR_ASIDE, NR_PAGES as u64 - NR_ASIDE));
        assert_eq!(ledger.charged(), charged);
    });
}

/// Or a fork waits for it.
#[test]
fn who_gives_memory_to_others_looks_up_from_it() {
    within(60, || {
        let (_memory, runtime) = with_pages();
        let engine = runtime.engine();
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
