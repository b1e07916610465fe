//! `mlockall(2)`, for the program's memory and not for ours. The kernel would lock all that the process has: what we have reserved
//! would be made resident, a multiple of the budget.
//!
//! Mapping by mapping the program's memory is locked as by `mlock`: what is away comes home and stays. Of what will be mapped the
//! kernel takes care. The control thread says which mappings are the program's, because it knows ours; the calls are made by the
//! program's thread, because they wait for faults. A program that makes the system call by itself, not by libc, has our memory
//! locked, too: no byte is wrong by that.

use std::ffi::c_int;
use std::sync::atomic::{AtomicU64, Ordering};

use hmm::runtime::Runtime;
use hmm::uapi::{AddrRange, Errno, any_syscall};

use crate::errno::failed;
use crate::mailbox::is_managed;
use crate::question::Question;

const KNOWN: c_int = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
/// Behind it there is only what is the kernel's.
const END: u64 = 1 << 47;

/// What a thread of the program asks, and what it is told.
struct Slot {
    question: Question,
    /// In: from where on.
    from: AtomicU64,
    /// Out: the next of the program's memory; empty if there is none.
    start: AtomicU64,
    end: AtomicU64,
}

/// One is enough: it is rare.
static SLOTS: [Slot; 1] = [Slot {
    question: Question::new(),
    from: AtomicU64::new(0),
    start: AtomicU64::new(0),
    end: AtomicU64::new(0),
}];

/// See `mlockall(2)`.
#[expect(unreachable_pub, reason = "called through the dynamic symbol table")]
#[unsafe(no_mangle)]
pub extern "C" fn mlockall(flags: c_int) -> c_int {
    match lock_all(flags) {
        Ok(()) => 0,
        Err(errno) => failed(errno),
    }
}

fn lock_all(flags: c_int) -> Result<(), Errno> {
    if !is_managed() || flags & libc::MCL_CURRENT == 0 || flags & !KNOWN != 0 {
        return call(libc::SYS_mlockall, [flags.into(), 0, 0]);
    }
    if flags & libc::MCL_FUTURE != 0 {
        call(libc::SYS_mlockall, [(flags & !libc::MCL_CURRENT).into(), 0, 0])?;
    }
    let (mut at, mut refused) = (0, None);
    while let Some(range) = next(at) {
        let (start, len) = (range.start.cast_signed(), range.len().cast_signed());
        match call(libc::SYS_mlock2, [start, len, libc::MLOCK_ONFAULT.into()]) {
            Ok(()) => {}
            // Some of it may have been unmapped since we asked. Else it is more than this user may lock.
            Err(Errno::NOMEM) if refused != Some(range) => {
                refused = Some(range);
                continue;
            }
            Err(errno) => return Err(errno),
        }
        at = range.end;
        if flags & libc::MCL_ONFAULT == 0 {
            // What cannot be resident is locked all the same.
            let _ = call(libc::SYS_mlock, [start, len, 0]);
        }
    }
    Ok(())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "words of 64 bits, as the kernel takes them"
)]
fn call(nr: libc::c_long, args: [i64; 3]) -> Result<(), Errno> {
    let [a, b, c] = args.map(|arg| arg as usize);
    // SAFETY: locking changes no byte.
    unsafe { any_syscall(nr as usize, [a, b, c, 0, 0, 0]) }.map(drop)
}

/// The program's next memory.
fn next(from: u64) -> Option<AddrRange> {
    let slot = Question::take(&SLOTS, |slot| &slot.question);
    slot.from.store(from, Ordering::Relaxed);
    slot.question.ask();
    let range =
        AddrRange { start: slot.start.load(Ordering::Relaxed), end: slot.end.load(Ordering::Relaxed) };
    slot.question.free();
    (!range.is_empty()).then_some(range)
}

/// The control thread's side.
pub(crate) fn serve(runtime: &Runtime) {
    for slot in SLOTS.iter().filter(|slot| slot.question.is_asked()) {
        let from = slot.from.load(Ordering::Relaxed);
        let next = runtime.next_of_program(from).filter(|range| range.start < END);
        let range = next.unwrap_or(AddrRange { start: 0, end: 0 });
        slot.start.store(range.start, Ordering::Relaxed);
        slot.end.store(range.end, Ordering::Relaxed);
        slot.question.answer();
    }
}

/// In the child of a fork, whose only thread asked nothing.
pub(crate) fn reset() {
    SLOTS.iter().for_each(|slot| slot.question.free());
}
