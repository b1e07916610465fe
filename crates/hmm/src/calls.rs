//! The program's calls that make, move and unmap mappings, and our looks at mappings, exclude each other.
//!
//! Between the moment at which we ask the kernel for a mapping and the one at which we register it, the program may unmap
//! it and map another across its border: then half of the new one would be registered. So whoever stands in front of
//! such a call [`enter`](Calls::enter)s before and leaves after it, and a look [holds new calls back](Calls::hold_back)
//! and waits for those that are under way.
//!
//! A call that moves a mapping does as a look does. The kernel queues events after it has done what they tell of: when
//! one thread unmaps something and another moves a mapping to its place, the second event may come first, and the first
//! would be taken for the end of what has moved there.
//!
//! Nobody waits for ever. A call may wait for an event to be read, and the thread that looks may be the one that reads
//! events; so who holds back has [`Patience`], and goes on without being alone when that is over. Then all is as it would
//! be without anybody in front of the calls. Neither side allocates.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hmm_uapi::sys::{Scope, futex_wait, futex_wake};

/// Set while calls are held back. The other bits count the calls under way.
const HELD: u32 = 1 << 31;

/// How long a look waits for the calls under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// For a thread that others wait for. A call that waits for an event may wait for this very thread.
    Brief,
    /// A call that takes longer may never return, because a signal handler has jumped out of it: it is not counted any
    /// more.
    Long,
}

impl Patience {
    /// How often a look tries again what an unread event stands in the way of.
    pub(crate) const fn tries(self) -> u32 {
        match self {
            Self::Brief => 0,
            Self::Long => 2000,
        }
    }

    const fn duration(self) -> Duration {
        match self {
            Self::Brief => Duration::from_micros(200),
            Self::Long => Duration::from_millis(100),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Calls(AtomicU32);

/// A call of the program's is under way.
#[derive(Debug)]
pub struct Entered<'c>(&'c Calls);

/// Calls are held back, or were to be.
#[derive(Debug)]
pub struct HeldBack<'c> {
    calls: &'c Calls,
    holds: bool,
    is_alone: bool,
}

impl Calls {
    /// Before a call. Waits while calls are held back.
    pub fn enter(&self) -> Entered<'_> {
        loop {
            let state = self.0.load(Ordering::Relaxed);
            if state & HELD != 0 {
                let _ = futex_wait(&self.0, Scope::Private, state, None);
            } else if self
                .0
                .compare_exchange_weak(state, state + 1, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
            {
                return Entered(self);
            }
        }
    }

    /// Holds new calls back, and waits until those under way have returned and nobody else holds back, or patience is
    /// over.
    pub fn hold_back(&self, patience: Patience) -> HeldBack<'_> {
        let mut since = None;
        let mut left = || patience.duration().checked_sub(since.get_or_insert_with(Instant::now).elapsed());
        let holds = self.wait_until(&mut left, |state| state & HELD == 0, |state| state | HELD);
        let is_alone = holds && self.wait_until(&mut left, |state| state == HELD, |state| state);
        if holds && !is_alone && patience == Patience::Long {
            self.0.store(HELD, Ordering::Relaxed);
        }
        HeldBack { calls: self, holds, is_alone }
    }

    /// Waits for a state, and makes it another. False when no time is left.
    fn wait_until(
        &self,
        left: &mut dyn FnMut() -> Option<Duration>,
        is_right: fn(u32) -> bool,
        next: fn(u32) -> u32,
    ) -> bool {
        loop {
            let state = self.0.load(Ordering::Relaxed);
            if !is_right(state) {
                let Some(left) = left() else { return false };
                let _ = futex_wait(&self.0, Scope::Private, state, Some(left));
            } else if self
                .0
                .compare_exchange_weak(state, next(state), Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
            {
                return true;
            }
        }
    }

    /// In the child of a fork, on its only thread: nobody else is here.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Release);
    }
}

impl HeldBack<'_> {
    /// Whether no call is under way.
    pub const fn is_alone(&self) -> bool {
        self.is_alone
    }
}

impl Drop for HeldBack<'_> {
    fn drop(&mut self) {
        if !self.holds {
            return;
        }
        self.calls.0.fetch_and(!HELD, Ordering::Release);
        futex_wake(&self.calls.0, Scope::Private, u32::MAX);
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let leave = |state: u32| (state & !HELD != 0).then(|| state - 1);
        let before = self.0.0.fetch_update(Ordering::Release, Ordering::Relaxed, leave);
        // Who looks waits for the last.
        if before == Ok(HELD | 1) {
            futex_wake(&self.0.0, Scope::Private, u32::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn a_look_waits_for_calls_and_calls_for_a_look() {
        let (calls, at_work) = (Calls::default(), AtomicBool::new(false));
        let started = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        let _entered = calls.enter();
                        assert!(!at_work.load(Ordering::SeqCst), "a call during a look");
                        started.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            for _ in 0..200 {
                let held = calls.hold_back(Patience::Long);
                assert!(held.is_alone());
                at_work.store(true, Ordering::SeqCst);
                let before = started.load(Ordering::SeqCst);
                std::thread::sleep(Duration::from_micros(20));
                assert_eq!(started.load(Ordering::SeqCst), before, "a call during a look");
                at_work.store(false, Ordering::SeqCst);
            }
        });
        assert_eq!(calls.0.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn one_holds_back_at_a_time() {
        let calls = Calls::default();
        let first = calls.hold_back(Patience::Brief);
        let second = calls.hold_back(Patience::Brief);
        assert!(first.is_alone() && !second.is_alone());
        drop(second);
        assert!(!calls.hold_back(Patience::Brief).is_alone(), "the first still holds");
        drop(first);
        assert!(calls.hold_back(Patience::Brief).is_alone());
    }

    #[test]
    fn patience_ends() {
        let calls = Calls::default();
        let slow = calls.enter();
        assert!(!calls.hold_back(Patience::Brief).is_alone());
        // It is still counted.
        assert!(!calls.hold_back(Patience::Long).is_alone());
        // Now it is not, and its end is no other's.
        assert!(calls.hold_back(Patience::Long).is_alone());
        drop(slow);
        let other = calls.enter();
        assert!(!calls.hold_back(Patience::Brief).is_alone());
        drop(other);
        assert!(calls.hold_back(Patience::Brief).is_alone());
    }
}
