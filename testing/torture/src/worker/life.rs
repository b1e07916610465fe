//! Signs of life: an operation may take long, and be far from hanging.
//!
//! A fork is over when its child has read all of its memory, and may be when a child of that has. Where each page takes its time
//! (a slow device, a loaded machine, a budget that many share) that can take minutes. So who works for a thread of the worker's,
//! that thread or a child, counts what it does where the worker sees it: in memory that a fork does not copy, and that hmm does
//! not manage.

use std::cell::Cell;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use super::place::{Errno, PAGE, last_errno};
use super::thread::MAX_THREADS;

static SIGNS: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());

thread_local! {
    /// The worker's thread that this one works for. In a child that of its parent.
    static NUMBER: Cell<usize> = const { Cell::new(0) };
}

/// Begins, before there are threads.
pub(crate) fn begin() -> Result<(), Errno> {
    const { assert!(MAX_THREADS * size_of::<AtomicU64>() <= PAGE, "a page has room for all") }
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, at a place of the kernel's choice.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, prot, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(last_errno());
    }
    SIGNS.store(at.cast(), Ordering::Release);
    Ok(())
}

/// The calling thread is that one of the worker's.
pub(crate) fn is(thread: usize) {
    NUMBER.set(thread);
}

fn signs(thread: usize) -> Option<&'static AtomicU64> {
    let first = SIGNS.load(Ordering::Acquire);
    // SAFETY: there is room for `MAX_THREADS` of them, zeroes at first, and they stay for good.
    (!first.is_null() && thread < MAX_THREADS).then(|| unsafe { &*first.wrapping_add(thread) })
}

/// Something was done.
pub(crate) fn sign() {
    if let Some(signs) = signs(NUMBER.get()) {
        signs.fetch_add(1, Ordering::Relaxed);
    }
}

/// What was done for a thread.
pub(crate) fn of(thread: usize) -> u64 {
    signs(thread).map_or(0, |signs| signs.load(Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_child_does_is_seen() {
        begin().unwrap();
        is(3);
        // SAFETY: the child makes no call but to end.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            sign();
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: a child of ours.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert_eq!((status, of(3), of(2)), (0, 1, 0));
    }
}
