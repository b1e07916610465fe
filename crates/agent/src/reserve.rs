//! Memory for the child of a fork.
//!
//! A fork copies no page: both sides have the same ones, until one of them writes. Then the kernel makes a copy, without a
//! fault that we could hold back. So that this never exceeds the budget (I9), a fork waits until the child has been paid
//! for in full: as many pages are set aside as the parent has charged, staging included. What is missing leaves before,
//! so a process forks with at most half of the budget resident.
//!
//! What is set aside counts for the parent. When the child has its agent it takes that over, gives back what was too much,
//! and from then on both sides are what they may become. If there is no child the parent gives it back.
//!
//! Where the kernel reports no forks a fork needs all pages to be there, so none can leave for it: then only what is free
//! is set aside, and the rest is charged whatever the budget says.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hmm::control::OnFull;
use hmm::core::Reclaimed;
use hmm::core::kernel::Kernel;
use hmm::runtime::Runtime;
use rustix::time::Timespec;

/// Pages beyond those that are needed now: for faults that are served until the fork has come.
const SLACK_PAGES: u64 = 64;
/// As long as a fault waits for memory before the budget grows.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks while others hold the memory.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// What is set aside now. Its copy in the child tells the child.
static RESERVED: AtomicU64 = AtomicU64::new(0);

/// Sets aside what the child needs, as far as it is free. Returns whether that is all.
pub(crate) fn try_fill(runtime: &Runtime) -> bool {
    let missing = (resident(runtime) + SLACK_PAGES).saturating_sub(RESERVED.load(Ordering::Relaxed));
    let got = runtime.engine().reserve(missing);
    RESERVED.fetch_add(got, Ordering::Relaxed);
    got == missing
}

/// Has pages leave until all is set aside that the child needs, doing `meanwhile` between two steps. False when no device
/// takes another page, and the budget shall not grow.
#[must_use = "without there must be no fork"]
pub(crate) fn fill(runtime: &Runtime, on_full: OnFull, meanwhile: &mut dyn FnMut()) -> bool {
    let start = Instant::now();
    while !try_fill(runtime) {
        match runtime.engine().reclaim() {
            Reclaimed::Progress => {}
            Reclaimed::Nothing if start.elapsed() < PATIENCE => {
                runtime.engine().ask_others();
                let _ = rustix::thread::nanosleep(&PAUSE);
            }
            Reclaimed::Full if on_full == OnFull::Kill => return false,
            Reclaimed::Nothing | Reclaimed::Full => runtime.grow(),
        }
        meanwhile();
    }
    true
}

/// There is no child: everything is free again.
pub(crate) fn give_back(runtime: &Runtime) {
    runtime.engine().unreserve(RESERVED.swap(0, Ordering::Relaxed));
}

/// It is the child's now.
pub(crate) fn hand_over(runtime: &Runtime) {
    runtime.engine().hand_over(RESERVED.swap(0, Ordering::Relaxed));
}

/// In the child, which counts in a place of its own by now: takes over what was set aside. `resident` is what the parent
/// had.
pub(crate) fn take_over(runtime: &Runtime, resident: u64) {
    let reserved = RESERVED.swap(0, Ordering::Relaxed);
    let engine = runtime.engine();
    engine.kernel().ledger().charge_shared(resident.saturating_sub(reserved));
    engine.take_over(resident.max(reserved));
    engine.unreserve(reserved.saturating_sub(resident));
}

/// Pages that this process has charged, but for those that are set aside.
pub(crate) fn resident(runtime: &Runtime) -> u64 {
    let charged = runtime.engine().kernel().stats().charged.load(Ordering::Relaxed);
    charged.saturating_sub(RESERVED.load(Ordering::Relaxed))
}
