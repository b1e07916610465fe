//! The one door from the engine to the kernel: what it asks for, in pages and slots, never in pointers.
//!
//! Implemented by the runtime on userfaultfd, and by the simulator. The contract is that of Linux, in short:
//!
//! - While the program changes its mappings (an event is unread) every resolving call makes no progress and says
//!   [`Stop::Changing`]. The caller gives up what it planned, lets the events be read, and starts anew.
//! - Calls make progress page by page from the front; [`Progress::done`] pages are done, whatever `stop` says.
//! - Staging is memory of this process that nobody else touches: after `move_out` a slot's bytes change no more.

use std::ops::Range;

use hmm_device::DeviceError;

use crate::addr::{Bay, BlockId, PageRange, Slot, SlotRun, Vpn};
use crate::bits::PageSet;
use crate::ledger::{Ledger, Share};
use crate::stats::Stats;
use crate::trace::Event;

/// Why a call did not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The destination page is there already (`EEXIST`).
    Exists,
    /// The source page is not there (`ENOENT`).
    Absent,
    /// The mappings are changing: read the events, then try again (`EAGAIN`).
    Changing,
    /// The page is shared by a fork or pinned for I/O (`EBUSY`).
    Busy,
    /// The range is not registered, not mapped, or its protection differs (`EINVAL`, `ENOENT` of the range).
    Unsuited,
    /// The kernel has no memory (`ENOMEM`).
    NoMemory,
    /// The address space is gone (`ESRCH`).
    Gone,
}

/// How far a call came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "pages behind `done` are where they were"]
pub struct Progress {
    /// Pages done, from the front.
    pub done: usize,
    /// Why page number `done` was not; `None` when all were.
    pub stop: Option<Stop>,
}

impl Progress {
    /// All of `nr_pages` are done.
    pub const fn complete(nr_pages: usize) -> Self {
        Self { done: nr_pages, stop: None }
    }
}

/// What came of moving pages out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "pages that are not among `pages` are where they were"]
pub struct MovedOut {
    /// Those that were there and are no longer, by their places in the block.
    pub pages: PageSet,
    /// Why others are left, the last reason.
    pub stop: Option<Stop>,
}

/// What a bay was found to hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BayScan {
    /// Slots that hold a page.
    pub present: PageSet,
    /// Whether any of it is a huge page.
    pub huge: bool,
}

/// What a mapping lets a device do with its pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rights {
    /// Nothing: there is no mapping, it is not readable, or its pages are the kernel's own.
    #[default]
    None,
    /// Reading.
    Read,
    /// Reading and writing.
    Write,
}

/// What the CPU's page table has of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mapped {
    /// Nothing.
    #[default]
    Absent,
    /// The zero page.
    Zero,
    /// A page, of which a write makes another one, or has to be noticed by somebody first.
    ReadOnly,
    /// A page that can be written to.
    Writable,
}

/// A page as the CPU has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// What its mapping allows.
    pub rights: Rights,
    /// What is mapped.
    pub cpu: Mapped,
    /// log2 of the pages of the naturally aligned run that it is mapped with.
    pub order: u8,
    /// Whether it is write-protected by [`Kernel::copy_home_protected`].
    pub protected: bool,
}

/// Why pages could not be faulted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// An access would raise a signal.
    Fault,
    /// The kernel has no memory.
    NoMemory,
    /// A page is missing, and only accesses of the program itself are told to us (a userfaultfd of user mode only).
    Unserved,
}

/// What the engine needs of the kernel, and of the process it works in.
pub trait Kernel: Send + Sync {
    /// Moves the pages of `src` (inside one block) to the slots of `bay` at the same places in it, in one call as far as
    /// possible. Holes are skipped. A page that cannot be moved is skipped, too. After [`Stop::Changing`] part of the pages may
    /// have moved. [`scan_bay`](Kernel::scan_bay) tells what is there then: pages of which nobody knew, too, and in empty slots
    /// zeroes that somebody else has made by reading them.
    fn move_out(&self, src: PageRange, bay: Bay) -> MovedOut;

    /// Moves pages from slots to the program, and wakes who waits for them.
    fn move_home(&self, src: Slot, dst: PageRange) -> Progress;

    /// Fills holes of the program with copies of slots, and wakes who waits for them. The slots keep their pages.
    fn copy_home(&self, src: Slot, dst: PageRange) -> Progress;

    /// As [`copy_home`](Kernel::copy_home), and each page comes write-protected: the first write to it is a fault, also one
    /// by a system call. [`Stop::Unsuited`] where not all such faults would be told of.
    fn copy_home_protected(&self, src: Slot, dst: PageRange) -> Progress;

    /// Lifts write protection, and wakes who waits to write. After a stop, none or a part of it is lifted.
    fn unprotect(&self, dst: PageRange) -> Option<Stop>;

    /// Fills holes of the program with zeroes, in memory of their own, and wakes who waits for them.
    fn zero_home(&self, dst: PageRange) -> Progress;

    /// Maps the zero page to a hole of the program, and wakes who waits for it.
    fn zero_page_home(&self, dst: Vpn) -> Progress;

    /// Makes every access to the holes of the range fail with SIGBUS, and wakes who waits for them.
    fn poison(&self, dst: PageRange) -> Progress;

    /// Wakes who waits for a page of the range, so that it faults again or goes on.
    fn wake(&self, range: PageRange);

    /// The same, when no event is unread any more: before, whoever is woken comes back in vain.
    fn wake_later(&self, range: PageRange) {
        self.wake(range);
    }

    /// Which pages of a block are there. Asked under the block's lock, so that no registered hole is filled meanwhile.
    fn present(&self, block: BlockId) -> PageSet;

    /// Whether the program changes its mappings, and the events for that are not read yet: where a page is cannot be told.
    /// Asked after [`present`](Self::present), under the gate, in which no event is read, it says whether that was true.
    fn is_changing(&self) -> bool;

    /// Which slots of a bay hold a page.
    fn scan_bay(&self, bay: Bay) -> BayScan;

    /// Makes the memory of a coherent device, addresses in this process, one that pages are moved from and to. False: that
    /// cannot be done.
    fn lend_frames(&self, memory: Range<u64>) -> bool;

    /// Ends that. The pages that the program has mapped stay.
    fn end_frames(&self, memory: Range<u64>);

    /// Moves the pages of frames that follow each other, the first at the address `src`, to holes of the program, and wakes
    /// who waits for them.
    fn map_frames(&self, src: u64, dst: PageRange) -> Progress;

    /// Moves pages of the program back to the frames, the first at the address `dst`, that they were mapped from.
    /// [`Stop::Absent`]: there is no page.
    fn unmap_frames(&self, src: PageRange, dst: u64) -> Progress;
    /// Fills an empty bay with a huge page, of any content, if the kernel has one to give. Returns what the bay holds then.
    fn fill_bay(&self, bay: Bay) -> BayScan;

    /// Gives the memory of the slots back to the system; their content is gone. Never sends an event.
    fn release(&self, run: SlotRun);

    /// Makes pages that are shared with a child of a fork the program's own again, as far as they are resident; called
    /// without any lock of the engine, and only from reclaim.
    fn unshare(&self, range: PageRange);

    /// Address of a slot in this process, for a device that has a page to itself.
    fn slot_addr(&self, slot: Slot) -> u64;

    /// Lends the bytes of slots for reading.
    fn with_slots(&self, run: SlotRun, read: &mut dyn FnMut(&[u8]));

    /// Lends the bytes of slots for writing; slots without a page get one.
    fn with_slots_mut(&self, run: SlotRun, write: &mut dyn FnMut(&mut [u8]));

    /// Looks at the pages of a range, managed or not, one of `seen` for each. What changes meanwhile is seen before or after
    /// the change. No page is brought.
    ///
    /// # Errors
    /// [`Refusal::NoMemory`].
    fn walk(&self, range: PageRange, seen: &mut [Seen]) -> Result<(), Refusal>;

    /// Faults pages in, managed or not, as reading them would, or writing to them without changing a byte. Pages in front
    /// of one that is refused are there. Waits for those who serve faults; called without any lock of the engine.
    ///
    /// # Errors
    /// [`Refusal`].
    fn populate(&self, range: PageRange, write: bool) -> Result<(), Refusal>;

    /// Pages of the registered mapping around `page`, cut to its block; empty when it is not managed.
    /// Read-ahead and first touches in runs stay inside.
    fn extent(&self, page: Vpn) -> PageRange;

    /// The account that all memory is charged to. May be shared with other processes.
    fn ledger(&self) -> &Ledger;

    /// Our part in it.
    fn share(&self) -> Share<'_> {
        self.ledger().share(0)
    }

    /// Where events are counted.
    fn stats(&self) -> &Stats;

    /// A tier failed, so that a page that it held is about to be poisoned, or so that it takes none any more. Told again
    /// and again, and under a block's lock: it has to be quick. `device` counts the tiers from 0.
    fn device_failed(&self, device: u8, why: DeviceError) {
        let _ = (device, why);
    }

    /// Whether somebody wants to know what happens. Asked at every event: it has to be very quick.
    fn is_traced(&self) -> bool {
        false
    }

    /// Told what happened, if so; under locks: it has to be quick.
    fn record(&self, event: Event) {
        let _ = event;
    }
}
