//! procfs, held open: what it says of this process can be read after the process has changed its root directory to one
//! that has no `/proc`.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

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
}

impl AsFd for Procfs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
