//! Memory of the worker's, and the system calls on it.
//!
//! A [`Place`] is a range of addresses of a [`reserve`]d area that nothing else in the process knows of: there are no
//! references to it, so whatever is done to it, nobody else is concerned. All accesses are by pointer.

use std::ffi::c_int;

/// Bytes in a page.
pub(crate) const PAGE: usize = 4096;
/// Where areas are: far from all that the kernel gives out by itself, so that what is unmapped stays so.
const FIRST_AREA: usize = 0x1000_0000_0000;

/// What the kernel says when it refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) c_int);

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

/// Why the last call failed.
pub(crate) fn last_errno() -> Errno {
    Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

/// The result of a system call that gives a number, -1 for a failure.
pub(crate) fn done(result: impl TryInto<isize>) -> Result<usize, Errno> {
    result.try_into().ok().and_then(|result| usize::try_from(result).ok()).ok_or_else(last_errno)
}

/// A range of addresses, of bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    start: *mut u8,
    len: usize,
}

// SAFETY: a place is numbers; who accesses it does so by pointer.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

/// Addresses for area number `number`, of which nothing is mapped. Areas are one behind the other where `len` says so.
pub(crate) fn area(offset: usize, len: usize) -> Place {
    Place { start: std::ptr::with_exposed_provenance_mut(FIRST_AREA + offset), len }
}

/// Memory that hmm does not manage, because it is a file's, and that a fork copies: what the worker's must read.
pub(crate) fn unmanaged(len: usize) -> Result<Place, Errno> {
    // SAFETY: a file of our own.
    let fd = unsafe { libc::memfd_create(c"torture".as_ptr(), libc::MFD_CLOEXEC) };
    done(fd)?;
    // SAFETY: as above.
    done(unsafe { libc::ftruncate(fd, libc::off_t::try_from(len).unwrap_or(libc::off_t::MAX)) })?;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, at a place of the kernel's choice.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_PRIVATE, fd, 0) };
    let failed = (start == libc::MAP_FAILED).then(last_errno);
    // SAFETY: it is ours, and the mapping keeps the file.
    unsafe { libc::close(fd) };
    failed.map_or(Ok(Place { start: start.cast(), len }), Err)
}

impl Place {
    /// Memory that was just mapped.
    pub(crate) const fn new(start: *mut u8, len: usize) -> Self {
        Self { start, len }
    }

    /// So many bytes, wherever the kernel likes.
    pub(crate) const fn anywhere(len: usize) -> Self {
        Self { start: std::ptr::null_mut(), len }
    }

    /// The first address.
    pub(crate) const fn start(self) -> *mut u8 {
        self.start
    }

    /// The first address, as a number.
    pub(crate) fn addr(self) -> usize {
        self.start.expose_provenance()
    }

    /// Bytes.
    pub(crate) const fn len(self) -> usize {
        self.len
    }

    /// A part of it.
    pub(crate) fn part(self, offset: usize, len: usize) -> Self {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "inside of the place");
        Self { start: self.start.wrapping_add(offset), len }
    }

    /// Pages of it.
    pub(crate) fn pages(self, first: usize, nr_pages: usize) -> Self {
        self.part(first * PAGE, nr_pages * PAGE)
    }

    /// The same, but with a length that ends somewhere in its last page.
    pub(crate) const fn shorter(self, by: usize) -> Self {
        Self { start: self.start, len: self.len.saturating_sub(by) }
    }

    /// Maps anonymous memory here, whatever was here before.
    pub(crate) fn map(self, prot: c_int, flags: c_int) -> Result<(), Errno> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | flags;
        // SAFETY: the place is the worker's, nobody has references to it.
        let at = unsafe { libc::mmap(self.start.cast(), self.len, prot, flags, -1, 0) };
        if at == libc::MAP_FAILED { Err(last_errno()) } else { Ok(()) }
    }

    /// `munmap(2)`.
    pub(crate) fn unmap(self) -> Result<(), Errno> {
        // SAFETY: as for `map`.
        done(unsafe { libc::munmap(self.start.cast(), self.len) }).map(drop)
    }

    /// `mprotect(2)`.
    pub(crate) fn protect(self, prot: c_int) -> Result<(), Errno> {
        // SAFETY: as for `map`.
        done(unsafe { libc::mprotect(self.start.cast(), self.len, prot) }).map(drop)
    }

    /// `madvise(2)`.
    pub(crate) fn advise(self, advice: c_int) -> Result<(), Errno> {
        // SAFETY: as for `map`.
        done(unsafe { libc::madvise(self.start.cast(), self.len, advice) }).map(drop)
    }

    /// `mlock(2)` or `munlock(2)`.
    pub(crate) fn lock(self, locked: bool) -> Result<(), Errno> {
        let call = if locked { libc::mlock } else { libc::munlock };
        // SAFETY: as for `map`.
        done(unsafe { call(self.start.cast(), self.len) }).map(drop)
    }

    /// `mremap(2)` to the length of `to`, and with `MREMAP_FIXED` to its address.
    pub(crate) fn remap(self, to: Self, flags: c_int) -> Result<Self, Errno> {
        // SAFETY: as for `map`; where it goes to is the worker's, or the kernel's choice.
        let at = unsafe { libc::mremap(self.start.cast(), self.len, to.len, flags, to.start) };
        if at == libc::MAP_FAILED { Err(last_errno()) } else { Ok(Self { start: at.cast(), len: to.len }) }
    }

    /// Copies all of another place, of the same length, to this one.
    pub(crate) fn copy_from(self, from: Self) {
        assert_eq!(self.len, from.len, "as much");
        // SAFETY: both are mapped, the caller has seen to that; they may overlap.
        unsafe { std::ptr::copy(from.start, self.start, self.len) };
    }

    /// Makes all of it zeroes.
    pub(crate) fn clear(self) {
        // SAFETY: mapped, and nobody has references.
        unsafe { self.start.write_bytes(0, self.len) };
    }

    /// The number of the first byte that is not as in another place of the same length.
    pub(crate) fn difference(self, other: Self) -> Option<usize> {
        assert_eq!(self.len, other.len, "as much");
        // SAFETY: both are mapped.
        if unsafe { libc::memcmp(self.start.cast(), other.start.cast(), self.len) } == 0 {
            return None;
        }
        // If they agree by now, they did not before, which is as bad.
        (0..self.len).find(|at| self.byte(*at) != other.byte(*at)).or(Some(0))
    }

    /// A byte.
    pub(crate) fn byte(self, at: usize) -> u8 {
        assert!(at < self.len, "inside of the place");
        // SAFETY: mapped, and inside.
        unsafe { self.start.wrapping_add(at).read_volatile() }
    }

    /// An aligned word that other threads do not access.
    pub(crate) fn word(self, number: usize) -> u64 {
        let at = self.part(number * 8, 8);
        // SAFETY: mapped, aligned, and inside.
        unsafe { at.start.cast::<u64>().read_volatile() }
    }

    /// Sets a word.
    pub(crate) fn set_word(self, number: usize, value: u64) {
        let at = self.part(number * 8, 8);
        // SAFETY: as for `word`.
        unsafe { at.start.cast::<u64>().write_volatile(value) };
    }
}
