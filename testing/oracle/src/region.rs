//! The region that everything happens in, and what the program knows of its mappings.
//!
//! The region's address is fixed and low, where nothing else of a process is, so that a hole in it stays one. No
//! reference to its memory is ever made: devices change it. The program touches a page only if it is mapped so that it
//! may; which pages are is known by following each change.

use std::io;
use std::ptr;

use crate::log;
use crate::sys::check;

/// Bytes in a page.
pub(crate) const PAGE: usize = 4096;
/// Pages in a huge page.
pub(crate) const HUGE: usize = 512;
/// Where the region is: aligned for huge pages.
const BASE: usize = 0x20_0000_0000;

/// Some pages of the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) at: usize,
    pub(crate) n: usize,
}

impl Range {
    pub(crate) fn pages(self) -> std::ops::Range<usize> {
        self.at..self.at + self.n
    }

    fn bytes(self) -> usize {
        self.n * PAGE
    }
}

/// What the program may do with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prot {
    Nothing,
    Read,
    ReadWrite,
}

impl Prot {
    fn bits(self) -> libc::c_int {
        match self {
            Self::Nothing => libc::PROT_NONE,
            Self::Read => libc::PROT_READ,
            Self::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

/// A page that is mapped.
#[derive(Debug, Clone, Copy)]
struct Page {
    prot: Prot,
    /// Pages with the same number are in the same mapping of the kernel's. Others may be, too: it merges mappings.
    mapping: u32,
}

/// The region.
#[derive(Debug)]
pub(crate) struct Region {
    pages: Vec<Option<Page>>,
    huge: bool,
    nr_mappings: u32,
}

impl Region {
    /// Maps it, readable and writable.
    ///
    /// # Errors
    /// When its place is taken, or there is no memory.
    pub(crate) fn new(nr_pages: usize, huge: bool) -> io::Result<Self> {
        let mut region = Self { pages: vec![None; nr_pages], huge, nr_mappings: 0 };
        region.map_with(region.all(), libc::MAP_FIXED_NOREPLACE)?;
        Ok(region)
    }

    pub(crate) fn all(&self) -> Range {
        Range { at: 0, n: self.pages.len() }
    }

    /// The address of a page.
    pub(crate) fn addr(page: usize) -> u64 {
        (BASE + page * PAGE) as u64
    }

    fn ptr(page: usize) -> *mut u8 {
        ptr::with_exposed_provenance_mut(BASE + page * PAGE)
    }

    fn may(&self, page: usize, write: bool) -> bool {
        self.pages[page].is_some_and(|page| match page.prot {
            Prot::Nothing => false,
            Prot::Read => !write,
            Prot::ReadWrite => true,
        })
    }

    /// The pages at the front of a range that may be written to.
    pub(crate) fn writable_front(&self, range: Range) -> usize {
        range.pages().take_while(|&page| self.may(page, true)).count()
    }

    /// The pages at the front of a range that are certainly in one mapping.
    pub(crate) fn front_in_one(&self, range: Range) -> usize {
        let mapping = |page: usize| self.pages[page].map(|page| page.mapping);
        range.pages().take_while(|&page| mapping(page) == mapping(range.at)).count()
    }

    /// Runs of pages that are mapped.
    pub(crate) fn mapped(&self) -> Vec<Range> {
        let all: Vec<usize> = (0..self.pages.len()).collect();
        let runs = all.chunk_by(|&a, &b| self.pages[a].is_some() == self.pages[b].is_some());
        runs.filter(|run| self.pages[run[0]].is_some())
            .map(|run| Range { at: run[0], n: run.len() })
            .collect()
    }

    /// Reads pages by the CPU; their digests, `None` for those that may not be read.
    pub(crate) fn read(&self, range: Range) -> String {
        let mut copy = vec![0; PAGE];
        let digests = range.pages().map(|page| {
            self.may(page, false).then(|| {
                // SAFETY: the page is mapped readable, by what we know; the copy is as long; they do not overlap.
                unsafe { ptr::copy_nonoverlapping(Self::ptr(page), copy.as_mut_ptr(), PAGE) };
                log::digest(&copy)
            })
        });
        log::digests_of(&digests.collect::<Vec<_>>())
    }

    /// Writes bytes at a place in each page by the CPU, where it may; the number of pages written.
    pub(crate) fn write(&self, range: Range, offset: usize, bytes: &[u8]) -> usize {
        assert!(offset + bytes.len() <= PAGE);
        let writable = range.pages().filter(|&page| self.may(page, true));
        writable
            .map(|page| {
                let to = Self::ptr(page).wrapping_add(offset);
                // SAFETY: the page is mapped writable, by what we know; the bytes end within it (asserted); nobody
                // has a reference to it, and devices work only when they are called.
                unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
            })
            .count()
    }

    /// Has the kernel read pages, as it does for a system call.
    ///
    /// # Errors
    /// `EFAULT` when it cannot read the first. Otherwise the result is shorter.
    pub(crate) fn sys_read(range: Range, buffer: &mut [u8]) -> io::Result<usize> {
        let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: range.bytes() };
        let remote = libc::iovec { iov_base: Self::ptr(range.at).cast(), iov_len: range.bytes() };
        assert!(buffer.len() >= range.bytes());
        // SAFETY: there is one element in each; the local buffer is long enough (asserted) and ours alone.
        let n = unsafe { libc::process_vm_readv(std::process::id().cast_signed(), &local, 1, &remote, 1, 0) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Has the kernel write pages.
    ///
    /// # Errors
    /// `EFAULT` when it cannot write the first. Otherwise the result is shorter.
    pub(crate) fn sys_write(range: Range, buffer: &mut [u8]) -> io::Result<usize> {
        let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: range.bytes() };
        let remote = libc::iovec { iov_base: Self::ptr(range.at).cast(), iov_len: range.bytes() };
        assert!(buffer.len() >= range.bytes());
        // SAFETY: there is one element in each; the local buffer is long enough (asserted); what is written to is in
        // the region, of which there are no references.
        let n =
            unsafe { libc::process_vm_writev(std::process::id().cast_signed(), &local, 1, &remote, 1, 0) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Maps new memory there, in place of what is.
    pub(crate) fn map(&mut self, range: Range) -> io::Result<()> {
        self.map_with(range, libc::MAP_FIXED)
    }

    fn map_with(&mut self, range: Range, fixed: libc::c_int) -> io::Result<()> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
        let prot = Prot::ReadWrite;
        // SAFETY: the region is ours: either nothing is there (`NOREPLACE`), or we have mapped it before.
        let place =
            unsafe { libc::mmap(Self::ptr(range.at).cast(), range.bytes(), prot.bits(), flags, -1, 0) };
        if place == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.set(range, Some(prot));
        if self.huge { self.advise(range, libc::MADV_HUGEPAGE) } else { Ok(()) }
    }

    pub(crate) fn unmap(&mut self, range: Range) -> io::Result<()> {
        // SAFETY: the range is in the region, of which there are no references.
        check(unsafe { libc::munmap(Self::ptr(range.at).cast(), range.bytes()) })?;
        self.set(range, None);
        Ok(())
    }

    /// The first pages of a range of which all are to be changed to that protection, with the hole behind them if there is one.
    /// `None` if nothing is to be changed.
    pub(crate) fn first_to_protect(&self, range: Range, prot: Prot) -> Option<Range> {
        let has_it = |page: usize| self.pages[page].is_some_and(|page| page.prot == prot);
        let at = range.pages().find(|&page| !has_it(page))?;
        let is_hole = |page: usize| self.pages[page].is_none();
        let end = (at..range.at + range.n).find(|&page| has_it(page) || is_hole(page));
        let end = end.map_or(range.at + range.n, |end| end + usize::from(is_hole(end)));
        Some(Range { at, n: end - at })
    }

    /// Changes what may be done. `ENOMEM` if there is a hole; then the pages before it have changed.
    pub(crate) fn protect(&mut self, range: Range, prot: Prot) -> io::Result<()> {
        // SAFETY: the range is in the region, of which there are no references.
        let result = check(unsafe { libc::mprotect(Self::ptr(range.at).cast(), range.bytes(), prot.bits()) });
        let nr_changed = range.pages().take_while(|&page| self.pages[page].is_some()).count();
        if result.is_ok() || result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ENOMEM)) {
            // They stay in the mappings that they were in, parted from the others in these.
            self.split(range.at);
            self.split(range.at + nr_changed);
            for page in self.pages[range.at..range.at + nr_changed].iter_mut().flatten() {
                page.prot = prot;
            }
        }
        result
    }

    /// Moves pages to another place, in place of what is there. `None` if they may be in several mappings: what the
    /// kernel does then depends on its version, and on which mappings it has merged.
    pub(crate) fn remap(&mut self, from: Range, to: usize) -> Option<io::Result<()>> {
        let first = self.pages[from.at]?;
        let same = |page: usize| self.pages[page].is_some_and(|page| page.mapping == first.mapping);
        if !from.pages().all(same) || from.at.abs_diff(to) < from.n {
            return None;
        }
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let (old, bytes) = (Self::ptr(from.at).cast(), from.bytes());
        let new: *mut libc::c_void = Self::ptr(to).cast();
        // SAFETY: both ranges are in the region, of which there are no references.
        let place = unsafe { libc::mremap(old, bytes, bytes, flags, new) };
        if place == libc::MAP_FAILED {
            return Some(Err(io::Error::last_os_error()));
        }
        self.set(from, None);
        self.set(Range { at: to, n: from.n }, Some(first.prot));
        Some(Ok(()))
    }

    /// `ENOMEM` if there is a hole; the rest is advised all the same.
    pub(crate) fn advise(&self, range: Range, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: the range is in the region, of which there are no references.
        check(unsafe { libc::madvise(Self::ptr(range.at).cast(), range.bytes(), advice) })
    }

    /// Takes notice of a new mapping, or of a hole.
    fn set(&mut self, range: Range, prot: Option<Prot>) {
        self.split(range.at);
        self.split(range.at + range.n);
        self.nr_mappings += 1;
        let mapping = self.nr_mappings;
        self.pages[range.pages()].fill(prot.map(|prot| Page { prot, mapping }));
    }

    /// Pages from here on are no longer known to be in the same mapping as those before.
    fn split(&mut self, at: usize) {
        let mapping_of =
            |page: Option<&Option<Page>>| page.and_then(|page| page.as_ref()).map(|page| page.mapping);
        let Some(old) = mapping_of(self.pages.get(at)) else { return };
        if at == 0 || mapping_of(self.pages.get(at - 1)) != Some(old) {
            return;
        }
        self.nr_mappings += 1;
        for page in self.pages[at..].iter_mut().flatten().take_while(|page| page.mapping == old) {
            page.mapping = self.nr_mappings;
        }
    }
}
