//! Memory of every kind, and a driver that looks at it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hmm::AddressSpace;
use hmm::core::addr::{PAGE_SIZE, PageRange, Vpn};
use hmm::core::mirror::{Found, Pfn, RangeError, RangeFault, Request};
use hmm::core::notifier::{Change, Notifier, Owner, Pass, Watch};

pub(crate) const READ: i32 = libc::PROT_READ;
pub(crate) const WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
pub(crate) const ANONYMOUS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

/// Forks and huge pages concern the whole process: the tests run one after the other.
pub(crate) fn one_at_a_time() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says that a test cannot run here.
pub(crate) fn skip(why: &str) {
    eprintln!("SKIPPED: {why}");
}

/// Mapped memory.
#[derive(Debug)]
pub(crate) struct Map {
    start: *mut u8,
    len: usize,
}

// SAFETY: memory of the process; the tests give it to one thread at a time.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// `None` if the kernel has no such memory to give.
    pub(crate) fn try_new(nr_pages: usize, prot: i32, flags: i32, fd: i32) -> Option<Self> {
        let len = nr_pages * PAGE_SIZE;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, 0) };
        (start != libc::MAP_FAILED).then_some(Self { start: start.cast(), len })
    }

    pub(crate) fn new(nr_pages: usize, prot: i32, flags: i32, fd: i32) -> Self {
        Self::try_new(nr_pages, prot, flags, fd).expect("mmap")
    }

    /// Fresh private memory, all holes, of small pages.
    pub(crate) fn holes(nr_pages: usize) -> Self {
        let map = Self::new(nr_pages, WRITE, ANONYMOUS, -1);
        map.advise(0, nr_pages, libc::MADV_NOHUGEPAGE);
        map
    }

    /// Memory with two huge pages' worth of which the first whole one is used; its number in pages.
    pub(crate) fn first_block(&self) -> usize {
        (512 - self.pages().start.index()) % 512
    }

    pub(crate) fn pages(&self) -> PageRange {
        PageRange::new(Vpn::of_addr(self.start.expose_provenance() as u64), (self.len / PAGE_SIZE) as u64)
    }

    /// Some of its pages.
    pub(crate) fn part(&self, first: usize, nr_pages: usize) -> PageRange {
        PageRange::new(self.pages().start.add(first as u64), nr_pages as u64)
    }

    pub(crate) fn page(&self, index: usize) -> *mut u8 {
        assert!(index * PAGE_SIZE < self.len);
        self.start.wrapping_add(index * PAGE_SIZE)
    }

    pub(crate) fn read(&self, index: usize) -> u8 {
        // SAFETY: inside of the mapping.
        unsafe { self.page(index).read_volatile() }
    }

    pub(crate) fn write(&self, index: usize, byte: u8) {
        // SAFETY: inside of the mapping, of which there are no references.
        unsafe { self.page(index).write_volatile(byte) }
    }

    pub(crate) fn advise(&self, first: usize, nr_pages: usize, advice: i32) {
        // SAFETY: inside of the mapping, of which there are no references.
        let result = unsafe { libc::madvise(self.page(first).cast(), nr_pages * PAGE_SIZE, advice) };
        assert_eq!(result, 0, "madvise {advice}: {}", std::io::Error::last_os_error());
    }

    pub(crate) fn protect(&self, first: usize, nr_pages: usize, prot: i32) {
        // SAFETY: inside of the mapping, of which there are no references.
        let result = unsafe { libc::mprotect(self.page(first).cast(), nr_pages * PAGE_SIZE, prot) };
        assert_eq!(result, 0, "mprotect: {}", std::io::Error::last_os_error());
    }

    pub(crate) fn unmap(&self, first: usize, nr_pages: usize) {
        // SAFETY: inside of the mapping, of which there are no references.
        let result = unsafe { libc::munmap(self.page(first).cast(), nr_pages * PAGE_SIZE) };
        assert_eq!(result, 0, "munmap: {}", std::io::Error::last_os_error());
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours; holes in it do not matter.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

/// A driver that only counts.
#[derive(Debug, Default)]
pub(crate) struct Counting {
    pub(crate) changes: AtomicUsize,
}

impl Watch for Counting {
    type Table = Vec<Change>;

    fn invalidate(&self, table: &mut Vec<Change>, change: &Change) -> Pass {
        self.changes.fetch_add(1, Ordering::SeqCst);
        table.push(*change);
        Pass::Done
    }
}

/// An address space that bounds nothing.
pub(crate) fn mirror() -> AddressSpace {
    AddressSpace::builder().build().expect("userfaultfd can be had")
}

pub(crate) fn watch(space: &AddressSpace, range: PageRange) -> Notifier<Counting> {
    space.watch(range, Arc::new(Mutex::new(Vec::new())), Counting::default()).expect("a range")
}

/// What a device is shown of a range, with the same wanted of each page.
pub(crate) fn fault(
    space: &AddressSpace,
    range: PageRange,
    want: Request,
) -> (Result<(), RangeError>, Vec<Pfn>) {
    fault_as(space, range, want, None)
}

/// The same, by a certain driver.
pub(crate) fn fault_as(
    space: &AddressSpace,
    range: PageRange,
    want: Request,
    owner: Option<Owner>,
) -> (Result<(), RangeError>, Vec<Pfn>) {
    let notifier = watch(space, range);
    let mut pfns = vec![Pfn::default(); usize::try_from(range.nr_pages()).expect("small")];
    let mut fault = RangeFault::all(range, want, owner, &mut pfns);
    let outcome = space.range_fault_within(&notifier, &mut fault, Duration::from_secs(5)).map(drop);
    (outcome, pfns)
}

/// What there is, without faulting anything in.
pub(crate) fn snapshot(space: &AddressSpace, range: PageRange) -> Vec<Pfn> {
    let (outcome, pfns) = fault(space, range, Request::NONE);
    assert_eq!(outcome, Ok(()), "looking never fails");
    pfns
}

pub(crate) const WANT_READ: Request = Request::FAULT;

pub(crate) fn want_write() -> Request {
    Request::FAULT | Request::WRITE
}

pub(crate) const NONE: Pfn = Pfn { found: Found::None, write: false, order: 0, protected: false };
pub(crate) const ERROR: Pfn = Pfn { found: Found::Error, write: false, order: 0, protected: false };
pub(crate) const ZERO: Pfn =
    Pfn { found: Found::System { zero: true }, write: false, order: 0, protected: false };
pub(crate) const READABLE: Pfn =
    Pfn { found: Found::System { zero: false }, write: false, order: 0, protected: false };
pub(crate) const WRITABLE: Pfn =
    Pfn { found: Found::System { zero: false }, write: true, order: 0, protected: false };

/// A page of a huge page.
pub(crate) const fn huge(pfn: Pfn) -> Pfn {
    Pfn { order: 9, ..pfn }
}

/// A file that is nowhere but in memory.
pub(crate) fn memory_file(nr_pages: i64) -> i32 {
    // SAFETY: a new file without a name.
    let fd = unsafe { libc::memfd_create(c"hmm-test".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: our descriptor.
    assert_eq!(unsafe { libc::ftruncate(fd, nr_pages * 4096) }, 0);
    fd
}

/// The mapping of that name.
pub(crate) fn mapping_named(name: &str) -> Option<PageRange> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
    let line = maps.lines().find(|line| line.ends_with(name))?;
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    let addr = |text| u64::from_str_radix(text, 16).expect("an address");
    Some(PageRange::of_bytes(addr(start), addr(end)))
}

/// What the child finds where a page of the parent's is away: it is ended by a signal, and never reads wrong bytes.
pub(crate) fn child_is_killed_by(space: &AddressSpace) -> i32 {
    let map = Map::holes(2);
    map.write(0, 1);
    space.manage(map.pages()).expect("can be managed");
    assert_eq!(space.evict_pages(map.pages()), 1);
    // SAFETY: the child touches one page, and ends.
    let child = unsafe { hmm_conformance::fork() };
    if child == 0 {
        hmm_conformance::end_by_signals();
        let byte = map.read(0);
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(byte)) };
    }
    let mut status = 0;
    // SAFETY: our child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFSIGNALED(status), "{status:#x}");
    assert_eq!(map.read(0), 1, "nothing happens to the parent");
    libc::WTERMSIG(status)
}
