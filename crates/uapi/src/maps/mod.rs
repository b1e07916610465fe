//! The mappings (VMAs) of this process, one at a time, without allocating.
//!
//! Asked of the kernel by the ioctl `PROCMAP_QUERY` (Linux 6.11), else read from the text of `/proc/self/maps`: then
//! each answer costs reading all of the text in front of it, and the size of huge pages is not told.

mod query;
mod smaps;
mod text;

pub use smaps::for_each_wiped_on_fork;

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use crate::fd::Fd;
use crate::procfs::Procfs;
use crate::range::AddrRange;

bitflags::bitflags! {
    /// What may be done with a mapping's bytes.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Perms: u8 {
        /// Reading.
        const READ = 1 << 0;
        /// Writing.
        const WRITE = 1 << 1;
        /// Executing.
        const EXEC = 1 << 2;
        /// Writes are seen by others who map the same.
        const SHARED = 1 << 3;
    }
}

/// What a mapping is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VmaKind {
    /// Memory without a file, with or without a name given by `PR_SET_VMA_ANON_NAME`.
    Anonymous,
    /// Backed by an inode: files, shared memory, memfds, hugetlbfs, devices (`/dev/zero` too), deleted or not.
    File,
    /// What `brk(2)` manages.
    Heap,
    /// The main thread's stack. It grows downwards.
    Stack,
    /// The kernel's: `[vdso]`, `[vvar]`, `[uprobes]` and the like.
    Special,
}

/// A mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vma {
    /// First byte.
    pub start: u64,
    /// Byte behind the last.
    pub end: u64,
    /// What may be done with it.
    pub perms: Perms,
    /// Offset of the first byte in its file, in bytes.
    pub offset: u64,
    /// Its file, 0 without one.
    pub inode: u64,
    /// Major and minor number of the file's device.
    pub dev: (u32, u32),
    /// Bytes in its pages: more than 4096 for hugetlbfs only, where [`Source::Text`] says 4096 nevertheless.
    pub page_size: u64,
    /// What it is.
    pub kind: VmaKind,
}

impl Vma {
    /// Its addresses.
    pub const fn range(&self) -> AddrRange {
        AddrRange { start: self.start, end: self.end }
    }
}

/// Where the answers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `PROCMAP_QUERY`.
    Query,
    /// The text of `/proc/self/maps`.
    Text,
}

/// This process's `/proc/self/maps`.
#[derive(Debug)]
pub struct Maps {
    fd: Fd,
    source: Source,
}

impl Maps {
    /// Opens it and finds out whether it can be queried. It goes on telling of the address space that opened it, also
    /// in a forked child.
    ///
    /// # Errors
    /// `ENOENT`: no procfs. `EACCES`: the process is not dumpable and not root's.
    pub fn open() -> Result<Self, Errno> {
        Self::open_in(&Procfs::open()?)
    }

    /// Opens it in a procfs that is held open.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_in(procfs: &Procfs) -> Result<Self, Errno> {
        let maps = Self { fd: procfs.open_file(c"self/maps")?, source: Source::Query };
        match query::next_vma(&maps.fd, 0) {
            Err(Errno::NOTTY | Errno::INVAL) => Ok(Self { source: Source::Text, ..maps }),
            _ => Ok(maps),
        }
    }

    /// Opens it, to be asked in a certain way whether or not the kernel knows it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(source: Source) -> Result<Self, Errno> {
        Ok(Self { fd: Procfs::open()?.open_file(c"self/maps")?, source })
    }

    /// Where the answers come from.
    pub const fn source(&self) -> Source {
        self.source
    }

    /// The mapping that covers `addr`, or else the next one above; `None` when there is none. The page at the top of
    /// the address space (`[vsyscall]`) is not a mapping and never given.
    ///
    /// # Errors
    /// What reading says; none is expected but `ESRCH` once the address space is gone.
    pub fn next_vma(&self, addr: u64) -> Result<Option<Vma>, Errno> {
        match self.source {
            Source::Query => query::next_vma(&self.fd, addr),
            Source::Text => text::next_vma(&self.fd, addr),
        }
    }

    /// All mappings from `addr` on. Mappings that change meanwhile are given in their old or new shape or missed.
    pub fn iter_from(&self, addr: u64) -> impl Iterator<Item = Result<Vma, Errno>> + '_ {
        let mut next = Some(addr);
        std::iter::from_fn(move || {
            let found = self.next_vma(next?).transpose();
            next = match found {
                // The end is above where we asked, so this comes to an end.
                Some(Ok(vma)) => Some(vma.end),
                _ => None,
            };
            found
        })
    }
}

impl AsFd for Maps {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Tells what a mapping is. The name may be cut off.
fn kind(inode: u64, name: &[u8]) -> VmaKind {
    match name {
        _ if inode != 0 => VmaKind::File,
        b"" => VmaKind::Anonymous,
        b"[heap]" => VmaKind::Heap,
        b"[stack]" => VmaKind::Stack,
        _ if name.starts_with(b"[anon:") => VmaKind::Anonymous,
        _ if name.starts_with(b"[") => VmaKind::Special,
        _ => VmaKind::File,
    }
}
