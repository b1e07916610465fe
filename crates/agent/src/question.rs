//! A question of a thread of the program to the control thread.
//!
//! ```text
//!  program's thread              control thread
//!  take: FREE -> TAKEN
//!  writes beside it
//!  ask: ASKED, poke ----------->  is_asked: reads, writes beside it
//!  returns   <------------------  answer: ANSWERED
//!  reads
//!  free, or end: OVER, poke --->  is_over, free
//! ```
//!
//! Neither side allocates or locks, and threads ask from signal handlers, too. What is asked and answered lies beside the
//! question, in the place that has it.

use std::ops::Deref;
use std::sync::atomic::{AtomicU32, Ordering};

use hmm::uapi::sys::{Scope, SignalsBlocked, futex_wait, futex_wake};

use crate::mailbox::MAILBOX;

const FREE: u32 = 0;
/// A thread fills it.
const TAKEN: u32 = 1;
const ASKED: u32 = 2;
const ANSWERED: u32 = 3;
/// The thread has done what it asked for.
const OVER: u32 = 4;

/// How a question stands.
#[derive(Debug)]
pub(crate) struct Question(AtomicU32);

impl Question {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(FREE))
    }

    /// Waits for a place whose question is free, and takes it. As long as what is returned lives no signal comes, but for faults of the
    /// thread's own: a handler that does not return would leave the place taken, and one that asks as well might wait for the thread that
    /// it interrupts.
    pub(crate) fn take<T>(places: &'static [T], question: impl Fn(&T) -> &Self) -> Taken<T> {
        let blocked = SignalsBlocked::but_for_faults();
        let is_free = |place: &&T| {
            let state = &question(place).0;
            state.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        loop {
            match places.iter().find(is_free) {
                Some(place) => return Taken { place, _blocked: blocked },
                None => std::thread::yield_now(),
            }
        }
    }

    /// Asks, and returns when it is answered.
    pub(crate) fn ask(&self) {
        self.0.store(ASKED, Ordering::Release);
        MAILBOX.poke();
        while self.is_asked() {
            let _ = futex_wait(&self.0, Scope::Private, ASKED, None);
        }
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.0.load(Ordering::Acquire) == ASKED
    }

    pub(crate) fn answer(&self) {
        self.0.store(ANSWERED, Ordering::Release);
        futex_wake(&self.0, Scope::Private, 1);
    }

    pub(crate) fn is_answered(&self) -> bool {
        self.0.load(Ordering::Acquire) == ANSWERED
    }

    /// Tells the control thread that what was asked for is done.
    pub(crate) fn end(&self) {
        self.0.store(OVER, Ordering::Release);
        MAILBOX.poke();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.load(Ordering::Acquire) == OVER
    }

    /// Another thread may take it. Also in the child of a fork, whose only thread asks nothing.
    pub(crate) fn free(&self) {
        self.0.store(FREE, Ordering::Release);
    }
}

/// A place whose question is this thread's. To drop it does not free the question.
#[must_use = "without it signals come"]
pub(crate) struct Taken<T: 'static> {
    place: &'static T,
    _blocked: SignalsBlocked,
}

impl<T> Deref for Taken<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.place
    }
}
