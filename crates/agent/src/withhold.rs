//! What the program keeps from its children (`MADV_DONTFORK`), told to the engine: it uses the same flag of the kernel's
//! where forks are not reported, see `hmm::mm::Mm::lend`.
//!
//! The control thread takes the note: a thread of the program must not hold the engine's locks, because its stack may be
//! away.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hmm::core::addr::PageRange;
use hmm::runtime::Runtime;
use hmm::uapi::AddrRange;

use crate::control::{discover, has_budget, runtime};
use crate::mailbox::is_managed;
use crate::question::Question;

/// What a thread of the program has told the kernel.
struct Slot {
    question: Question,
    start: AtomicU64,
    end: AtomicU64,
    withholds: AtomicBool,
}

/// One is enough: it is rare.
static SLOTS: [Slot; 1] = [Slot {
    question: Question::new(),
    start: AtomicU64::new(0),
    end: AtomicU64::new(0),
    withholds: AtomicBool::new(false),
}];

/// Tells of a `madvise(2)` that was made, if it is one of these.
pub(crate) fn tell(start: usize, len: usize, advice: c_int) {
    let concerns_us = matches!(advice, libc::MADV_DONTFORK | libc::MADV_DOFORK)
        && is_managed()
        && runtime().is_some_and(|runtime| !runtime.engine().kernel().reports_forks());
    if !concerns_us {
        return;
    }
    let slot = Question::take(&SLOTS, |slot| &slot.question);
    slot.start.store(start as u64, Ordering::Relaxed);
    slot.end.store(start.saturating_add(len) as u64, Ordering::Relaxed);
    slot.withholds.store(advice == libc::MADV_DONTFORK, Ordering::Relaxed);
    slot.question.ask();
    slot.question.free();
}

/// The control thread's side.
pub(crate) fn serve(runtime: &Runtime) {
    for slot in &SLOTS {
        if slot.question.is_asked() {
            let (start, end) = (slot.start.load(Ordering::Relaxed), slot.end.load(Ordering::Relaxed));
            let range = PageRange::of_bytes(start, end);
            let withholds = slot.withholds.load(Ordering::Relaxed);
            if has_budget() {
                // What a mapping has grown by may not be known yet.
                let _ = discover(runtime, AddrRange { start, end });
            }
            runtime.engine().kernel().program_withholds(range, withholds);
            slot.question.answer();
        }
    }
}

/// In the child of a fork, whose only thread has told nothing.
pub(crate) fn reset() {
    SLOTS.iter().for_each(|slot| slot.question.free());
}
