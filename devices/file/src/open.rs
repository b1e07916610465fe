//! A file without a name.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

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

/// Makes a sparse file of so many bytes in the directory.
///
/// # Errors
/// See [`FileError`].
pub(crate) fn open(dir: &Path, bytes: u64, direct: bool) -> Result<Opened, FileError> {
    let around = direct.then(|| nameless(dir, OFlags::DIRECT));
    let opened = match around {
        Some(Ok(fd)) => Ok(Opened { fd, direct: true }),
        // What a file system says that cannot do that.
        Some(Err(Errno::INVAL)) | None => {
            nameless(dir, OFlags::empty()).map(|fd| Opened { fd, direct: false })
        }
        Some(Err(error)) => Err(error),
    }
    .map_err(|source| FileError::Create { dir: dir.to_owned(), source: source.into() })?;
    rustix::fs::ftruncate(&opened.fd, bytes).map_err(|source| FileError::Size {
        dir: dir.to_owned(),
        bytes,
        source: source.into(),
    })?;
    Ok(opened)
}

fn nameless(dir: &Path, more: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | more;
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(dir, flags | OFlags::TMPFILE, mode) {
        // File systems without files that have no name, and kernels that do not know of them.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => {}
        result => return result,
    }
    let path = dir.join(format!(".hmm-{}-{:x}", std::process::id(), unique()));
    let fd = rustix::fs::open(&path, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
    rustix::fs::unlink(&path)?;
    Ok(fd)
}

/// A number that no other file of this process has.
fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
