//! The pool: where the memory comes from, and the only code that touches it.
//!
//! It has two regions: the frame table, which is shared and made of atomics, and behind it the slabs, whose bytes have
//! one owner at a time: a slot's holder between `take` and `give` of [`Slabs`](crate::slabs::Slabs), else nobody.

use std::fmt::Debug;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use hmm_uapi::mapping::Advice;
use hmm_uapi::{Errno, Mapping};

use crate::entry::Entry;

/// Memory that a pool is placed in.
///
/// # Safety
/// From [`base`](Self::base), which is a multiple of 4096 and never changes, there are
/// [`len_bytes`](Self::len_bytes) readable and writable bytes, all zero at first. Until it is dropped, nobody reads or
/// writes them or changes their mapping, except as the pool tells it to.
pub unsafe trait PoolMemory: Debug + Send + Sync {
    /// The first byte.
    fn base(&self) -> NonNull<u8>;

    /// Length in bytes; a constant. For the capacity to be a bound of what is resident, the memory must come into
    /// being page by page when touched: without huge pages.
    fn len_bytes(&self) -> usize;

    /// Gives the memory of some of the pages back to the system: they read as zeroes afterwards. `offset` and `len` are
    /// bytes and multiples of 4096. Nobody uses these pages meanwhile. If it fails, nothing has to happen.
    fn release(&self, offset: usize, len: usize);
}

/// A mapping of our own.
#[derive(Debug)]
pub(crate) struct Mapped(Mapping);

impl Mapped {
    /// So many bytes of addresses; memory comes as it is touched.
    ///
    /// # Errors
    /// `ENOMEM`: the address space is full, or a limit (`ulimit -v`) reached.
    pub(crate) fn new(len_bytes: usize) -> Result<Self, Errno> {
        let mapping = Mapping::anonymous(len_bytes)?;
        // A huge page would make resident what was not charged. Kernels without huge pages refuse: then all is well.
        let _ = mapping.advise(0, len_bytes, Advice::NoHugePage);
        mapping.leave_out_of_dumps();
        Ok(Self(mapping))
    }
}

// SAFETY: a private anonymous mapping is page aligned, zeroed and ours alone until it is dropped; pages of it change
// only in `release`.
unsafe impl PoolMemory for Mapped {
    fn base(&self) -> NonNull<u8> {
        NonNull::new(self.0.as_ptr()).unwrap_or(NonNull::dangling())
    }

    fn len_bytes(&self) -> usize {
        self.0.len()
    }

    fn release(&self, offset: usize, len: usize) {
        // When it fails, the pages stay resident.
        let _ = self.0.advise(offset, len, Advice::DontNeedLocked);
    }
}

/// The memory and its division.
#[derive(Debug)]
pub(crate) struct Pool {
    memory: Box<dyn PoolMemory>,
    nr_entries: usize,
    slabs_at: usize,
}

impl Pool {
    /// Divides memory into a table of `nr_entries` (a multiple of 256) and slabs; `None` when it is too small.
    pub(crate) fn new(memory: Box<dyn PoolMemory>, nr_entries: usize, slab_bytes: usize) -> Option<Self> {
        let slabs_at = nr_entries.checked_mul(size_of::<Entry>())?;
        let end = slabs_at.checked_add(slab_bytes)?;
        (end <= memory.len_bytes()).then_some(Self { memory, nr_entries, slabs_at })
    }

    /// The frame table.
    pub(crate) fn entries(&self) -> &[Entry] {
        let first = self.memory.base().cast::<Entry>();
        // SAFETY: the table lies at the start of memory that is aligned to more than an entry, is readable, writable
        // and alive as long as `self` (contract of `PoolMemory`), and holds `nr_entries` of them (checked in `new`).
        // Zeroed or written as atomics, its bytes are valid entries. Nothing else in this module writes to it.
        unsafe { std::slice::from_raw_parts(first.as_ptr(), self.nr_entries) }
    }

    /// The bytes of part of a slot.
    ///
    /// # Safety
    /// The part lies in the region of slabs, and until the reference ends, nobody writes to it.
    pub(crate) unsafe fn slot(&self, part: Range<usize>) -> &[u8] {
        let start = self.memory.base().as_ptr().wrapping_add(self.slabs_at + part.start);
        // SAFETY: in the region (caller) that lies in the memory (`new`); initialised, zeroed at least; not written to
        // while the reference lives (caller).
        unsafe { std::slice::from_raw_parts(start, part.len()) }
    }

    /// The bytes of part of a slot, for writing.
    ///
    /// # Safety
    /// The part lies in the region of slabs, and until the reference ends, nobody else reads or writes it.
    #[expect(clippy::mut_from_ref, reason = "the pool is raw memory; the caller owns the slot")]
    pub(crate) unsafe fn slot_mut(&self, part: Range<usize>) -> &mut [u8] {
        let start = self.memory.base().as_ptr().wrapping_add(self.slabs_at + part.start);
        // SAFETY: in the region (caller) that lies in the memory (`new`); initialised, zeroed at least; used by nobody
        // else while the reference lives (caller).
        unsafe { std::slice::from_raw_parts_mut(start, part.len()) }
    }

    /// The eight bytes at an offset in the region of slabs, as a counter.
    ///
    /// # Safety
    /// They are in the region and the offset is a multiple of 8; until the reference ends, they are used only so.
    pub(crate) unsafe fn counter(&self, offset: usize) -> &AtomicU64 {
        let word = self.memory.base().as_ptr().wrapping_add(self.slabs_at + offset);
        // SAFETY: readable and writable memory (as in `slot_mut`), aligned because both the region and the offset are,
        // and used as an atomic only (caller).
        unsafe { AtomicU64::from_ptr(word.cast()) }
    }

    /// Gives memory of slabs back to the system, offset and length in whole pages.
    ///
    /// # Safety
    /// There is no reference to any of it.
    pub(crate) unsafe fn release_slots(&self, offset: usize, len: usize) {
        self.memory.release(self.slabs_at + offset, len);
    }

    /// Gives the first `len` bytes, whole pages, of the frame table back: the entries become zero.
    pub(crate) fn release_entries(&self, len: usize) {
        self.memory.release(0, len.min(self.slabs_at));
    }
}
