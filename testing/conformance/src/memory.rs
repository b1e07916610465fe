//! The program's memory, and what is done to it.

use std::ops::Range;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, PoisonError};

use hmm::core::addr::{BLOCK_PAGES, PAGE_SIZE, PageRange, Vpn};
use hmm::uapi::AddrRange;
use hmm::uapi::pagemap::{Categories, PageRegion, Pagemap, ScanArgs};

/// Protection of memory that may be written.
const WRITABLE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const ANONYMOUS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
/// Bytes of a page.
pub(crate) type Page = [u8; PAGE_SIZE];

/// Private anonymous memory, of small pages unless said otherwise, between two pages that nobody may touch. All calls may come from any thread:
/// accesses are by word, and nobody has references to it.
#[derive(Debug)]
pub struct Map {
    start: AtomicPtr<u8>,
    /// Another place for it, kept free; null until it is needed.
    spare: AtomicPtr<u8>,
    nr_pages: usize,
    /// Pages that were unmapped. Anybody may have mapped something else there since.
    unmapped: Mutex<Vec<Range<usize>>>,
}

fn errno() -> std::io::Error {
    std::io::Error::last_os_error()
}

/// Addresses that nothing else is mapped at.
fn reserve(len: usize) -> *mut u8 {
    // SAFETY: a new mapping at a place of the kernel's choice.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, ANONYMOUS, -1, 0) };
    assert_ne!(start, libc::MAP_FAILED, "mmap: {}", errno());
    start.cast()
}

impl Map {
    /// So many pages, never touched.
    ///
    /// # Panics
    /// If the system has no memory.
    pub fn holes(nr_pages: usize) -> Self {
        let start = reserve((nr_pages + 2) * PAGE_SIZE).wrapping_add(PAGE_SIZE);
        let (start, spare) = (AtomicPtr::new(start), AtomicPtr::default());
        let map = Self { start, spare, nr_pages, unmapped: Mutex::default() };
        map.protect(true);
        map.advise(0, nr_pages, libc::MADV_NOHUGEPAGE);
        map
    }

    /// A block, never touched, for which the kernel is asked for a huge page.
    ///
    /// # Panics
    /// As [`holes`](Self::holes).
    pub fn huge() -> Self {
        let nr_pages = BLOCK_PAGES;
        let block = nr_pages * PAGE_SIZE;
        let place = reserve(2 * block + 2 * PAGE_SIZE);
        let start = place.wrapping_add(PAGE_SIZE);
        let start = start.wrapping_add(start.align_offset(block));
        let behind = start.wrapping_add(block + PAGE_SIZE);
        let (front, back) = (
            start.addr() - PAGE_SIZE - place.addr(),
            place.addr() + 2 * block + 2 * PAGE_SIZE - behind.addr(),
        );
        for (at, len) in [(place, front), (behind, back)] {
            if len > 0 {
                // SAFETY: a part of what was just reserved.
                let result = unsafe { libc::munmap(at.cast(), len) };
                assert_eq!(result, 0, "munmap: {}", errno());
            }
        }
        let (start, spare) = (AtomicPtr::new(start), AtomicPtr::default());
        let map = Self { start, spare, nr_pages, unmapped: Mutex::default() };
        map.protect(true);
        map.advise(0, nr_pages, libc::MADV_HUGEPAGE);
        map
    }

    /// Whether all of it is mapped as huge pages.
    ///
    /// # Panics
    /// If the kernel does not tell.
    pub fn is_huge(&self) -> bool {
        let pagemap = Pagemap::open().expect("/proc/self/pagemap");
        let range = AddrRange::new(self.start().expose_provenance() as u64, self.len() as u64);
        let mut regions = [PageRegion::default(); 8];
        let scanned =
            pagemap.scan(range, ScanArgs::any(Categories::HUGE), &mut regions).expect("PAGEMAP_SCAN");
        regions[..scanned.nr_regions].iter().map(|region| region.range().len()).sum::<u64>() == range.len()
    }

    /// So many pages, filled by [`fill`](Self::fill).
    ///
    /// # Panics
    /// As [`holes`](Self::holes).
    pub fn filled(nr_pages: usize, seed: u64) -> Self {
        let map = Self::holes(nr_pages);
        (0..nr_pages).for_each(|page| map.fill(page, seed));
        map
    }

    /// The first byte.
    pub fn start(&self) -> *mut u8 {
        self.start.load(Ordering::Relaxed)
    }

    /// Its length in pages.
    pub const fn nr_pages(&self) -> usize {
        self.nr_pages
    }

    /// Its length in bytes.
    const fn len(&self) -> usize {
        self.nr_pages * PAGE_SIZE
    }

    /// All of its pages.
    pub fn pages(&self) -> PageRange {
        self.part(0, self.nr_pages)
    }

    /// Some of its pages.
    pub fn part(&self, first: usize, nr_pages: usize) -> PageRange {
        let start = Vpn::of_addr(self.start().expose_provenance() as u64);
        PageRange::new(start.add(first as u64), nr_pages as u64)
    }

    /// One of its pages.
    pub fn page(&self, index: usize) -> Vpn {
        self.part(index, 1).start
    }

    fn word(&self, page: usize, word: usize) -> *mut u64 {
        assert!(page < self.nr_pages && word < PAGE_SIZE / 8, "inside of the memory");
        self.start().wrapping_add(page * PAGE_SIZE + word * 8).cast()
    }

    /// Reads a word.
    ///
    /// # Panics
    /// If it is outside.
    pub fn read(&self, page: usize, word: usize) -> u64 {
        // SAFETY: aligned, inside of the mapping, and only ever accessed by pointers.
        unsafe { self.word(page, word).read_volatile() }
    }

    /// Writes a word.
    ///
    /// # Panics
    /// If it is outside.
    pub fn write(&self, page: usize, word: usize, value: u64) {
        // SAFETY: as for `read`.
        unsafe { self.word(page, word).write_volatile(value) }
    }

    /// Fills a page with bytes that depend on the page's number and the seed: by turns words, text, noise and one value.
    pub fn fill(&self, page: usize, seed: u64) {
        let bytes = content(page, seed);
        for (word, chunk) in bytes.chunks_exact(8).enumerate() {
            self.write(page, word, u64::from_ne_bytes(chunk.try_into().unwrap_or_default()));
        }
    }

    /// The bytes of a page, as the program reads them.
    pub fn bytes(&self, page: usize) -> Box<Page> {
        let mut bytes = Box::new([0; PAGE_SIZE]);
        for (word, chunk) in bytes.chunks_exact_mut(8).enumerate() {
            chunk.copy_from_slice(&self.read(page, word).to_ne_bytes());
        }
        bytes
    }

    /// The program reads what it wrote.
    ///
    /// # Panics
    /// If not.
    pub fn expect(&self, pages: impl IntoIterator<Item = usize>, seed: u64, what: &str) {
        for page in pages {
            expect_page(&self.bytes(page), &content(page, seed), &format!("page {page}, {what}"));
        }
    }

    /// The program reads zeroes.
    ///
    /// # Panics
    /// If not.
    pub fn expect_zero(&self, pages: impl IntoIterator<Item = usize>, what: &str) {
        for page in pages {
            expect_page(&self.bytes(page), &[0; PAGE_SIZE], &format!("page {page}, {what}"));
        }
    }

    /// `madvise(2)`.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn advise(&self, first: usize, nr_pages: usize, advice: i32) {
        let start = self.start().wrapping_add(first * PAGE_SIZE);
        // SAFETY: inside of the mapping, of which there are no references.
        let result = unsafe { libc::madvise(start.cast(), nr_pages * PAGE_SIZE, advice) };
        assert_eq!(result, 0, "madvise {advice}: {}", errno());
    }

    /// Has the pages be zeroes again.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn discard(&self, first: usize, nr_pages: usize) {
        self.advise(first, nr_pages, libc::MADV_DONTNEED);
    }

    /// Lets all pages be written to, or not, without telling anybody.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn protect(&self, writable: bool) {
        let prot = if writable { WRITABLE } else { libc::PROT_READ };
        // SAFETY: inside of the mapping, of which there are no references.
        let result = unsafe { libc::mprotect(self.start().cast(), self.len(), prot) };
        assert_eq!(result, 0, "mprotect: {}", errno());
    }

    /// Unmaps pages. They must not be accessed any more.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn unmap(&self, first: usize, nr_pages: usize) {
        self.unmapped.lock().unwrap_or_else(PoisonError::into_inner).push(first..first + nr_pages);
        let start = self.start().wrapping_add(first * PAGE_SIZE);
        // SAFETY: inside of the mapping, of which there are no references.
        let result = unsafe { libc::munmap(start.cast(), nr_pages * PAGE_SIZE) };
        assert_eq!(result, 0, "munmap: {}", errno());
    }

    /// Whether something is mapped at the page's address, of whoever that is.
    pub fn is_mapped(&self, page: usize) -> bool {
        let start = self.start().wrapping_add(page * PAGE_SIZE);
        // SAFETY: it writes a byte for the page.
        unsafe { libc::mincore(start.cast(), PAGE_SIZE, [0u8].as_mut_ptr()) == 0 }
    }

    /// Maps something new at the same place.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn replace(&self) {
        let (start, flags) = (self.start(), ANONYMOUS | libc::MAP_FIXED);
        // SAFETY: the place is ours, and there are no references to it.
        let new = unsafe { libc::mmap(start.cast(), self.len(), WRITABLE, flags, -1, 0) };
        assert_eq!(new, start.cast(), "mmap: {}", errno());
        self.advise(0, self.nr_pages, libc::MADV_NOHUGEPAGE);
    }

    /// Moves the memory to another address. Nobody accesses it meanwhile; nothing else is mapped where it was.
    ///
    /// # Errors
    /// As `mremap(2)`; then it is where it was.
    pub fn relocate(&self) -> std::io::Result<()> {
        let mut place = self.spare.load(Ordering::Relaxed);
        if place.is_null() {
            place = reserve(self.len() + 2 * PAGE_SIZE).wrapping_add(PAGE_SIZE);
            self.spare.store(place, Ordering::Relaxed);
        }
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let old = self.start();
        // SAFETY: both places are ours, and there are no references to them.
        let new = unsafe { libc::mremap(old.cast(), self.len(), self.len(), flags, place) };
        if new == libc::MAP_FAILED {
            return Err(errno());
        }
        self.start.store(place, Ordering::Relaxed);
        let flags = ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: replaces nothing.
        let kept = unsafe { libc::mmap(old.cast(), self.len(), libc::PROT_NONE, flags, -1, 0) };
        // Somebody else may have been faster; then there is a guard page left over.
        self.spare.store(if kept == old.cast() { old } else { std::ptr::null_mut() }, Ordering::Relaxed);
        Ok(())
    }

    /// Gives the whole place with its guard pages back.
    fn release(&self, start: *mut u8) {
        // SAFETY: the place is ours.
        unsafe { libc::munmap(start.wrapping_sub(PAGE_SIZE).cast(), self.len() + 2 * PAGE_SIZE) };
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        let spare = self.spare.load(Ordering::Relaxed);
        if !spare.is_null() {
            self.release(spare);
        }
        let start = self.start();
        let unmapped = self.unmapped.get_mut().unwrap_or_else(PoisonError::into_inner);
        if unmapped.is_empty() {
            return self.release(start);
        }
        let is_ours = |page: &usize| !unmapped.iter().any(|gone| gone.contains(page));
        let guards = [start.wrapping_sub(PAGE_SIZE), start.wrapping_add(self.nr_pages * PAGE_SIZE)];
        let pages = (0..self.nr_pages).filter(is_ours).map(|page| start.wrapping_add(page * PAGE_SIZE));
        for page in pages.chain(guards) {
            // SAFETY: a page of ours.
            unsafe { libc::munmap(page.cast(), PAGE_SIZE) };
        }
    }
}

/// Says where two pages differ.
///
/// # Panics
/// If they do.
pub(crate) fn expect_page(got: &Page, want: &Page, what: &str) {
    let differs = got.iter().zip(want).position(|(got, want)| got != want);
    assert_eq!(differs, None, "wrong byte of {what}");
}

/// What [`Map::fill`] writes.
pub(crate) fn content(page: usize, seed: u64) -> Box<Page> {
    let mut rng = crate::Rng::new(seed).fork(page as u64);
    let first = rng.bits();
    let mut bytes = Box::new([0; PAGE_SIZE]);
    for (word, chunk) in bytes.chunks_exact_mut(8).enumerate() {
        let value = match page % 4 {
            0 => first.wrapping_add(word as u64),
            1 => rng.bits() & 0x0707_0707_0707_0707 | 0x6060_6060_6060_6060,
            2 => rng.bits(),
            _ => first,
        };
        chunk.copy_from_slice(&value.to_ne_bytes());
    }
    bytes
}
