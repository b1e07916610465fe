//! A child of the client: it does a few operations while the parent waits, says that it is done, and sleeps until the
//! parent ends it. So there are two address spaces that share pages, but only one of them acts at a time.

use std::io;

use crate::sys::check;

/// A running child, as the parent sees it.
#[derive(Debug)]
pub(crate) struct Child {
    pid: libc::pid_t,
    ready: Pipe,
    go: Pipe,
}

/// What fork returned, and where.
#[derive(Debug)]
pub(crate) enum Side {
    Parent(Child),
    Child(Link),
}

/// The parent, as the child sees it.
#[derive(Debug)]
pub(crate) struct Link {
    ready: Pipe,
    go: Pipe,
}

/// Forks. Nothing of ours but the calling thread exists, so both sides may go on as they like.
///
/// # Errors
/// The ones of fork(2) and pipe(2).
pub(crate) fn fork() -> io::Result<Side> {
    let (mut ready, mut go) = (Pipe::new()?, Pipe::new()?);
    // SAFETY: the process has one thread, so the child finds no lock held.
    let pid = unsafe { libc::fork() };
    check(pid)?;
    if pid == 0 {
        ready.close(READ);
        go.close(WRITE);
        return Ok(Side::Child(Link { ready, go }));
    }
    ready.close(WRITE);
    go.close(READ);
    Ok(Side::Parent(Child { pid, ready, go }))
}

impl Child {
    /// Waits until it has done its operations, or is dead.
    pub(crate) fn wait_until_ready(&self) {
        self.ready.wait();
    }

    /// Lets it read its memory and exit; the status of wait(2).
    pub(crate) fn end(mut self) -> i32 {
        self.go.close(WRITE);
        let mut status = 0;
        // SAFETY: the status is valid for writing.
        unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        status
    }
}

impl Link {
    /// Says that the operations are done, and waits for the parent to end us.
    pub(crate) fn sleep(&mut self) {
        self.ready.close(WRITE);
        self.go.wait();
    }
}

const READ: usize = 0;
const WRITE: usize = 1;

/// A pipe through which nothing goes: closing the one end is the message.
#[derive(Debug)]
struct Pipe([libc::c_int; 2]);

impl Pipe {
    fn new() -> io::Result<Self> {
        let mut ends = [-1; 2];
        // SAFETY: there is room for the two descriptors.
        check(unsafe { libc::pipe(ends.as_mut_ptr()) })?;
        Ok(Self(ends))
    }

    fn close(&mut self, end: usize) {
        let fd = std::mem::replace(&mut self.0[end], -1);
        if fd != -1 {
            // SAFETY: the descriptor is ours, and forgotten.
            unsafe { libc::close(fd) };
        }
    }

    /// Until the other end is closed.
    fn wait(&self) {
        let mut byte = 0_u8;
        // SAFETY: there is room for the byte that never comes.
        unsafe { libc::read(self.0[READ], (&raw mut byte).cast(), 1) };
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.close(READ);
        self.close(WRITE);
    }
}
