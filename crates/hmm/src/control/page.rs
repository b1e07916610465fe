//! The layout of the control page, and its mapping.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use hmm_core::ledger::Ledger;
use hmm_uapi::{SharedMapping, sys};

use super::NR_SLOTS;
use super::slot::Slot;
use super::text::SharedText;
use super::trace::Trace;
use super::verdict::SharedVerdict;

/// "hmm-ctrl", to be changed with every change of the layout that the size does not show.
const MAGIC: u64 = u64::from_be_bytes(*b"hmm-ctrl");
const VERSION: u64 = 10;
const PAGE_BYTES: usize = size_of::<Page>();

/// Everything that is shared. Valid whatever its bytes are: it has only atomic integers.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Page {
    magic: AtomicU64,
    version: AtomicU64,
    /// The [`ProcessId`](super::ProcessId) of who created it, or 0.
    pub(super) supervisor: AtomicU64,
    /// The account of all processes, if they share a budget.
    pub(super) ledger: Ledger,
    pub(super) verdict: SharedVerdict,
    /// What the last process said that could not be managed and went on.
    pub(super) why_unmanaged: SharedText<32>,
    /// The slots from this one on have never been claimed.
    pub(super) nr_reached: AtomicU64,
    /// Processes that have had a slot.
    pub(super) nr_processes: AtomicU64,
    /// Those that found none.
    pub(super) nr_turned_away: AtomicU64,
    pub(super) slots: [Slot; NR_SLOTS],
    /// An account for each slot, if each process has a budget of its own. Takes no memory else.
    pub(super) ledgers: [Ledger; NR_SLOTS],
    /// What happens to pages, on its way to the supervisor. Takes no memory while it is off.
    pub(super) trace: Trace,
}

impl Page {
    /// Maps a new memory file of the layout's size, all zero.
    pub(super) fn create() -> io::Result<(OwnedFd, &'static Self)> {
        let mapping = SharedMapping::create(c"hmm-control", PAGE_BYTES)?;
        let fd = mapping.as_fd().try_clone_to_owned()?;
        let page = Self::keep(mapping).map_err(io::Error::other)?;
        Ok((fd, page))
    }

    /// Maps an existing one, or says why the file is none.
    pub(super) fn open(path: &Path) -> io::Result<Result<&'static Self, &'static str>> {
        Self::of_file(File::options().read(true).write(true).open(path)?.into())
    }

    /// As [`open`](Self::open), for a file that is open.
    pub(super) fn of_file(fd: OwnedFd) -> io::Result<Result<&'static Self, &'static str>> {
        let file = File::from(fd);
        if file.metadata()?.len() != PAGE_BYTES as u64 {
            return Ok(Err("its size differs"));
        }
        let mapping = SharedMapping::from_fd(OwnedFd::from(file).into())?;
        Ok(Self::keep(mapping))
    }

    /// Keeps a mapping for ever, without its descriptor: the program under supervision must not find any in its table.
    fn keep(mapping: SharedMapping) -> Result<&'static Self, &'static str> {
        let mapping = ManuallyDrop::new(mapping);
        let fd = mapping.as_fd().as_raw_fd().cast_unsigned();
        // SAFETY: the descriptor is the mapping's own, and the mapping, which is never dropped, closes it no more.
        let closed = unsafe { sys::close_range(fd, fd) };
        debug_assert_eq!(closed, Ok(()), "a range of one descriptor that is open");
        if mapping.len() != PAGE_BYTES {
            return Err("its size differs");
        }
        // SAFETY:
        // 1. the mapping has the size of `Self`, and the alignment of a page, which is more than `Self` needs.
        // 2. it is never unmapped.
        // 3. any bytes are a valid `Self`, which consists of atomic integers: other processes may change them.
        Ok(unsafe { &*mapping.as_ptr().cast::<Self>() })
    }

    /// The page, if it is one.
    pub(super) fn check(&'static self) -> Result<&'static Self, &'static str> {
        // Pairs with `publish`: the budget is set.
        if self.magic.load(Ordering::Acquire) != MAGIC {
            return Err("its magic number differs");
        }
        if self.version.load(Ordering::Relaxed) != VERSION {
            return Err("its version differs");
        }
        Ok(self)
    }

    /// Sets the budget, and makes the page one.
    pub(super) fn publish(&self, ram_pages: u64) {
        self.ledger.set_budget(ram_pages);
        self.version.store(VERSION, Ordering::Relaxed);
        self.magic.store(MAGIC, Ordering::Release);
    }
}
