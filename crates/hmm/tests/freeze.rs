//! Standing still for a fork, on the real kernel.

#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

#[path = "common/bare.rs"]
mod bare;
#[path = "common/memory.rs"]
mod memory;
#[path = "common/watchdog.rs"]
mod watchdog;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hmm::core::kernel::Kernel;
use watchdog::within;

/// A thread that waits for memory may hold what the forking one needs.
#[test]
fn who_stands_still_has_no_fault_in_hand() {
    within(60, || {
        let (_memory, bytes) = memory::pages(1);
        let first = usize::try_from(bytes.start).expect("it is an address");
        let runtime = bare::runtime();
        assert_eq!(runtime.discover(bytes).ranges, 1);
        let ledger = runtime.engine().kernel().ledger();
        let others = ledger.share(1);
        let free = ledger.free();
        assert!(others.try_charge(free));
        let is_there = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| runtime.serve());
            scope.spawn(|| {
                // SAFETY: memory of this thread's alone.
                unsafe { std::ptr::with_exposed_provenance_mut::<u8>(first).write_volatile(1) };
                is_there.store(true, Ordering::Release);
            });
            // The handler has it, and tries again and again.
            let nr_waits = &runtime.engine().kernel().stats().direct_reclaim;
            while nr_waits.load(Ordering::Relaxed) < 3 {
                std::thread::yield_now();
            }
            assert!(runtime.freeze());
            others.uncharge(free);
            let since = Instant::now();
            while !is_there.load(Ordering::Acquire) && since.elapsed() < Duration::from_secs(5) {
                runtime.serve_once(&mut |_| panic!("there is no fork"));
            }
            let is_served = is_there.load(Ordering::Acquire);
            runtime.thaw();
            while !is_there.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            runtime.stop();
            assert!(is_served, "its message was read, and is in nobody's hands");
        });
    });
}
