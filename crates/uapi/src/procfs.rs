//! procfs, held open: what it says of this process can be read after the process has changed its root directory to one
//! that has no `/proc`.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::path::DecInt;

use crate::fd::Fd;

/// A mounted procfs. `self` in it is whoever opens the file, not who opened this.
#[derive(Debug)]
pub struct Procfs {
    fd: Fd,
}

impl Procfs {
    /// Opens the one at `/proc`.
    ///
    /// # Errors
    /// `ENOENT`: there is no `/proc`.
    pub fn open() -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { fd: Fd::from(rustix::fs::open(c"/proc", flags, Mode::empty())?) })
    }

    /// Takes over a descriptor of one.
    pub const fn from_fd(fd: Fd) -> Self {
        Self { fd }
    }

    /// Opens a file in it to be read, for example `self/maps`.
    ///
    /// # Errors
    /// `ENOENT`: nothing is mounted, or there is no such file. `EACCES`: some files of a process that is not dumpable are
    /// root's.
    pub fn open_file(&self, path: &CStr) -> Result<Fd, Errno> {
        rustix::fs::openat(&self.fd, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map(Fd::from)
    }

    /// Opens a file of the calling thread's once more, to be read, by its descriptor: it may have no name any more. `direct`:
    /// around the page cache.
    ///
    /// # Errors
    /// `EACCES`: this user may not read it. Otherwise as of [`open_file`](Self::open_file).
    pub fn open_again(&self, file: BorrowedFd<'_>, direct: bool) -> Result<Fd, Errno> {
        let (dir, more) =
            (OFlags::PATH | OFlags::DIRECTORY, if direct { OFlags::DIRECT } else { OFlags::empty() });
        // Of the thread: it may have descriptors of its own.
        let fds = rustix::fs::openat(&self.fd, c"thread-self/fd", dir | OFlags::CLOEXEC, Mode::empty())
            .map(Fd::from)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | more;
        rustix::fs::openat(&fds, DecInt::from_fd(file), flags, Mode::empty()).map(Fd::from)
    }
}

impl AsFd for Procfs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
