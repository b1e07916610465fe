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
//! Others that are short of memory take what is free, so what leaves for a child is handed over to it. And whoever takes pages out
//! while its threads bring them back may do so for ever: if that comes to little for some time, the budget grows.
//!
//! Where the kernel reports no forks a fork needs all pages to be there, so none can leave for it: then only what is free
//! is set aside, but for a little, and the rest is charged whatever the budget says, and counted (`overcharged`).
//!
//! Where each process has a budget to itself the child's has room for all that the parent has, but for what the parent was granted
//! beyond its own: that is granted to the child as well. So no page leaves for the child then, but a few if the parent's budget is full.

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
/// The same, as long as what the budget grew by is not taken back: what is resident is of a kind that cannot leave.
const PATIENCE_AGAIN: Duration = Duration::from_millis(50);
/// One in so many of the pages that are missing has to come in that time.
const GAIN_SHARE: u64 = 16;
/// What is spared for faults at a time.
const SPARE_PAGES: u64 = 16;
/// Between two looks while others hold the memory.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// The slot that waits for the child, and whose it is until then. Its copy in the child tells the child.
static WAITING: Mutex<Option<(&'static Slot, ProcessId)>> = Mutex::new(None);
/// What this process had charged, what of that could not leave, and what was away, when it last set memory aside. In the child, whose parent may have gone
/// with its counters, that is what the child has, because nothing has been done since.
static RESIDENT: AtomicU64 = AtomicU64::new(0);
static STUCK: AtomicU64 = AtomicU64::new(0);
static AWAY: AtomicU64 = AtomicU64::new(0);

fn waiting() -> Option<(&'static Slot, ProcessId)> {
    *WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set_waiting(slot: Option<(&'static Slot, ProcessId)>) {
    *WAITING.lock().unwrap_or_else(PoisonError::into_inner) = slot;
}

/// Begins with nothing. False when there is no slot for a child.
///
/// If what is free does not do, children that are gone may have it: who forks often has the budget full of them before the
/// supervisor looks, and what leaves for that is away, which can make the next fork impossible.
#[must_use = "without there must be no fork"]
pub(crate) fn begin(page: &Control, runtime: &Runtime) -> bool {
    let engine = runtime.engine();
    let wanted = engine.kernel().share().charged() + SLACK_PAGES + engine.config().high_pages;
    if !page.config().per_process && engine.free_pages() < wanted {
        let _any = page.settle_the_dead();
    }
    set_waiting(page.claim_for_child(own_slot()).zip(own_slot().owner()));
    waiting().is_some_and(|(slot, _)| {
        page.share(slot).stand_still(true);
        true
    })
}

/// Frees some of what is set aside, for a fault that the fork waits for. False when the child needs the rest.
pub(crate) fn spare(page: &Control) -> bool {
    let Some((slot, _)) = waiting() else { return false };
    if page.config().per_process {
        // It is no page of this process's budget.
        return false;
    }
    let (aside, own) = (page.share(slot), page.share(own_slot()));
    // Both sides will have what the fault brings.
    let can_go = aside.charged().saturating_sub(own.charged()) / 2;
    aside.uncharge(can_go.min(SPARE_PAGES));
    can_go > 0
}

/// Sets aside what the child needs, as far as it is free. Returns how many pages are missing.
pub(crate) fn try_fill(page: &Control, runtime: &Runtime) -> u64 {
    let Some((slot, _)) = waiting() else { return 0 };
    page.grant_to_child(own_slot(), slot);
    let (aside, mm) = (page.share(slot), runtime.engine().kernel());
    let missing = (mm.share().charged() + SLACK_PAGES).saturating_sub(aside.charged());
    let missing = if mm.reports_forks() {
        missing
    } else if page.config().per_process {
        missing.min(aside.free())
    } else {
        missing.min(runtime.engine().free_pages().saturating_sub(FAULT_PAGES))
    };
    let got = runtime.engine().set_aside(aside, missing);
    RESIDENT.store(mm.share().charged(), Ordering::Relaxed);
    STUCK.store(mm.share().stuck(), Ordering::Relaxed);
    aside.set_stuck(mm.share().stuck());
    AWAY.store(mm.stats().away.load(Ordering::Relaxed), Ordering::Relaxed);
    missing - got
}

/// Pages that cannot leave, which the child is going to have as well, in the same budget, and which are not set aside yet.
fn stuck_to_come(page: &Control, runtime: &Runtime) -> u64 {
    let Some((slot, _)) = waiting() else { return 0 };
    if page.config().per_process {
        return 0;
    }
    let nr_stuck = runtime.engine().kernel().share().stuck();
    nr_stuck.saturating_sub(page.share(slot).charged())
}

/// For how long too little has come of what is missing.
struct Shortage {
    /// Fewer than that have to be missing next.
    least: u64,
    step: u64,
    since: Instant,
}

impl Shortage {
    fn new(missing: u64, now: Instant) -> Self {
        let step = (missing / GAIN_SHARE).max(SLACK_PAGES);
        Self { least: missing.saturating_sub(step), step, since: now }
    }

    /// So many are missing now. Whether that has taken longer than it may.
    fn is_too_long(&mut self, missing: u64, patience: Duration, now: Instant) -> bool {
        if missing <= self.least {
            self.least = missing.saturating_sub(self.step);
            self.since = now;
        }
        now.duration_since(self.since) > patience
    }
}

/// Has pages leave until all is set aside that the child needs, doing `meanwhile` between two steps. False when no device
/// takes another page, and the budget shall not grow.
#[must_use = "without there must be no fork"]
pub(crate) fn fill(page: &Control, runtime: &Runtime, on_full: OnFull, meanwhile: &mut dyn FnMut()) -> bool {
    let engine = runtime.engine();
    let mut shortage = Shortage::new(try_fill(page, runtime), runtime.now());
    loop {
        let missing = try_fill(page, runtime);
        if missing == 0 {
            return true;
        }
        // What the child is going to have that cannot leave, either.
        if runtime.grow_to_need(stuck_to_come(page, runtime)) {
            meanwhile();
            continue;
        }
        let patience = if engine.is_granted() { PATIENCE_AGAIN } else { PATIENCE };
        let is_stuck = shortage.is_too_long(missing, patience, runtime.now());
        // Who forks pays for it, however little it has.
        match engine.reclaim_own() {
            Reclaimed::Progress if !is_stuck => {}
            Reclaimed::Nothing if !is_stuck => {
                engine.ask_others();
                let _ = rustix::thread::nanosleep(&PAUSE);
            }
            _ if page.settle_the_dead() => {}
            Reclaimed::Full if on_full == OnFull::Kill => return false,
            Reclaimed::Progress | Reclaimed::Nothing | Reclaimed::Full => runtime.grow(),
        }
        meanwhile();
    }
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
    page.share(slot).stand_still(false);
    let (share, resident) = (page.share(slot), RESIDENT.load(Ordering::Relaxed));
    let missing = resident.saturating_sub(share.charged());
    share.charge_shared(missing);
    let ledger = page.ledger_of(slot);
    let exceeded = ledger.charged().saturating_sub(ledger.budget());
    slot.stats().overcharged.fetch_add(exceeded.min(missing), Ordering::Relaxed);
    share.uncharge(share.charged().saturating_sub(resident));
    share.set_stuck(STUCK.load(Ordering::Relaxed));
    slot.stats().away.store(AWAY.load(Ordering::Relaxed), Ordering::Relaxed);
    set_waiting(None);
    Ok(slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_by_drops_is_too_little() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut shortage = Shortage::new(3200, begin);
        assert!(!shortage.is_too_long(3001, PATIENCE, at(1990)), "a sixteenth");
        assert!(!shortage.is_too_long(3000, PATIENCE, at(1990)));
        assert!(!shortage.is_too_long(2990, PATIENCE, at(3900)));
        assert!(shortage.is_too_long(2801, PATIENCE, at(4000)));
        // More is missing again, because the program goes on.
        assert!(shortage.is_too_long(3200, PATIENCE, at(4100)));
        assert!(!shortage.is_too_long(2700, PATIENCE, at(4200)));
        assert!(shortage.is_too_long(2650, PATIENCE_AGAIN, at(4300)));
        let mut little = Shortage::new(10, begin);
        assert!(!little.is_too_long(0, PATIENCE, at(5000)), "that is all");
    }
}
