//! Threads of the program that call hmm.
//!
//! In a call they hold locks that serving faults may need, so their stacks must not be away: as long as such a thread
//! lives, its stack cannot be managed. What they allocate in the call is private ([`crate::heap`]).

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hmm_uapi::AddrRange;

use crate::heap::Inside;

/// Stacks of the threads that have called, and of our own.
static STACKS: Mutex<Vec<AddrRange>> = Mutex::new(Vec::new());

thread_local! {
    static KNOWN: Cell<bool> = const { Cell::new(false) };
    static STACK: Known = Known(note());
}

/// The calling thread's stack, noted while this lives.
struct Known(Option<AddrRange>);

impl Drop for Known {
    fn drop(&mut self) {
        let mut stacks = lock();
        if let Some(at) = self.0.and_then(|stack| stacks.iter().position(|other| *other == stack)) {
            stacks.swap_remove(at);
        }
    }
}

fn lock() -> MutexGuard<'static, Vec<AddrRange>> {
    STACKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes the calling thread's stack. The main thread's is never managed, and not noted if it cannot be found.
fn note() -> Option<AddrRange> {
    let stack = stack()?;
    lock().push(stack);
    Some(stack)
}

/// Begins a call of hmm by a thread of the program.
pub(crate) fn enter() -> Inside {
    let inside = Inside::enter();
    if !KNOWN.replace(true) {
        // Fails on a thread that is ending: its destructors run on a stack that was noted until now.
        let _ = STACK.try_with(|_| ());
    }
    inside
}

/// Begins the work of a thread of our own.
pub(crate) fn stay() {
    enter().keep();
}

/// Whether a part of the range is the stack of a thread that calls hmm.
pub(crate) fn any_stack_in(range: AddrRange) -> bool {
    lock().iter().any(|stack| stack.start < range.end && range.start < stack.end)
}

/// The calling thread's stack, with what libc keeps beside it.
fn stack() -> Option<AddrRange> {
    let mut attributes = std::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: gives the calling thread.
    let this = unsafe { libc::pthread_self() };
    // SAFETY: writes the attributes.
    if unsafe { libc::pthread_getattr_np(this, attributes.as_mut_ptr()) } != 0 {
        return None;
    }
    let (mut start, mut len) = (std::ptr::null_mut(), 0);
    // SAFETY: the attributes were written above.
    let found =
        unsafe { libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut start, &raw mut len) } == 0;
    // SAFETY: as above, and they are not used any more.
    unsafe { libc::pthread_attr_destroy(attributes.as_mut_ptr()) };
    found.then(|| AddrRange::new(start.addr() as u64, len as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_known_as_long_as_its_thread_lives() {
        let page_of = |place: *const u8| AddrRange::new(place.addr() as u64 & !4095, 4096);
        let on_other = std::thread::spawn(move || {
            let local = 0u8;
            let range = page_of(&raw const local);
            assert!(!any_stack_in(range));
            drop(enter());
            assert!(any_stack_in(range));
            range
        });
        let range = on_other.join().expect("the test's own assertion failed");
        assert!(!any_stack_in(range));
    }
}
