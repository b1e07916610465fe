//! A child whose copy was of no use, and which was the first of a namespace of pids: the namespace has ended with it.
//!
//! After `unshare(CLONE_NEWPID)` a thread's next child is the first process of a new namespace; who comes after the end of that has
//! no pid (`ENOMEM`). Nobody can have seen the namespace: the parent makes another one, from the one that it is in itself. That
//! needs the right by which it made the first, over its own namespace, too.

use std::ffi::c_int;

use hmm::uapi::sys::{getpid, pidfd_open};
use rustix::fd::{AsFd, AsRawFd};

/// What a child of no use ends with that was the first of its namespace.
const FIRST: c_int = 1;

/// What a child of no use ends with.
pub(crate) fn status_of_useless() -> c_int {
    if getpid() == 1 { FIRST } else { 0 }
}

/// In the parent, on the thread that forks, which has waited for the child. False if it can have no children any more.
pub(crate) fn renew_after(status: c_int) -> bool {
    !(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == FIRST) || renew()
}

fn renew() -> bool {
    let Ok(own) = pidfd_open(getpid()) else { return false };
    // SAFETY: sets what the thread's next child is in, to what the thread is in.
    let is_back = unsafe { libc::setns(own.as_fd().as_raw_fd(), libc::CLONE_NEWPID) } == 0;
    // SAFETY: what the program has done.
    is_back && unsafe { libc::unshare(libc::CLONE_NEWPID) } == 0
}
