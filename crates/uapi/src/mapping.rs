//! Memory of our own: mappings that are given back when dropped.
//!
//! Their bytes are reached by pointers only: pages of them are moved in and out by userfaultfd, or shared with other
//! processes, so that nothing here hands out references (I7).

use std::ffi::{CStr, c_void};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

use linux_raw_sys::general as raw;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

use crate::PAGE_SIZE;
use crate::fd::Fd;
use crate::range::AddrRange;

/// What to tell the kernel of a range of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Drop the pages: they read as zeroes from now on.
    DontNeed,
    /// The same, also of locked pages: all that a process has may be (`mlockall`). Linux 5.18.
    DontNeedLocked,
    /// Prefer huge pages.
    HugePage,
    /// No huge pages.
    NoHugePage,
    /// Make it one huge page each, now. Linux 6.1.
    Collapse,
    /// A forked child does not get it.
    DontFork,
    /// A forked child gets it, as usual.
    DoFork,
    /// A forked child gets it empty.
    WipeOnFork,
    /// Leave it out of core dumps.
    DontDump,
    /// Fault it in, as reads would.
    PopulateRead,
    /// Fault it in, as writes would that change nothing. Ends the sharing with forked processes.
    PopulateWrite,
}

impl Advice {
    pub(crate) const fn raw(self) -> u32 {
        match self {
            Self::DontNeed => raw::MADV_DONTNEED,
            Self::DontNeedLocked => raw::MADV_DONTNEED_LOCKED,
            Self::HugePage => raw::MADV_HUGEPAGE,
            Self::NoHugePage => raw::MADV_NOHUGEPAGE,
            Self::Collapse => raw::MADV_COLLAPSE,
            Self::DontFork => raw::MADV_DONTFORK,
            Self::DoFork => raw::MADV_DOFORK,
            Self::WipeOnFork => raw::MADV_WIPEONFORK,
            Self::DontDump => raw::MADV_DONTDUMP,
            Self::PopulateRead => raw::MADV_POPULATE_READ,
            Self::PopulateWrite => raw::MADV_POPULATE_WRITE,
        }
    }
}

/// A run of pages that is unmapped on drop.
#[derive(Debug)]
struct Region {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the region is plain memory of the process, reached by raw pointers only; who reads and writes it
// synchronises, as with any raw pointer.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the run is ours, and pointers into it are not used after the drop, by the contract of `as_ptr`.
        // It fails only when the process has too many mappings to split one; then the memory stays, which is safe.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

impl Region {
    fn new(start: *mut c_void, len: usize) -> Result<Self, Errno> {
        // The kernel never maps address 0 unasked.
        let start = NonNull::new(start.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { start, len })
    }

    /// A pointer to `len` bytes at `offset`, if all of them are in it.
    fn part(&self, offset: usize, len: usize) -> Result<*mut c_void, Errno> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.start.as_ptr().wrapping_add(offset).cast()),
            _ => Err(Errno::INVAL),
        }
    }

    /// Gives the first `len` bytes back.
    fn cut_front(&mut self, len: usize) -> Result<(), Errno> {
        if len > 0 {
            // SAFETY: the bytes are ours, and no longer belong to the region when this returns.
            unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), len) }?;
            // SAFETY: it cuts less than the whole, so the pointer stays inside.
            self.start = unsafe { self.start.add(len) };
            self.len -= len;
        }
        Ok(())
    }

    /// Gives all but the first `len` bytes back.
    fn cut_behind(&mut self, len: usize) -> Result<(), Errno> {
        if len < self.len {
            let start = self.part(len, 0)?;
            // SAFETY: the bytes are ours, and no longer belong to the region when this returns.
            unsafe { rustix::mm::munmap(start, self.len - len) }?;
            self.len = len;
        }
        Ok(())
    }

    fn range(&self) -> AddrRange {
        AddrRange::new(self.start.as_ptr().expose_provenance() as u64, self.len as u64)
    }
}

/// Private anonymous memory.
#[derive(Debug)]
pub struct Mapping {
    region: Region,
}

impl Mapping {
    /// Takes `len` bytes of addresses, which cannot be accessed and take no memory before [`commit`](Self::commit).
    ///
    /// # Errors
    /// `ENOMEM`: the address space is full, or a limit (`ulimit -v`) reached. `EINVAL`: no length.
    pub fn reserve(len: usize) -> Result<Self, Errno> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at a place of the kernel's choice disturbs nobody.
        let start =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::empty(), flags) }?;
        Ok(Self { region: Region::new(start, len)? })
    }

    /// As [`reserve`](Self::reserve), at an address that is a multiple of `align`, a power of two.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve); `EINVAL` also when `align` is no power of two.
    pub fn reserve_aligned(len: usize, align: usize) -> Result<Self, Errno> {
        if !align.is_power_of_two() || len == 0 {
            return Err(Errno::INVAL);
        }
        let len = len.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::NOMEM)?;
        let mut mapping = Self::reserve(len.checked_add(align).ok_or(Errno::NOMEM)?)?;
        let region = &mut mapping.region;
        let addr = region.start.addr().get();
        region.cut_front(addr.next_multiple_of(align) - addr)?;
        region.cut_behind(len)?;
        Ok(mapping)
    }

    /// `len` bytes that can be read and written at once.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    pub fn anonymous(len: usize) -> Result<Self, Errno> {
        let mapping = Self::reserve(len)?;
        mapping.commit(0, len)?;
        Ok(mapping)
    }

    /// Makes a part readable and writable. It takes memory when touched. Both ends page aligned, in bytes.
    ///
    /// # Errors
    /// `EINVAL`: not aligned, or not inside. `ENOMEM`: too many mappings, or more than the system lends.
    pub fn commit(&self, offset: usize, len: usize) -> Result<(), Errno> {
        let start = self.region.part(offset, len)?;
        // SAFETY: the part is ours, and more access than before breaks nothing.
        unsafe { rustix::mm::mprotect(start, len, MprotectFlags::READ | MprotectFlags::WRITE) }
    }

    /// Makes a part inaccessible: guard pages. Both ends page aligned, in bytes.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn protect(&self, offset: usize, len: usize) -> Result<(), Errno> {
        let start = self.region.part(offset, len)?;
        // SAFETY: the part is ours and there are no references into it; an access by pointer faults, visibly.
        unsafe { rustix::mm::mprotect(start, len, MprotectFlags::empty()) }
    }

    /// Tells the kernel something of a part. Both ends page aligned, in bytes.
    ///
    /// # Errors
    /// `EINVAL`: not aligned, not inside, or advice that this kernel does not know. `EAGAIN`, `ENOMEM`: no memory;
    /// for [`Advice::Collapse`] also that there is nothing to collapse.
    pub fn advise(&self, offset: usize, len: usize, advice: Advice) -> Result<(), Errno> {
        let start = self.region.part(offset, len)?.expose_provenance() as u64;
        // SAFETY: the part is ours and there are no references into it whose bytes would change.
        unsafe { crate::sys::madvise(AddrRange::new(start, len as u64), advice) }
    }

    /// Has it left out of core dumps, which would be as large as all that is reserved. If that cannot be, it is in them.
    pub fn leave_out_of_dumps(&self) {
        let _ = self.advise(0, self.len(), Advice::DontDump);
    }

    /// The first byte. Not to be used after the mapping was dropped.
    pub const fn as_ptr(&self) -> *mut u8 {
        self.region.start.as_ptr()
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.region.len
    }

    /// Never.
    pub const fn is_empty(&self) -> bool {
        self.region.len == 0
    }

    /// Its addresses.
    pub fn range(&self) -> AddrRange {
        self.region.range()
    }
}

/// Memory that several processes can map, by a descriptor.
#[derive(Debug)]
pub struct SharedMapping {
    region: Region,
    fd: Fd,
}

impl SharedMapping {
    /// New memory of `len` bytes, zeroed and of fixed size: nobody can cut it, so that no access ever fails with SIGBUS.
    ///
    /// # Errors
    /// `ENOMEM`, `EMFILE`, `ENFILE`: out of memory or descriptors. `EINVAL`: no length, or a name over 249 bytes.
    pub fn create(name: &CStr, len: usize) -> Result<Self, Errno> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Kernels before 6.3 do not know the flag; some administrators insist on it.
        let fd = rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL)
            .or_else(|_| rustix::fs::memfd_create(name, flags))?;
        let fd = Fd::from(fd);
        rustix::fs::ftruncate(&fd, len as u64)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Self::map(fd, len)
    }

    /// All of the memory or file that the descriptor names. Accesses fail with SIGBUS if somebody cuts it; what
    /// [`create`](Self::create) made cannot be cut.
    ///
    /// # Errors
    /// `EACCES`: not open for reading and writing. `EINVAL`: empty. `ENOMEM`, `ENODEV`.
    pub fn from_fd(fd: Fd) -> Result<Self, Errno> {
        let len = usize::try_from(rustix::fs::fstat(&fd)?.st_size).map_err(|_| Errno::INVAL)?;
        Self::map(fd, len)
    }

    fn map(fd: Fd, len: usize) -> Result<Self, Errno> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice disturbs nobody.
        let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, &fd, 0) }?;
        Ok(Self { region: Region::new(start, len)?, fd })
    }

    /// The first byte. Not to be used after the mapping was dropped.
    pub const fn as_ptr(&self) -> *mut u8 {
        self.region.start.as_ptr()
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.region.len
    }

    /// Never.
    pub const fn is_empty(&self) -> bool {
        self.region.len == 0
    }

    /// Its addresses.
    pub fn range(&self) -> AddrRange {
        self.region.range()
    }
}

impl AsFd for SharedMapping {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
