//! A unit's TLB, and how entries are taken from it.
//!
//! A hit takes no lock and no barrier. A unit that is about to access a frame says so, looks the page up, accesses, and
//! says that it is done. That is its *access window*:
//!
//! ```text
//!     unit                                          whoever takes entries away
//!     ----                                          --------------------------
//!     hazard = address                              page table: clear      (table's lock)
//!     look the page up in the TLB   -- missing?     TLBs: clear            (table's lock)
//!     access the frame                 go and ask   make every CPU see it  (membarrier)
//!     hazard = 0                                    wait while a hazard lies in the range
//! ```
//!
//! The unit needs no barrier between its first two steps because the other side has the kernel run one on every CPU that
//! runs a thread of ours: after it, either the unit's hazard is seen, or the unit sees its entry gone.
//!
//! # Why nothing can wait in a circle (I6)
//!
//! - A window is a few instructions that access the device's own memory, which never faults: at most a page is copied, to or
//!   from the unit's stack. So who waits for a window does not wait for anything that could wait for him.
//! - A system page is accessed *outside* of a window, because such an access may wait for a fault handler, when the page
//!   was taken out a moment before. Nobody has to wait for that access: it goes through the CPU's own page table, like one
//!   of the program's, so that it meets the page where it is now, or is refused (`trap`). It cannot reach a page that was
//!   taken out, nor write to one that became read-only. In this one point a device that is part of the process has it
//!   easier than others: the shootdown of its entries for system pages is done by the kernel.
//! - The unit fills its TLB under the table's lock, outside of a window.

use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use hmm_core::addr::{HUGE_ORDER, PAGE_SHIFT, PAGE_SIZE, PageRange, Vpn};
use rustix::io::Errno;

use crate::own::Zeroed;

/// Entries of a TLB, each for a page: 4 MiB.
const NR_ENTRIES: usize = 1024;
/// Entries for huge pages besides: 128 MiB.
const NR_LARGE: usize = 64;
/// No page's tag: tags are multiples of the page size.
const NO_TAG: u64 = u64::MAX;
const PAGE_MASK: u64 = !(PAGE_SIZE as u64 - 1);
const BLOCK_SHIFT: u32 = PAGE_SHIFT + HUGE_ORDER as u32;
const BLOCK_MASK: u64 = !((1 << BLOCK_SHIFT) - 1);

/// What a TLB knows of a page, small or huge.
#[repr(C, align(32))]
#[derive(Debug)]
struct TlbEntry {
    /// The page's address if it may be read.
    read: AtomicU64,
    /// The page's address if it may be written.
    write: AtomicU64,
    /// From an address in the page to the same byte in the frame; 0 is a system page, accessed at its own address.
    offset: AtomicU64,
    _pad: AtomicU64,
}

/// The part of a unit that others reach. It lies in memory of the device's own.
#[repr(C, align(128))]
#[derive(Debug)]
pub(crate) struct Core {
    /// The address that the unit is accessing on the device, or 0.
    hazard: AtomicU64,
    _pad: [AtomicU64; 15],
    tlb: [TlbEntry; NR_ENTRIES],
    /// Looked at when there is none in `tlb`.
    large: [TlbEntry; NR_LARGE],
}

// SAFETY: numbers only; zeroed it is one that `reset` makes usable, and that until then has entries for page 0 only,
// which is never mapped: they lead to an access that is guarded.
unsafe impl Zeroed for Core {}

/// Where the TLB says a byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a frame, at this address of ours. The unit is in an access window, and has to leave it.
    Frame(*mut u8),
    /// In system memory, at the program's own address.
    System,
}

impl Core {
    /// An empty TLB.
    pub(crate) fn reset(&self) {
        self.tlb.iter().chain(&self.large).for_each(TlbEntry::clear);
    }

    /// Looks a byte up. `size` is the access's, a power of two; one that is not aligned misses.
    #[inline(always)]
    pub(crate) fn enter(&self, addr: u64, size: usize, write: bool) -> Option<Place> {
        self.hazard.store(addr, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        match self.tlb[index_of(addr)].look(addr, size, write, PAGE_MASK) {
            Some(offset) => self.place(addr, offset),
            None => self.enter_large(addr, size, write),
        }
    }

    /// The same for huge pages, in an access window. Not inlined, so that the code of each access stays small.
    #[inline(never)]
    fn enter_large(&self, addr: u64, size: usize, write: bool) -> Option<Place> {
        match self.large[large_index_of(addr)].look(addr, size, write, BLOCK_MASK) {
            Some(offset) => self.place(addr, offset),
            None => {
                self.leave();
                None
            }
        }
    }

    #[inline(always)]
    fn place(&self, addr: u64, offset: u64) -> Option<Place> {
        if offset != 0 {
            #[expect(clippy::cast_possible_truncation, reason = "addresses have 64 bits here")]
            let at = addr.wrapping_add(offset) as usize;
            return Some(Place::Frame(std::ptr::with_exposed_provenance_mut(at)));
        }
        self.leave();
        Some(Place::System)
    }

    /// Ends the access window.
    #[inline(always)]
    pub(crate) fn leave(&self) {
        compiler_fence(Ordering::SeqCst);
        self.hazard.store(0, Ordering::Release);
    }

    /// Whether the unit is in an access window in the range.
    fn accesses(&self, range: PageRange) -> bool {
        let hazard = self.hazard.load(Ordering::Acquire);
        hazard != 0 && range.contains(Vpn::of_addr(hazard))
    }

    /// Enters a page, under the table's lock. `frame` is its address, or `None` for a system page. A huge page is entered as
    /// one: `large`.
    pub(crate) fn fill(&self, page: Vpn, frame: Option<u64>, write: bool, large: bool) {
        let addr = page.addr();
        let (entry, tag) = match large {
            true => (&self.large[large_index_of(addr)], addr & BLOCK_MASK),
            false => (&self.tlb[index_of(addr)], addr),
        };
        entry.offset.store(frame.map_or(0, |frame| frame.wrapping_sub(addr)), Ordering::Relaxed);
        entry.read.store(tag, Ordering::Relaxed);
        entry.write.store(if write { tag } else { NO_TAG }, Ordering::Relaxed);
    }

    /// Takes pages out, under the table's lock, and huge pages of which they are a part. The unit may still be accessing
    /// them, see [`wait`].
    pub(crate) fn flush(&self, range: PageRange) {
        if range.nr_pages() >= NR_ENTRIES as u64 {
            self.reset();
            return;
        }
        for page in range.iter() {
            self.tlb[index_of(page.addr())].forget(page.addr());
        }
        for (block, _) in range.blocks() {
            let addr = block.page(0).addr();
            self.large[large_index_of(addr)].forget(addr);
        }
    }
}

impl TlbEntry {
    /// The offset, if it is the page's at `addr`.
    #[inline(always)]
    fn look(&self, addr: u64, size: usize, write: bool, mask: u64) -> Option<u64> {
        let tag = if write { &self.write } else { &self.read };
        // The low bits of the tag are clear: those of an address that is not aligned are not.
        let is_it = tag.load(Ordering::Relaxed) == addr & (mask | (size as u64 - 1));
        is_it.then(|| self.offset.load(Ordering::Relaxed))
    }

    fn forget(&self, tag: u64) {
        if self.read.load(Ordering::Relaxed) == tag {
            self.clear();
        }
    }

    fn clear(&self) {
        self.read.store(NO_TAG, Ordering::Relaxed);
        self.write.store(NO_TAG, Ordering::Relaxed);
    }
}

#[inline(always)]
fn index_of(addr: u64) -> usize {
    (addr >> PAGE_SHIFT) as usize % NR_ENTRIES
}

#[inline(always)]
fn large_index_of(addr: u64) -> usize {
    (addr >> BLOCK_SHIFT) as usize % NR_LARGE
}

/// Has this process's threads make [`wait`] possible.
pub(crate) fn register() -> Result<(), Errno> {
    membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)
}

/// Waits until no unit accesses a frame by an entry of the range. All entries have been flushed, and the table's lock
/// was let go. Registered before.
pub(crate) fn wait(cores: &[Core], range: PageRange) {
    // It cannot fail: the process is registered.
    let barrier = membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED);
    debug_assert!(barrier.is_ok(), "{barrier:?}");
    for core in cores {
        // A unit that looks up an address of the range again finds no entry, and leaves at once.
        while core.accesses(range) {
            std::hint::spin_loop();
        }
    }
}

fn membarrier(command: i32) -> Result<(), Errno> {
    // SAFETY: a system call without pointers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
    if result == 0 { Ok(()) } else { Err(Errno::NOSYS) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::own::OwnSlice;
    use std::sync::atomic::AtomicBool;

    fn core() -> OwnSlice<Core> {
        let cores = OwnSlice::<Core>::new(1).unwrap();
        cores[0].reset();
        cores
    }

    #[test]
    fn only_what_was_entered_is_found() {
        let cores = core();
        let core = &cores[0];
        let page = Vpn(0x7000);
        assert_eq!(core.enter(page.addr(), 1, false), None);
        core.fill(page, None, false, false);
        assert_eq!(core.enter(page.addr() + 8, 8, false), Some(Place::System));
        assert_eq!(core.enter(page.addr() + 4, 8, false), None, "not aligned");
        assert_eq!(core.enter(page.addr() + 8, 8, true), None, "read-only");
        assert_eq!(core.enter(page.addr() + 4096 * NR_ENTRIES as u64, 1, false), None, "same index");
        core.fill(page, Some(0x1000), true, false);
        let Some(Place::Frame(at)) = core.enter(page.addr() + 16, 8, true) else { panic!("no frame") };
        assert_eq!(at.addr(), 0x1010);
        core.leave();
        core.flush(PageRange::new(page, 1));
        assert_eq!(core.enter(page.addr(), 1, false), None);
    }

    #[test]
    fn a_huge_page_is_found_by_all_of_its_pages_and_goes_with_any() {
        let cores = core();
        let core = &cores[0];
        let first = Vpn(0x7000);
        let last = first.add(511);
        core.fill(first.add(5), Some(0x100_5000), true, true);
        let Some(Place::Frame(at)) = core.enter(last.addr() + 8, 8, true) else { panic!("no frame") };
        assert_eq!(at.addr(), 0x11f_f008);
        core.leave();
        assert_eq!(core.enter(last.addr() + 4, 8, true), None, "not aligned");
        assert_eq!(core.enter(last.add(1).addr(), 8, false), None, "behind it");
        // An entry of a small page does not hide it.
        core.fill(last, Some(0x9000), false, false);
        assert!(core.enter(last.addr(), 8, true).is_some());
        core.leave();
        core.flush(PageRange::new(first.add(77), 1));
        assert_eq!(core.enter(first.addr(), 8, false), None);
        assert!(core.enter(last.addr(), 8, false).is_some(), "the small one stays");
        core.leave();
    }

    #[test]
    fn a_shootdown_waits_for_the_window_and_for_no_other() {
        register().unwrap();
        let cores = core();
        let page = Vpn(0x7000);
        cores[0].fill(page, Some(0x1000), true, false);
        assert!(cores[0].enter(page.addr(), 8, true).is_some());
        cores[0].flush(PageRange::new(page, 1));
        wait(&cores, PageRange::new(page.add(1), 100)); // Another range: nobody is in it.
        wait(&core(), PageRange { start: Vpn(0), end: Vpn(1 << 35) }); // Another unit: idle.
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                wait(&cores, PageRange::new(page, 1));
                assert!(over.load(Ordering::Acquire), "the window was still open");
            });
            std::thread::sleep(std::time::Duration::from_millis(20));
            over.store(true, Ordering::Release);
            cores[0].leave();
            waiter.join().unwrap();
        });
    }
}
