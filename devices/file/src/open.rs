//! A file without a name.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

use crate::entry::NR_FILES;

/// Why there is no device.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FileError {
    /// The file cannot be made.
    #[error("cannot make a file in {}: {source}; name a directory that can be written to", dir.display())]
    Create {
        /// Where.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It cannot be so large.
    #[error("cannot make a file of {bytes} bytes in {}: {source}", dir.display())]
    Size {
        /// Where.
        dir: PathBuf,
        /// How large.
        bytes: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no room for its tables.
    #[error(
        "no addresses for a table of what is in the file: {0}; choose a smaller capacity, or raise the limit (ulimit -v)"
    )]
    Table(io::Error),
    /// The child of a fork cannot have what is in it.
    #[error("cannot share a file with a forked process: {0}")]
    Share(io::Error),
    /// Nor what is in those of the processes that this one was forked from, one from the other.
    #[error(
        "pages are in the files of {NR_FILES} processes that were forked from each other, and can be in no more"
    )]
    TooManyFiles,
    /// A capacity that no device can have.
    #[error("a capacity of {0} bytes: choose one from 4096 bytes (a page) to 16 TiB")]
    Capacity(u64),
}

/// The file, and how it is accessed.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) fd: OwnedFd,
    /// Around the page cache: buffers have to be aligned.
    pub(crate) direct: bool,
}

/// Opens the directory that files are made in, to be found again whatever its name is then.
///
/// # Errors
/// See [`FileError`].
pub(crate) fn open_dir(dir: &Path) -> Result<OwnedFd, FileError> {
    rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|source| FileError::Create { dir: dir.to_owned(), source: source.into() })
}

/// Makes a sparse file of so many bytes in the directory, which has that name.
///
/// # Errors
/// See [`FileError`].
pub(crate) fn open(at: impl AsFd, dir: &Path, bytes: u64, direct: bool) -> Result<Opened, FileError> {
    let around = direct.then(|| nameless(&at, OFlags::DIRECT));
    let opened = match around {
        Some(Ok(fd)) => Ok(Opened { fd, direct: true }),
        // What a file system says that cannot do that.
        Some(Err(Errno::INVAL)) | None => {
            nameless(&at, OFlags::empty()).map(|fd| Opened { fd, direct: false })
        }
        Some(Err(error)) => Err(error),
    }
    .map_err(|source| FileError::Create { dir: dir.to_owned(), source: source.into() })?;
    // Who finds it is one of us, as another user maybe: it opens the file once more for its children.
    let _ = rustix::fs::fchmod(&opened.fd, Mode::RUSR | Mode::RGRP | Mode::ROTH);
    rustix::fs::ftruncate(&opened.fd, bytes).map_err(|source| FileError::Size {
        dir: dir.to_owned(),
        bytes,
        source: source.into(),
    })?;
    Ok(opened)
}

fn nameless(dir: impl AsFd, more: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | more;
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::openat(&dir, c".", flags | OFlags::TMPFILE, mode) {
        // File systems without files that have no name, and kernels that do not know of them.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => {}
        result => return result,
    }
    let name = format!(".hmm-{}-{:x}", std::process::id(), unique());
    let fd = rustix::fs::openat(&dir, &name, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
    rustix::fs::unlinkat(&dir, &name, AtFlags::empty())?;
    Ok(fd)
}

/// A number that no other file of this process has.
fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
