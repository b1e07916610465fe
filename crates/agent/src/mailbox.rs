//! How the program's threads tell the control thread something, and wait for the answer.
//!
//! A request is a number that is counted up; the answer is the number up to which requests are done. What is asked for
//! lies beside it: the hull of the ranges with new memory. It is two words, so a request is counted when it is begun, too:
//! who takes the hull while one is being put there may have half of it, and looks everywhere. Neither side allocates or
//! locks, because requests come from signal handlers as well. A waiter gives up after some time: the control thread looks for
//! itself now and then, so that nothing is lost by that. The child of a fork that we were not told of has nobody to wait
//! for, and does not.

use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use hmm::uapi::AddrRange;
use hmm::uapi::sys::{Scope, futex_wait, futex_wake, getpid};

use crate::MANAGED;

/// The longest that a thread of the program waits: far longer than it takes on a machine with too much to do.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) const EVERYTHING: AddrRange = AddrRange { start: 0, end: u64::MAX };

pub(crate) static MAILBOX: Mailbox = Mailbox::new();

/// Whether memory of this process is managed, and the control thread is there to be asked.
pub(crate) fn is_managed() -> bool {
    MANAGED.load(Ordering::Acquire) && MAILBOX.is_attended()
}

/// See the module.
pub(crate) struct Mailbox {
    /// The process that the control thread is in.
    process: AtomicI32,
    begun: AtomicU32,
    asked: AtomicU32,
    done: AtomicU32,
    start: AtomicU64,
    end: AtomicU64,
}

impl Mailbox {
    const fn new() -> Self {
        Self {
            process: AtomicI32::new(0),
            begun: AtomicU32::new(0),
            asked: AtomicU32::new(0),
            done: AtomicU32::new(0),
            start: AtomicU64::new(u64::MAX),
            end: AtomicU64::new(0),
        }
    }

    /// This process has a control thread, or is about to. In the child of a fork: what the parent's threads asked is not ours
    /// to answer.
    pub(crate) fn reset(&self) {
        self.process.store(getpid(), Ordering::SeqCst);
        self.begun.store(self.asked(), Ordering::SeqCst);
        self.done.store(self.asked(), Ordering::Release);
    }

    /// Tells of new memory. The number can be waited for.
    pub(crate) fn ask(&self, range: AddrRange) -> u32 {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.start.fetch_min(range.start, Ordering::SeqCst);
        self.end.fetch_max(range.end, Ordering::SeqCst);
        self.count()
    }

    /// Makes the control thread look at the mailbox.
    pub(crate) fn poke(&self) -> u32 {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.count()
    }

    fn count(&self) -> u32 {
        let number = self.asked.fetch_add(1, Ordering::SeqCst).wrapping_add(1);
        futex_wake(&self.asked, Scope::Private, 1);
        number
    }

    /// Whether this process has a control thread.
    pub(crate) fn is_attended(&self) -> bool {
        self.process.load(Ordering::SeqCst) == getpid()
    }

    /// Waits until a request is done.
    pub(crate) fn wait(&self, number: u32) {
        while self.is_attended() {
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

    /// The control thread's side: the number of the last request.
    pub(crate) fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }

    /// The number of the last request, and where to look for all of them: nowhere, if nothing was asked for.
    pub(crate) fn take(&self) -> (u32, AddrRange) {
        let asked = self.asked();
        let (start, end) = (self.start.swap(u64::MAX, Ordering::SeqCst), self.end.swap(0, Ordering::SeqCst));
        let whole = self.begun.load(Ordering::SeqCst) == asked;
        (asked, if whole { AddrRange { start, end } } else { EVERYTHING })
    }

    /// What was taken is not done: it is there again.
    pub(crate) fn put_back(&self, range: AddrRange) {
        self.start.fetch_min(range.start, Ordering::SeqCst);
        self.end.fetch_max(range.end, Ordering::SeqCst);
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
