//! How the program's threads tell the control thread something, and wait for the answer.
//!
//! A request is a number that is counted up; the answer is the number up to which requests are done. What is asked for
//! lies beside it: the hull of the ranges with new memory. Neither side allocates, and a waiter gives up after a second:
//! the control thread looks for itself now and then, so that nothing is lost by that.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use hmm::uapi::AddrRange;
use hmm::uapi::sys::{Scope, futex_wait, futex_wake};

/// The longest that a thread of the program waits.
const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) static MAILBOX: Mailbox = Mailbox::new();

/// See the module.
pub(crate) struct Mailbox {
    asked: AtomicU32,
    done: AtomicU32,
    start: AtomicU64,
    end: AtomicU64,
}

impl Mailbox {
    const fn new() -> Self {
        Self {
            asked: AtomicU32::new(0),
            done: AtomicU32::new(0),
            start: AtomicU64::new(u64::MAX),
            end: AtomicU64::new(0),
        }
    }

    /// In the child of a fork: what the parent's threads asked is not ours to answer.
    pub(crate) fn reset(&self) {
        self.done.store(self.asked(), Ordering::Release);
    }

    /// Tells of new memory. The number can be waited for.
    pub(crate) fn ask(&self, range: AddrRange) -> u32 {
        self.start.fetch_min(range.start, Ordering::Relaxed);
        self.end.fetch_max(range.end, Ordering::Relaxed);
        self.poke()
    }

    /// Makes the control thread look at the mailbox.
    pub(crate) fn poke(&self) -> u32 {
        let number = self.asked.fetch_add(1, Ordering::Release).wrapping_add(1);
        futex_wake(&self.asked, Scope::Private, 1);
        number
    }

    /// Waits until a request is done.
    pub(crate) fn wait(&self, number: u32) {
        loop {
            let done = self.done.load(Ordering::Acquire);
            if done.wrapping_sub(number) < u32::MAX / 2 {
                return;
            }
            if futex_wait(&self.done, Scope::Private, done, Some(PATIENCE)) == Err(hmm::uapi::Errno::TIMEDOUT)
            {
                return;
            }
        }
    }

    /// The control thread's side: what was asked so far.
    pub(crate) fn asked(&self) -> u32 {
        self.asked.load(Ordering::Acquire)
    }

    /// The hull of what was asked for, empty if nothing was.
    pub(crate) fn take(&self) -> AddrRange {
        let start = self.start.swap(u64::MAX, Ordering::Relaxed);
        let end = self.end.swap(0, Ordering::Relaxed);
        AddrRange { start, end }
    }

    /// Everything up to `number` is done.
    pub(crate) fn answer(&self, number: u32) {
        self.done.store(number, Ordering::Release);
        futex_wake(&self.done, Scope::Private, u32::MAX);
    }

    /// Sleeps until something is asked that is not known yet, or the time is over.
    pub(crate) fn sleep(&self, known: u32, time: Duration) {
        let _ = futex_wait(&self.asked, Scope::Private, known, Some(time));
    }
}
