//! PAGEMAP_SCAN: what the CPU's page table says of this process's pages, in runs, and which were written to.

use std::os::fd::{AsFd, BorrowedFd};

use linux_raw_sys::general::{self as raw, pm_scan_arg};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, opcode};

use crate::fd::Fd;
use crate::ioc;
use crate::procfs::Procfs;
use crate::range::AddrRange;

const PAGEMAP_SCAN: Opcode = opcode::read_write::<pm_scan_arg>(b'f', 16);

bitflags::bitflags! {
    /// What a page can be.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Categories: u64 {
        /// Of a range registered for asynchronous write protection.
        const WPALLOWED = raw::PAGE_IS_WPALLOWED as u64;
        /// Not write-protected by userfaultfd: written to since it last was.
        const WRITTEN = raw::PAGE_IS_WRITTEN as u64;
        /// Of a file or shared memory.
        const FILE = raw::PAGE_IS_FILE as u64;
        /// Mapped.
        const PRESENT = raw::PAGE_IS_PRESENT as u64;
        /// In the kernel's swap, or on the way to somewhere (migration), or poisoned.
        const SWAPPED = raw::PAGE_IS_SWAPPED as u64;
        /// The shared zero page.
        const PFNZERO = raw::PAGE_IS_PFNZERO as u64;
        /// Part of a page mapped huge.
        const HUGE = raw::PAGE_IS_HUGE as u64;
        /// Soft-dirty (kernels that have it).
        const SOFT_DIRTY = raw::PAGE_IS_SOFT_DIRTY as u64;
        /// A guard page of `MADV_GUARD_INSTALL`. Linux 6.15.
        const GUARD = raw::PAGE_IS_GUARD as u64;
    }

    /// What a scan does besides looking.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ScanFlags: u64 {
        /// Write-protects the pages it gives, in the same step.
        const WP_MATCHING = raw::PM_SCAN_WP_MATCHING as u64;
        /// Fails with `EPERM` when it meets a mapping that is not registered for asynchronous write protection, where it
        /// would otherwise skip it.
        const CHECK_WPASYNC = raw::PM_SCAN_CHECK_WPASYNC as u64;
    }
}

/// Which pages a scan gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanArgs {
    /// What to do besides looking.
    pub flags: ScanFlags,
    /// Categories whose sense is turned around for the two masks below.
    pub inverted: Categories,
    /// A page is given when it is all of these.
    pub all_of: Categories,
    /// And at least one of these, if any are named.
    pub any_of: Categories,
    /// What to tell of pages given. Neighbours that are told alike are one region.
    pub tell: Categories,
    /// Pages to give at most; 0 for no limit.
    pub max_pages: u64,
}

impl ScanArgs {
    /// Tells the given categories of pages that are at least one of them.
    pub const fn any(categories: Categories) -> Self {
        Self {
            flags: ScanFlags::empty(),
            inverted: Categories::empty(),
            all_of: Categories::empty(),
            any_of: categories,
            tell: categories,
            max_pages: 0,
        }
    }
}

/// Pages in a row that are alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PageRegion {
    /// Address of the first page.
    pub start: u64,
    /// Address behind the last page.
    pub end: u64,
    categories: u64,
}

const _: () = assert!(size_of::<PageRegion>() == size_of::<raw::page_region>());

impl PageRegion {
    /// A region, for tests and simulators.
    pub const fn new(range: AddrRange, categories: Categories) -> Self {
        Self { start: range.start, end: range.end, categories: categories.bits() }
    }

    /// What its pages are, of what the scan was asked to tell.
    pub const fn categories(self) -> Categories {
        Categories::from_bits_retain(self.categories)
    }

    /// The region's addresses.
    pub const fn range(self) -> AddrRange {
        AddrRange { start: self.start, end: self.end }
    }
}

/// A page's entry in the pagemap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageEntry(u64);

impl PageEntry {
    const fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 == 1
    }

    /// Mapped.
    pub const fn is_present(self) -> bool {
        self.bit(63)
    }

    /// In swap, on the way to somewhere, poisoned, or marked by userfaultfd while nothing is there.
    pub const fn is_swapped(self) -> bool {
        self.bit(62)
    }

    /// Of a file or shared memory. A page that is mapped without being this or anonymous is no ordinary page.
    pub const fn is_file(self) -> bool {
        self.bit(61)
    }

    /// Write-protected by userfaultfd.
    pub const fn is_write_protected(self) -> bool {
        self.bit(57)
    }

    /// Mapped once, here.
    pub const fn is_exclusive(self) -> bool {
        self.bit(56)
    }
}

/// How far a scan came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// Regions given, from the front of the buffer.
    pub nr_regions: usize,
    /// Where it stopped: the range's end, or earlier when the buffer was full or the limit reached. Go on from here.
    pub walk_end: u64,
}

/// This process's `/proc/self/pagemap`.
#[derive(Debug)]
pub struct Pagemap {
    fd: Fd,
}

impl Pagemap {
    /// Opens it. It goes on telling of the address space that opened it, also in a forked child.
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
        procfs.open_file(c"self/pagemap").map(Self::from_fd)
    }

    /// Takes over an open pagemap.
    pub const fn from_fd(fd: Fd) -> Self {
        Self { fd }
    }

    /// Reads the entries of the pages from `start` (page aligned, in bytes) on. Pages that are not mapped, and those of
    /// mappings of devices' memory, are all zero.
    ///
    /// # Errors
    /// What reading says: `ENOMEM`; `ESRCH` once the address space is gone.
    pub fn entries(&self, start: u64, entries: &mut [PageEntry]) -> Result<(), Errno> {
        const CHUNK: usize = 64;
        let mut offset = start / crate::PAGE_BYTES * size_of::<u64>() as u64;
        for chunk in entries.chunks_mut(CHUNK) {
            let mut bytes = [0u8; CHUNK * size_of::<u64>()];
            let bytes = &mut bytes[..size_of_val(chunk)];
            let mut done = 0;
            while done < bytes.len() {
                match rustix::io::pread(&self.fd, &mut bytes[done..], offset + done as u64) {
                    // Behind the end of the address space: nothing is there.
                    Ok(0) => break,
                    Ok(more) => done += more,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            let (words, _) = bytes.as_chunks();
            for (entry, word) in chunk.iter_mut().zip(words) {
                *entry = PageEntry(u64::from_ne_bytes(*word));
            }
            offset += bytes.len() as u64;
        }
        Ok(())
    }

    /// Gives the matching pages of `start..end` as regions. Addresses that are not mapped are skipped, as are holes of
    /// mappings, unless the categories asked for fit them.
    ///
    /// # Errors
    /// `ENOTTY`: the kernel lacks it (before 6.7). `EPERM`: see [`ScanFlags::CHECK_WPASYNC`]. `EINTR`: a fatal signal.
    /// `EINVAL`: the range is not page aligned. `ENOMEM`.
    pub fn scan(
        &self,
        range: AddrRange,
        args: ScanArgs,
        regions: &mut [PageRegion],
    ) -> Result<Scanned, Errno> {
        let mut arg = pm_scan_arg {
            size: size_of::<pm_scan_arg>() as u64,
            flags: args.flags.bits(),
            start: range.start,
            end: range.end,
            walk_end: 0,
            vec: regions.as_mut_ptr().expose_provenance() as u64,
            vec_len: regions.len() as u64,
            max_pages: args.max_pages,
            category_inverted: args.inverted.bits(),
            category_mask: args.all_of.bits(),
            category_anyof_mask: args.any_of.bits(),
            return_mask: args.tell.bits(),
        };
        // SAFETY:
        // 1. the opcode takes a `pm_scan_arg`.
        // 2. it writes regions, for which any bytes are valid, to the slice whose address and length it was given.
        // 3. write protection changes no bytes and only concerns ranges registered with a userfaultfd.
        let nr_regions = unsafe { ioc::call(&self.fd, PAGEMAP_SCAN, &mut arg) }?;
        let nr_regions = usize::try_from(nr_regions).unwrap_or(0).min(regions.len());
        Ok(Scanned { nr_regions, walk_end: arg.walk_end })
    }
}

impl AsFd for Pagemap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
