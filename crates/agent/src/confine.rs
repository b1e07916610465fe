//! Seccomp filters for all threads of a process (`SECCOMP_FILTER_FLAG_TSYNC`), which would be for ours, too.
//!
//! What confines itself allows what it needs, not what we do. A filter that kills our threads, or has our system calls fail, leaves
//! the program waiting for pages that never come. So where the program has one thread only, the filter is for that one: the
//! threads that it makes later inherit it. With several, the kernel's answer is given for a thread that cannot have the filter,
//! which ours are. All this for programs that call libc's `syscall`, as libraries for filters do; where a filter comes over our
//! threads otherwise, and forbids the verbs, the process is ended and told ([`hmm::runtime::Policy::forbidden`]).

use std::ffi::{c_int, c_long};

use hmm::uapi::{Errno, any_syscall};

use crate::errno::failed;
use crate::mailbox::is_managed;
use crate::{control, lock_all, threads};

const SET_MODE_FILTER: usize = 1;
const TSYNC: usize = 1 << 0;
const TSYNC_ESRCH: usize = 1 << 4;

/// See `syscall(2)`: what comes in registers and on the stack is the same for a function of variable arguments.
///
/// # Safety
/// As for `syscall(2)`.
#[expect(unreachable_pub, reason = "called through the dynamic symbol table")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    nr: usize,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    let mut flags = b;
    if usize::try_from(libc::SYS_seccomp) == Ok(nr) && a == SET_MODE_FILTER && b & TSYNC != 0 && is_managed()
    {
        match (threads::is_program_alone(), b & TSYNC_ESRCH != 0) {
            (true, _) => flags &= !(TSYNC | TSYNC_ESRCH),
            (false, true) => return failed::<c_long>(Errno::SRCH),
            (false, false) => return control::tid().into(),
        }
    }
    if usize::try_from(libc::SYS_mlockall) == Ok(nr) {
        return lock_all::mlockall(flags_of(a)).into();
    }
    // SAFETY: the caller's promise.
    match unsafe { any_syscall(nr, [a, flags, c, d, e, f]) } {
        Ok(value) => value.cast_signed() as c_long,
        Err(errno) => failed::<c_long>(errno),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "the kernel looks at no more of it"
)]
const fn flags_of(argument: usize) -> c_int {
    argument as c_int
}
