//! Functions of libc that fork by themselves: there would be no way back from a fork whose copy is of no use. Ours are made of
//! the same parts, and of our `fork`.

#![expect(unreachable_pub, reason = "called through the dynamic symbol table")]

use std::ffi::{CStr, c_char, c_int};

use crate::fork::fork;

const NULL_DEVICE: &CStr = c"/dev/null";

/// See `daemon(3)`.
#[unsafe(no_mangle)]
pub extern "C" fn daemon(keep_directory: c_int, keep_files: c_int) -> c_int {
    match fork() {
        -1 => return -1,
        0 => {}
        // SAFETY: ends the process, without what it has registered for that: the child goes on.
        _ => unsafe { libc::_exit(0) },
    }
    // SAFETY: a system call without arguments.
    if unsafe { libc::setsid() } == -1 {
        return -1;
    }
    if keep_directory == 0 {
        // SAFETY: the name ends with a zero.
        let _stays_where_it_is = unsafe { libc::chdir(c"/".as_ptr()) };
    }
    if keep_files == 0 { discard_standard_files() } else { 0 }
}

fn discard_standard_files() -> c_int {
    // SAFETY: the name ends with a zero.
    let null = unsafe { libc::open(NULL_DEVICE.as_ptr(), libc::O_RDWR) };
    if null == -1 {
        return -1;
    }
    for fd in 0..=2 {
        // SAFETY: these three are what the caller gives up.
        unsafe { libc::dup2(null, fd) };
    }
    if null > 2 {
        // SAFETY: it was opened above.
        unsafe { libc::close(null) };
    }
    0
}

/// See `forkpty(3)`.
///
/// # Safety
/// As of `forkpty(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forkpty(
    master: *mut c_int,
    name: *mut c_char,
    settings: *const libc::termios,
    size: *const libc::winsize,
) -> libc::pid_t {
    let (mut ours, mut theirs) = (-1, -1);
    // SAFETY: the caller's promise; there is room for two descriptors.
    if unsafe { libc::openpty(&raw mut ours, &raw mut theirs, name, settings, size) } == -1 {
        return -1;
    }
    let pid = fork();
    // SAFETY: closes what was opened above.
    let close = |fd| unsafe { libc::close(fd) };
    match pid {
        -1 => {
            close(ours);
            close(theirs);
        }
        0 => {
            close(ours);
            // SAFETY: it was opened above; closes it.
            if unsafe { libc::login_tty(theirs) } == -1 {
                // SAFETY: as libc does it: the parent learns of it by the end of its child.
                unsafe { libc::_exit(1) };
            }
        }
        _ => {
            close(theirs);
            // SAFETY: the caller's promise.
            unsafe { *master = ours };
        }
    }
    pid
}
