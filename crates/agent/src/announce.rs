//! Changes of mappings that drivers hear of before they are made.
//!
//! The kernel tells of most changes when they are made already, and of a changed protection not at all. So the functions
//! of libc that the agent stands in front of announce them: drivers have dropped their entries when the system call is
//! made, and cannot make new ones before it has returned.
//!
//! ```text
//!  program's thread           control thread
//!  asks --------------------> tells the drivers, keeps the change open
//!  <------------------------- answers
//!  system call
//!  says that it is over ----> ends the change
//! ```
//!
//! The program's thread does not call the drivers itself: its stack may be away, and a fault on it, while it holds a lock
//! that serving faults needs, would never be served. Where nobody watches all this costs one load.
//!
//! Of mprotect drivers hear where it changes something ([`changed_parts`]). Who looks at mappings that others are changing
//! cannot tell: then all counts as changed.

use std::ffi::c_int;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hmm::core::addr::PageRange;
use hmm::core::notifier::{Cause, Changing};
use hmm::runtime::Runtime;

use crate::MANAGED;
use crate::control::runtime;
use crate::mailbox::MAILBOX;
use crate::protection::changed_parts;
use crate::question::Question;

/// Changes that can be under way at the same time; more wait for one to end.
const NR_SLOTS: usize = 16;

/// A change of a thread of the program.
struct Slot {
    question: Question,
    start: AtomicU64,
    end: AtomicU64,
    cause: AtomicU32,
    /// Of mprotect: its argument; else [`NONE`].
    prot: AtomicI32,
}

/// No argument of mprotect.
const NONE: c_int = -1;

static SLOTS: [Slot; NR_SLOTS] = [const {
    Slot {
        question: Question::new(),
        start: AtomicU64::new(0),
        end: AtomicU64::new(0),
        cause: AtomicU32::new(0),
        prot: AtomicI32::new(NONE),
    }
}; NR_SLOTS];

/// The changes that a system call can make.
const CAUSES: [Cause; 3] = [Cause::Unmap, Cause::Clear, Cause::ProtectVma];

/// What the device thread holds still. Locked by it and by the control thread, for moments.
static HELD: Mutex<Option<PageRange>> = Mutex::new(None);

fn held() -> MutexGuard<'static, Option<PageRange>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn overlap(a: PageRange, b: PageRange) -> bool {
    !a.intersect(b).is_empty()
}

/// As long as this lives, changes of a range that are announced wait.
pub(crate) struct Still(());

impl Still {
    /// The device thread's. `None` while such a change is being made.
    pub(crate) fn hold(range: PageRange) -> Option<Self> {
        let mut held = held();
        let is_made = |slot: &Slot| slot.question.is_answered() && overlap(slot.range(), range);
        let is_changing = SLOTS.iter().any(is_made);
        (!is_changing).then(|| {
            *held = Some(range);
            Self(())
        })
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        *held() = None;
        MAILBOX.poke();
    }
}

/// Whether a driver watches anything.
pub(crate) fn is_watched() -> bool {
    MANAGED.load(Ordering::Relaxed)
        && runtime().is_some_and(|runtime| runtime.engine().notifiers().is_watched())
}

/// Makes a change of the bytes from `start` (page aligned) on, of which drivers hear before.
pub(crate) fn around<R>(start: usize, len: usize, cause: Cause, change: impl FnOnce() -> R) -> R {
    announced(start, len, (cause, NONE), change)
}

/// The same for mprotect, with its last argument.
pub(crate) fn around_mprotect<R>(start: usize, len: usize, prot: c_int, change: impl FnOnce() -> R) -> R {
    announced(start, len, (Cause::ProtectVma, prot), change)
}

fn announced<R>(start: usize, len: usize, (cause, prot): (Cause, c_int), change: impl FnOnce() -> R) -> R {
    if len == 0 || !is_watched() || !MAILBOX.is_attended() {
        return change();
    }
    let slot = Question::take(&SLOTS, |slot| &slot.question);
    slot.start.store(start as u64, Ordering::Relaxed);
    slot.end.store(start.saturating_add(len) as u64, Ordering::Relaxed);
    let number = CAUSES.iter().position(|this| *this == cause).unwrap_or(0);
    slot.cause.store(u32::try_from(number).unwrap_or(0), Ordering::Relaxed);
    slot.prot.store(prot, Ordering::Relaxed);
    slot.question.ask();
    let result = change();
    slot.question.end();
    result
}

impl Slot {
    fn range(&self) -> PageRange {
        let end = self.end.load(Ordering::Relaxed).min(u64::MAX - 4096);
        PageRange::of_bytes(self.start.load(Ordering::Relaxed), end)
    }
}

/// A change that a thread of the program is making, and what drivers know of it.
struct Change {
    range: PageRange,
    _told: Vec<Changing<'static>>,
}

/// The changes that are open: the control thread's.
#[derive(Default)]
pub(crate) struct Open([Option<Change>; NR_SLOTS]);

impl Open {
    /// Does what was asked for since the last time.
    pub(crate) fn serve(&mut self, runtime: &'static Runtime) {
        for (index, slot) in SLOTS.iter().enumerate() {
            if slot.question.is_asked() {
                let held = held();
                if held.is_some_and(|held| overlap(held, slot.range())) {
                    continue;
                }
                self.0[index] = Some(self.begin(runtime, slot));
                slot.question.answer();
            } else if slot.question.is_over() {
                self.0[index] = None;
                slot.question.free();
            }
        }
    }

    fn begin(&self, runtime: &'static Runtime, slot: &Slot) -> Change {
        let range = slot.range();
        let cause = CAUSES[slot.cause.load(Ordering::Relaxed) as usize];
        let prot = slot.prot.load(Ordering::Relaxed);
        // Who has asked may have ended another one just before.
        let mut others = self.0.iter().zip(&SLOTS).filter_map(|(other, slot)| Some((other.as_ref()?, slot)));
        let is_alone = others.all(|(other, slot)| slot.question.is_over() || !overlap(other.range, range));
        let parts = if cause == Cause::ProtectVma && is_alone {
            changed_parts(runtime.engine().kernel().maps(), range, prot)
        } else {
            vec![range]
        };
        Change { range, _told: parts.into_iter().map(|part| runtime.announce(part, cause)).collect() }
    }
}

/// In the child of a fork, whose only thread made no change.
pub(crate) fn reset() {
    SLOTS.iter().for_each(|slot| slot.question.free());
}
