//! Changes of mappings that drivers hear of before they are made.
//!
//! The kernel tells of most changes when they are made already, and of a changed protection not at all. So the functions
//! of libc that the agent stands in front of announce them: drivers have dropped their entries when the system call is
//! made, and cannot make new ones before it has returned.
//!
//! ```text
//!  program's thread           control thread
//!  slot: ASKED, poke -------> tells the drivers, keeps the change open
//!        <------------ BEGUN
//!  system call
//!  slot: OVER, poke --------> ends the change, slot: FREE
//! ```
//!
//! The program's thread does not call the drivers itself: its stack may be away, and a fault on it, while it holds a lock
//! that serving faults needs, would never be served. Where nobody watches all this costs one load.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hmm::core::addr::PageRange;
use hmm::core::notifier::{Cause, Changing};
use hmm::runtime::Runtime;
use hmm::uapi::sys::{Scope, futex_wait, futex_wake};

use crate::MANAGED;
use crate::control::runtime;
use crate::mailbox::MAILBOX;

/// Changes that can be under way at the same time; more wait for one to end.
const NR_SLOTS: usize = 16;

const FREE: u32 = 0;
/// A thread fills it.
const TAKEN: u32 = 1;
const ASKED: u32 = 2;
const BEGUN: u32 = 3;
const OVER: u32 = 4;

/// A change of a thread of the program.
struct Slot {
    state: AtomicU32,
    start: AtomicU64,
    end: AtomicU64,
    cause: AtomicU32,
}

static SLOTS: [Slot; NR_SLOTS] = [const {
    Slot {
        state: AtomicU32::new(FREE),
        start: AtomicU64::new(0),
        end: AtomicU64::new(0),
        cause: AtomicU32::new(0),
    }
}; NR_SLOTS];

/// The changes that a system call can make.
const CAUSES: [Cause; 3] = [Cause::Unmap, Cause::Clear, Cause::ProtectVma];

/// Whether a driver watches anything.
pub(crate) fn is_watched() -> bool {
    MANAGED.load(Ordering::Relaxed)
        && runtime().is_some_and(|runtime| runtime.engine().notifiers().is_watched())
}

/// Makes a change of the bytes from `start` (page aligned) on, of which drivers hear before.
pub(crate) fn around<R>(start: usize, len: usize, cause: Cause, change: impl FnOnce() -> R) -> R {
    if len == 0 || !is_watched() || !MAILBOX.is_attended() {
        return change();
    }
    let slot = take();
    slot.start.store(start as u64, Ordering::Relaxed);
    slot.end.store(start.saturating_add(len) as u64, Ordering::Relaxed);
    let number = CAUSES.iter().position(|this| *this == cause).unwrap_or(0);
    slot.cause.store(u32::try_from(number).unwrap_or(0), Ordering::Relaxed);
    slot.set(ASKED);
    MAILBOX.poke();
    while slot.state.load(Ordering::Acquire) == ASKED {
        let _ = futex_wait(&slot.state, Scope::Private, ASKED, None);
    }
    let result = change();
    slot.set(OVER);
    MAILBOX.poke();
    result
}

fn take() -> &'static Slot {
    loop {
        let free = SLOTS.iter().find(|slot| {
            slot.state.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok()
        });
        match free {
            Some(slot) => return slot,
            None => std::thread::yield_now(),
        }
    }
}

impl Slot {
    fn set(&self, state: u32) {
        self.state.store(state, Ordering::Release);
        futex_wake(&self.state, Scope::Private, 1);
    }

    fn range(&self) -> PageRange {
        let end = self.end.load(Ordering::Relaxed).min(u64::MAX - 4096);
        PageRange::of_bytes(self.start.load(Ordering::Relaxed), end)
    }
}

/// The changes that are open: the control thread's.
#[derive(Default)]
pub(crate) struct Open([Option<Changing<'static>>; NR_SLOTS]);

impl Open {
    /// Does what was asked for since the last time.
    pub(crate) fn serve(&mut self, runtime: &'static Runtime) {
        for (slot, open) in SLOTS.iter().zip(&mut self.0) {
            match slot.state.load(Ordering::Acquire) {
                ASKED => {
                    let cause = CAUSES[slot.cause.load(Ordering::Relaxed) as usize];
                    *open = Some(runtime.announce(slot.range(), cause));
                    slot.set(BEGUN);
                }
                OVER => {
                    *open = None;
                    slot.set(FREE);
                }
                _ => {}
            }
        }
    }
}

/// In the child of a fork, whose only thread made no change.
pub(crate) fn reset() {
    SLOTS.iter().for_each(|slot| slot.state.store(FREE, Ordering::Relaxed));
}
