//! The engine's door to the kernel, on a userfaultfd.
//!
//! One userfaultfd serves the program's ranges and our staging memory, with events. That is on purpose: `UFFDIO_MOVE`
//! refuses to work while *its* context has an unread event, and only so is a page never taken out of a mapping that the
//! program has replaced meanwhile by one that we do not know of. The price is that giving staging memory back takes it
//! out of the registration for that time, because `MADV_DONTNEED` on it would send an event to ourselves.

use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

use hmm_core::addr::{BLOCK_PAGES, Bay, BlockId, PAGE_SIZE, PageRange, Slot, SlotRun, Vpn};
use hmm_core::bits::PageSet;
use hmm_core::kernel::{BayScan, Kernel, MovedOut, Progress, Refusal, Seen, Stop};
use hmm_core::ledger::{Ledger, Share};
use hmm_core::stats::Stats;
use hmm_core::trace::Event;
use hmm_device::DeviceError;
use hmm_uapi::AddrRange;
use hmm_uapi::mapping::{Advice, Mapping};
use hmm_uapi::maps::Maps;
use hmm_uapi::pagemap::{Categories, PageRegion, Pagemap, ScanArgs};
use hmm_uapi::procfs::Procfs;
use hmm_uapi::uffd::{Access, CopyMode, Modes, MoveMode, Outcome, Userfaultfd};
use rustix::io::Errno;

use crate::divided::by_mappings;
use crate::extents::Extents;
use crate::frames::{self, LentFrames};
use crate::put_off::PutOff;

pub use crate::books::Books;

const BLOCK_BYTES: usize = BLOCK_PAGES * PAGE_SIZE;
/// A page that is not a hole. The kernel moves pages about by itself (compaction): such a page is not mapped for a moment,
/// but neither is it gone.
pub(crate) const OCCUPIED: Categories = Categories::PRESENT.union(Categories::SWAPPED);

/// What the kernel lends us to look at and work on this address space.
#[derive(Debug)]
pub struct Files {
    /// Enabled, with the features of [`features`](crate::open::features).
    pub uffd: Userfaultfd,
    /// Whose faults it tells of.
    pub access: Access,
    /// Whether it tells of forks, and serves the child until somebody takes that over.
    pub reports_forks: bool,
    /// Where the next two come from. The child of a fork opens its own there.
    pub procfs: Procfs,
    /// This process's page table.
    pub pagemap: Pagemap,
    /// This process's mappings.
    pub maps: Maps,
}

/// This process's memory: the program's registered ranges and our staging.
#[derive(Debug)]
pub struct Mm {
    files: Files,
    staging: Mapping,
    /// Reads as zeroes: the source of fresh pages.
    zeroes: Mapping,
    /// Where a huge page is made that a bay shall have: in staging itself pages are small. Empty in between.
    nursery: Mutex<Mapping>,
    pub(crate) extents: Extents,
    frames: LentFrames,
    /// Whether the children of forks have what is registered, although forks are not reported.
    pub(crate) is_lent: AtomicBool,
    pub(crate) put_off: PutOff,
    books: Box<dyn Books>,
}

impl Mm {
    /// Sets staging memory up and registers it.
    ///
    /// # Errors
    /// What mapping or registering it says.
    pub fn new(files: Files, nr_bays: u32, books: Box<dyn Books>) -> Result<Self, Errno> {
        let staging = Mapping::reserve_aligned(nr_bays as usize * BLOCK_BYTES, BLOCK_BYTES)?;
        staging.commit(0, staging.len())?;
        // Huge pages come here by being moved; ours are small, because they leave one by one.
        staging.advise(0, staging.len(), Advice::NoHugePage)?;
        staging.leave_out_of_dumps();
        let zeroes = Mapping::anonymous(BLOCK_BYTES)?;
        zeroes.advise(0, BLOCK_BYTES, Advice::NoHugePage)?;
        // Reading maps the zero page everywhere; without, every copy from here would fault inside the ioctl.
        zeroes.advise(0, BLOCK_BYTES, Advice::PopulateRead)?;
        let nursery = Mapping::reserve_aligned(BLOCK_BYTES, BLOCK_BYTES)?;
        nursery.commit(0, BLOCK_BYTES)?;
        // Where the kernel has no huge pages this fails, and small ones come of it.
        let _ = nursery.advise(0, BLOCK_BYTES, Advice::HugePage);
        let (nursery, extents, frames) = (Mutex::new(nursery), Extents::default(), LentFrames::default());
        let (is_lent, put_off) = (AtomicBool::new(false), PutOff::default());
        let mm = Self { files, staging, zeroes, nursery, extents, frames, is_lent, put_off, books };
        mm.register_staging(mm.staging.range())?;
        Ok(mm)
    }

    /// The userfaultfd.
    pub fn uffd(&self) -> &Userfaultfd {
        &self.files.uffd
    }

    /// Whether forks are told of, see [`Files::reports_forks`].
    pub fn reports_forks(&self) -> bool {
        self.files.reports_forks
    }

    /// Registers our own memory again, with a userfaultfd that took the place of the one before.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn register_own(&self) -> Result<(), Errno> {
        self.register_staging(self.staging.range())?;
        self.frames.register_again(&self.files.uffd)
    }

    /// What the mappings and the page table are read from.
    pub fn procfs(&self) -> &Procfs {
        &self.files.procfs
    }

    /// The mappings.
    pub fn maps(&self) -> &Maps {
        &self.files.maps
    }

    /// The page table.
    pub fn pagemap(&self) -> &Pagemap {
        &self.files.pagemap
    }

    /// What is registered.
    pub fn extents(&self) -> &Extents {
        &self.extents
    }

    /// Memory of ours that must never be managed.
    pub fn own_ranges(&self) -> [AddrRange; 3] {
        let nursery = self.nursery.lock().unwrap_or_else(PoisonError::into_inner).range();
        [self.staging.range(), self.zeroes.range(), nursery]
    }

    /// In write-protect mode only: then touching an empty slot is an ordinary fault.
    fn register_staging(&self, range: AddrRange) -> Result<(), Errno> {
        // SAFETY:
        // 1. no reference into staging outlives the closures of `with_slots`, and the engine fills no slot meanwhile.
        // 2. without the MISSING mode no access to it waits for anybody.
        // 3. nothing is write-protected.
        unsafe { self.files.uffd.register(range, Modes::WRITE_PROTECT) }
    }

    pub(crate) fn slot_addr(&self, slot: Slot) -> u64 {
        self.staging.range().start + u64::from(slot.0) * PAGE_SIZE as u64
    }

    fn slot_range(&self, run: SlotRun) -> AddrRange {
        AddrRange::new(self.slot_addr(run.start), (run.len * PAGE_SIZE) as u64)
    }

    fn slot_ptr(&self, run: SlotRun) -> *mut u8 {
        let offset = run.start.0 as usize * PAGE_SIZE;
        assert!(offset + run.len * PAGE_SIZE <= self.staging.len(), "a slot outside of staging");
        self.staging.as_ptr().wrapping_add(offset)
    }

    fn move_slots(&self, src: Slot, dst: PageRange) -> Progress {
        let to = range_of(dst);
        // SAFETY: the slots are the engine's, which holds no reference into them.
        progress(unsafe { self.shift(to.start, self.slot_addr(src), to.len(), MoveMode::empty()) })
    }

    fn copy_slots(&self, src: Slot, dst: PageRange, mode: CopyMode) -> Progress {
        by_mappings(&self.files.maps, dst, |done, dst| {
            let to = range_of(dst);
            progress(self.files.uffd.copy(self.slot_addr(src.add(done)), to.start, to.len(), mode))
        })
    }

    /// The block's pages that are not holes.
    pub fn present(&self, id: BlockId) -> PageSet {
        self.scan(range_of(id.pages())).present
    }

    pub(crate) fn scan(&self, range: AddrRange) -> BayScan {
        let mut found = BayScan::default();
        let mut args = ScanArgs::any(OCCUPIED);
        args.tell = OCCUPIED | Categories::HUGE;
        self.scan_regions(range, args, |region| {
            let first = Vpn::of_addr(region.range().start).index();
            let nr_pages = usize::try_from(region.range().len()).unwrap_or(0) / PAGE_SIZE;
            found.present.insert_range(first..(first + nr_pages).min(BLOCK_PAGES));
            found.huge |= region.categories().contains(Categories::HUGE);
        });
        found
    }

    /// Gives every region that the scan finds.
    pub(crate) fn scan_regions(&self, range: AddrRange, args: ScanArgs, mut each: impl FnMut(PageRegion)) {
        let mut regions = [PageRegion::default(); 64];
        let mut rest = range;
        while !rest.is_empty() {
            let Ok(scanned) = self.files.pagemap.scan(rest, args, &mut regions) else { return };
            regions[..scanned.nr_regions].iter().for_each(|region| each(*region));
            if scanned.walk_end <= rest.start {
                return;
            }
            rest.start = scanned.walk_end;
        }
    }
}

impl Kernel for Mm {
    fn move_out(&self, src: PageRange, bay: Bay) -> MovedOut {
        self.take_out(src, bay)
    }

    fn move_home(&self, src: Slot, dst: PageRange) -> Progress {
        by_mappings(&self.files.maps, dst, |done, dst| {
            let src = src.add(done);
            let progress = self.move_slots(src, dst);
            if progress.stop != Some(Stop::Busy) {
                return progress;
            }
            // Since a fork the slots are shared with the other process. A write that changes nothing gives us our own.
            let rest = PageRange { start: dst.start.add(progress.done as u64), end: dst.end };
            let slots = AddrRange::new(self.slot_addr(src.add(progress.done)), range_of(rest).len());
            let _ = hmm_uapi::sys::populate_write(slots);
            let more = self.move_slots(src.add(progress.done), rest);
            Progress { done: progress.done + more.done, stop: more.stop }
        })
    }

    fn copy_home(&self, src: Slot, dst: PageRange) -> Progress {
        self.copy_slots(src, dst, CopyMode::empty())
    }

    fn copy_home_protected(&self, src: Slot, dst: PageRange) -> Progress {
        if self.files.access == Access::UserModeOnly {
            // The kernel's own writes would fail rather than wait.
            return Progress { done: 0, stop: Some(Stop::Unsuited) };
        }
        self.copy_slots(src, dst, CopyMode::WRITE_PROTECT)
    }

    fn unprotect(&self, dst: PageRange) -> Option<Stop> {
        self.files.uffd.write_protect(range_of(dst), false).err().map(stop_of)
    }

    fn zero_home(&self, dst: PageRange) -> Progress {
        let zeroes = self.zeroes.range().start;
        by_mappings(&self.files.maps, dst, |_, dst| {
            let to = range_of(dst);
            progress(self.files.uffd.copy(zeroes, to.start, to.len(), CopyMode::empty()))
        })
    }

    fn zero_page_home(&self, dst: Vpn) -> Progress {
        progress(self.files.uffd.zero(range_of(PageRange::new(dst, 1))))
    }

    fn poison(&self, dst: PageRange) -> Progress {
        progress(self.files.uffd.poison(range_of(dst)))
    }

    fn wake(&self, range: PageRange) {
        // It fails only for ranges that are not memory; then nobody waits there.
        let _ = self.files.uffd.wake(range_of(range));
    }

    fn wake_later(&self, range: PageRange) {
        self.put_off(range);
        // Else whoever reads the event looks for who was put off.
        if !self.is_changing() {
            self.wake_put_off(true);
        }
    }

    fn present(&self, block: BlockId) -> PageSet {
        Self::present(self, block)
    }

    fn is_changing(&self) -> bool {
        self.files.uffd.is_changing()
    }

    fn scan_bay(&self, bay: Bay) -> BayScan {
        self.scan(self.slot_range(SlotRun { start: bay.slot(0), len: BLOCK_PAGES }))
    }

    fn fill_bay(&self, bay: Bay) -> BayScan {
        let nursery = self.nursery.lock().unwrap_or_else(PoisonError::into_inner);
        let range = nursery.range();
        if nursery.advise(0, BLOCK_BYTES, Advice::PopulateWrite).is_ok() && self.scan(range).huge {
            let dst = self.slot_addr(bay.slot(0));
            // SAFETY: the nursery is ours, and nobody refers to it.
            let _ = unsafe { self.files.uffd.r#move(dst, range.start, range.len(), MoveMode::empty()) };
        }
        // Nothing is left there, whatever came of it. It is not registered, so nobody is told.
        let _ = nursery.advise(0, BLOCK_BYTES, Advice::DontNeedLocked);
        drop(nursery);
        self.scan_bay(bay)
    }

    fn release(&self, run: SlotRun) {
        let range = self.slot_range(run);
        let offset = run.start.0 as usize * PAGE_SIZE;
        // Should one of these fail the memory stays, or the next move into it is refused: nothing is lost by either. Of
        // memory that is still registered the advice would wait for us to read of it.
        let Ok(()) = self.files.uffd.unregister(range).map_err(crate::forbidden::unsuited) else { return };
        let _ = self.staging.advise(offset, run.len * PAGE_SIZE, Advice::DontNeedLocked);
        let _ = self.register_staging(range);
    }

    fn lend_frames(&self, memory: Range<u64>) -> bool {
        self.frames.lend(&self.files.uffd, memory)
    }

    fn end_frames(&self, memory: Range<u64>) {
        self.frames.end(&self.files.uffd, memory);
    }

    fn map_frames(&self, src: u64, dst: PageRange) -> Progress {
        by_mappings(&self.files.maps, dst, |done, dst| {
            frames::map(self, src + (done * PAGE_SIZE) as u64, dst)
        })
    }

    fn unmap_frames(&self, src: PageRange, dst: u64) -> Progress {
        frames::unmap(self, src, dst)
    }

    fn unshare(&self, range: PageRange) {
        let mut at = range.start;
        while let Some(part) = self.extents.next_in(at, range.end) {
            at = part.end;
            self.scan_regions(range_of(part), ScanArgs::any(Categories::PRESENT), |region| {
                // Fails for read-only mappings, whose pages then stay, and for what has left meanwhile.
                let pages = region.range().start..region.range().end;
                pages.step_by(PAGE_SIZE).for_each(|page| _ = hmm_uapi::sys::write_nothing(page));
            });
        }
    }

    fn slot_addr(&self, slot: Slot) -> u64 {
        Self::slot_addr(self, slot)
    }

    fn with_slots(&self, run: SlotRun, read: &mut dyn FnMut(&[u8])) {
        // SAFETY:
        // 1. the slots are inside of our mapping, which is readable and lives as long as `self`.
        // 2. slots lent for reading hold a page that nobody changes until the engine gives them back (`Staging`).
        read(unsafe { std::slice::from_raw_parts(self.slot_ptr(run), run.len * PAGE_SIZE) });
    }

    fn with_slots_mut(&self, run: SlotRun, write: &mut dyn FnMut(&mut [u8])) {
        // SAFETY:
        // 1. the slots are inside of our mapping, which is writable and lives as long as `self`.
        // 2. slots lent for writing are one borrower's alone until the engine gives them back (`Staging`).
        write(unsafe { std::slice::from_raw_parts_mut(self.slot_ptr(run), run.len * PAGE_SIZE) });
    }

    fn walk(&self, range: PageRange, seen: &mut [Seen]) -> Result<(), Refusal> {
        crate::walk::walk(self, range, seen)
    }

    fn populate(&self, range: PageRange, write: bool) -> Result<(), Refusal> {
        crate::walk::populate(range, write, self.files.access)
    }

    fn extent(&self, page: Vpn) -> PageRange {
        match self.extents.covering(page) {
            Some(extent) => extent.intersect(page.block().pages()),
            None => PageRange::new(page, 0),
        }
    }

    fn ledger(&self) -> &Ledger {
        self.books.ledger()
    }

    fn share(&self) -> Share<'_> {
        self.books.share()
    }

    fn stats(&self) -> &Stats {
        self.books.stats()
    }

    fn device_failed(&self, device: u8, why: DeviceError) {
        self.books.device_failed(device, why);
    }

    fn is_traced(&self) -> bool {
        self.books.is_traced()
    }

    fn record(&self, event: Event) {
        self.books.record(event);
    }
}

impl Drop for Mm {
    fn drop(&mut self) {
        // Before the mapping goes: unmapping a registered range would wait for the event to be read.
        let _ = self.files.uffd.unregister(self.staging.range());
        self.frames.end_all(&self.files.uffd);
    }
}

/// The addresses of a run of pages.
pub(crate) const fn range_of(range: PageRange) -> AddrRange {
    AddrRange { start: range.start.addr(), end: range.end.addr() }
}

pub(crate) fn progress(outcome: Outcome) -> Progress {
    let done = usize::try_from(outcome.done_bytes).unwrap_or(0) / PAGE_SIZE;
    Progress { done, stop: outcome.stop.map(stop_of) }
}

/// What an errno of a resolving verb means to the engine.
fn stop_of(errno: Errno) -> Stop {
    match errno {
        Errno::EXIST => Stop::Exists,
        Errno::AGAIN => Stop::Changing,
        Errno::BUSY => Stop::Busy,
        Errno::NOMEM => Stop::NoMemory,
        Errno::SRCH => Stop::Gone,
        // ENOENT is a hole of the source (which the engine never asks for) or a destination that is not registered.
        errno => crate::forbidden::unsuited(errno),
    }
}
