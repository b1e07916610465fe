//! The program's break, moved ahead of need.
//!
//! Memory that the heap gains has to be known to the control thread before it is touched, and asking that thread takes as
//! long as touching some dozen pages. So, when libc's own calls come here (`bodies`), the kernel's break is kept ahead of
//! the one that the program sees (`__curbrk`): most steps of the heap are inside of what is managed already, and need no
//! system call at all. Whatever is taken back is really taken back, so that it reads as zeroes when it comes again.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use hmm::uapi::Errno;

use crate::errno::failed;
use crate::{MANAGED, bodies, interpose};

/// How far the kernel's break is ahead after it was moved, in bytes.
const AHEAD_BYTES: usize = 2 << 20;
const PAGE_BYTES: usize = 4096;

/// The kernel's break, if it is ahead; else 0. libc has its callers take turns.
static KERNEL_BREAK: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    /// libc's own variable: the break that the program sees.
    static __curbrk: AtomicPtr<c_void>;
}

/// See `brk(2)`.
#[expect(unreachable_pub, reason = "called through the dynamic symbol table")]
#[unsafe(no_mangle)]
pub extern "C" fn brk(to: *mut c_void) -> c_int {
    let moved = if MANAGED.load(Ordering::Relaxed) && bodies::are_replaced() {
        move_managed(to.addr())
    } else {
        let reached = kernel_brk(to.addr());
        set_break(reached);
        if MANAGED.load(Ordering::Relaxed) && reached > 0 {
            interpose::tell(reached - 1, 1);
        }
        reached >= to.addr()
    };
    if moved {
        return 0;
    }
    failed(Errno::NOMEM)
}

/// Moves the break that the program sees. False where it cannot be; then it stays.
fn move_managed(to: usize) -> bool {
    let mut now = current_break();
    if now == 0 {
        now = kernel_brk(0);
        set_break(now);
    }
    if to <= now {
        return move_back(to, now);
    }
    if to > KERNEL_BREAK.load(Ordering::Relaxed) {
        let ahead = to.saturating_add(AHEAD_BYTES) & !(PAGE_BYTES - 1);
        // A limit may allow what is needed, but no more.
        let reached = [ahead, to].into_iter().map(kernel_brk).find(|reached| *reached >= to);
        let Some(reached) = reached else { return false };
        KERNEL_BREAK.store(reached, Ordering::Relaxed);
        interpose::tell(now, reached - now);
    }
    set_break(to);
    true
}

/// Below the heap there is nothing to go to: the break stays then, which is how it is asked for.
fn move_back(to: usize, now: usize) -> bool {
    if to < now && kernel_brk(to) == to {
        KERNEL_BREAK.store(to, Ordering::Relaxed);
        set_break(to);
    }
    true
}

/// Moves the kernel's break, if it can be. Gives where it is then.
fn kernel_brk(to: usize) -> usize {
    // SAFETY: what lies between the old break and the new one is the caller's of brk to give up.
    let reached = unsafe { libc::syscall(libc::SYS_brk, to) };
    usize::try_from(reached).unwrap_or(0)
}

/// The break that the program sees, 0 if nobody has asked for it yet.
#[inline]
pub(crate) fn current_break() -> usize {
    curbrk().load(Ordering::Relaxed).addr()
}

fn set_break(to: usize) {
    curbrk().store(std::ptr::without_provenance_mut(to), Ordering::Relaxed);
}

#[inline]
fn curbrk() -> &'static AtomicPtr<c_void> {
    // SAFETY: a pointer in libc's data, aligned, which libc reads and writes whole, as its callers take turns.
    unsafe { &__curbrk }
}
