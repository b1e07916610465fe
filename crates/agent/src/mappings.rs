//! Functions of libc that change mappings, announced to drivers before they do it.
//!
//! glibc's own calls of all but mremap do not come here; what they unmap or discard the kernel tells of.

#![expect(unreachable_pub, reason = "called through the dynamic symbol table")]

use std::ffi::{c_int, c_long, c_void};

use hmm::core::notifier::Cause;

use crate::announce::{around, around_mprotect};
use crate::errno::failed;
use crate::mailbox::is_managed;
use crate::relocate::Call;

fn status(result: c_long) -> c_int {
    c_int::try_from(result).unwrap_or(-1)
}

/// See `mprotect(2)`.
///
/// # Safety
/// As of `mprotect(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mprotect(addr: *mut c_void, len: usize, prot: c_int) -> c_int {
    around_mprotect(addr.addr(), len, prot, || {
        // SAFETY: the system call, with the caller's arguments; libc's wrapper sets errno.
        status(unsafe { libc::syscall(libc::SYS_mprotect, addr, len, prot) })
    })
}

/// See `munmap(2)`.
///
/// # Safety
/// As of `munmap(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn munmap(addr: *mut c_void, len: usize) -> c_int {
    around(addr.addr(), len, Cause::Unmap, || {
        // SAFETY: the system call, with the caller's arguments; libc's wrapper sets errno.
        status(unsafe { libc::syscall(libc::SYS_munmap, addr, len) })
    })
}

/// See `mremap(2)`, whose last argument is there with `MREMAP_FIXED` only; without it any value may be passed on. Memory
/// that is managed moves as `relocate` says.
///
/// # Safety
/// As of `mremap(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mremap(
    old: *mut c_void,
    old_len: usize,
    new_len: usize,
    flags: c_int,
    new: *mut c_void,
) -> *mut c_void {
    let call = || {
        let call = Call { old: old.addr(), old_len, new_len, flags, new: new.addr() };
        // SAFETY: the caller's promise.
        match is_managed().then(|| unsafe { call.make() }).flatten() {
            Some(made) => made.map_or_else(failed, |at| c_long::try_from(at).unwrap_or(-1)),
            // SAFETY: the system call, with the caller's arguments; libc's wrapper sets errno.
            None => unsafe { libc::syscall(libc::SYS_mremap, old, old_len, new_len, flags, new) },
        }
    };
    let moved = || around(old.addr(), old_len, Cause::Unmap, call);
    // What was at the new place goes, too.
    let result = if flags & libc::MREMAP_FIXED != 0 {
        around(new.addr(), new_len, Cause::Unmap, moved)
    } else {
        moved()
    };
    let addr = usize::try_from(result).unwrap_or(usize::MAX);
    std::ptr::with_exposed_provenance_mut(addr)
}
