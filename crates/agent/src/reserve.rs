//! Memory for the child of a fork.
//!
//! A fork copies no page: both sides have the same ones, until one of them writes. Then the kernel makes a copy, without a
//! fault that we could hold back. So that this never exceeds the budget (I9), a fork waits until the child has been paid
//! for in full: as many pages are set aside as the parent has charged, staging included. What is missing leaves before,
//! so a process forks with at most half of the budget resident.
//!
//! What is set aside is charged where the child is going to count: in a slot that the parent has claimed for it. When the
//! child takes that over it gives back what was too much, and from then on both sides are what they may become. If there is
//! no child the parent frees the slot; if there is no parent any more the supervisor does.
//!
//! Where the kernel reports no forks a fork needs all pages to be there, so none can leave for it: then only what is free
//! is set aside, but for a little, and the rest is charged whatever the budget says.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hmm::control::{Control, OnFull, ProcessId, Slot};
use hmm::core::Reclaimed;
use hmm::core::kernel::Kernel;
use hmm::runtime::Runtime;
use hmm::uapi::procfs::Procfs;
use rustix::time::Timespec;

use crate::books::own_slot;

/// Pages beyond those that are needed now: for faults that are served until the fork has come.
const SLACK_PAGES: u64 = 64;
/// Pages that are left for such faults where none can leave for them.
const FAULT_PAGES: u64 = 256;
/// As long as a fault waits for memory before the budget grows.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks while others hold the memory.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// The slot that waits for the child, and whose it is until then. Its copy in the child tells the child.
static WAITING: Mutex<Option<(&'static Slot, ProcessId)>> = Mutex::new(None);
/// What this process had charged, and what was away, when it last set memory aside. In the child, whose parent may have gone
/// with its counters, that is what the child has, because nothing has been done since.
static RESIDENT: AtomicU64 = AtomicU64::new(0);
static AWAY: AtomicU64 = AtomicU64::new(0);

fn waiting() -> Option<(&'static Slot, ProcessId)> {
    *WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set_waiting(slot: Option<(&'static Slot, ProcessId)>) {
    *WAITING.lock().unwrap_or_else(PoisonError::into_inner) = slot;
}

/// Begins with nothing. False when there is no slot for a child.
#[must_use = "without there must be no fork"]
pub(crate) fn begin(page: &Control) -> bool {
    set_waiting(page.claim_for_child(own_slot()).zip(own_slot().owner()));
    waiting().is_some()
}

/// Sets aside what the child needs, as far as it is free. Returns whether that is all.
pub(crate) fn try_fill(page: &Control, runtime: &Runtime) -> bool {
    let Some((slot, _)) = waiting() else { return false };
    let (aside, mm) = (page.share(slot), runtime.engine().kernel());
    let missing = (mm.share().charged() + SLACK_PAGES).saturating_sub(aside.charged());
    let missing = if mm.reports_forks() {
        missing
    } else {
        missing.min(runtime.engine().free_pages().saturating_sub(FAULT_PAGES))
    };
    let got = runtime.engine().set_aside(aside, missing);
    RESIDENT.store(mm.share().charged(), Ordering::Relaxed);
    AWAY.store(mm.stats().away.load(Ordering::Relaxed), Ordering::Relaxed);
    got == missing
}

/// Has pages leave until all is set aside that the child needs, doing `meanwhile` between two steps. False when no device
/// takes another page, and the budget shall not grow.
#[must_use = "without there must be no fork"]
pub(crate) fn fill(page: &Control, runtime: &Runtime, on_full: OnFull, meanwhile: &mut dyn FnMut()) -> bool {
    let start = Instant::now();
    while !try_fill(page, runtime) {
        match runtime.engine().reclaim() {
            Reclaimed::Progress => {}
            Reclaimed::Nothing if start.elapsed() < PATIENCE => {
                runtime.engine().ask_others();
                let _ = rustix::thread::nanosleep(&PAUSE);
            }
            Reclaimed::Nothing | Reclaimed::Full if page.settle_the_dead() => {}
            Reclaimed::Full if on_full == OnFull::Kill => return false,
            Reclaimed::Nothing | Reclaimed::Full => runtime.grow(),
        }
        meanwhile();
    }
    true
}

/// Everything is free again, unless it is a child's by now.
pub(crate) fn end(page: &Control) {
    waiting().inspect(|(slot, owner)| page.settle(slot, *owner));
    set_waiting(None);
}

/// In the child: has it counted in a slot of its own, what it has charged, and no more.
pub(crate) fn take_over(page: &Control, procfs: &Procfs) -> Result<&'static Slot, &'static str> {
    let (process, name) =
        ProcessId::of_self(procfs).map_err(|_| "a forked process cannot read /proc/self/stat")?;
    let taken = waiting().filter(|(slot, parent)| page.take_over(slot, *parent, process));
    // Else the parent was killed, and what was set aside is free.
    let slot = taken.map(|(slot, _)| slot).or_else(|| page.claim_slot_of(process, &name));
    let slot = slot.ok_or("more than 128 processes")?;
    let (share, resident) = (page.share(slot), RESIDENT.load(Ordering::Relaxed));
    share.charge_shared(resident.saturating_sub(share.charged()));
    share.uncharge(share.charged().saturating_sub(resident));
    slot.stats().away.store(AWAY.load(Ordering::Relaxed), Ordering::Relaxed);
    set_waiting(None);
    Ok(slot)
}
