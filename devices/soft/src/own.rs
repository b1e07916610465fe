//! Memory of the device's own: its frames, the TLBs of its units, its page table.
//!
//! It is touched where nobody may wait for a fault handler: in access windows and in notifiers' callbacks. So it must
//! never be managed. It is no part of the heap, and lies between guard pages: the kernel never makes one mapping of it
//! and of a neighbour that the program asked to be migrated.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::AtomicU64;

use hmm_core::addr::PAGE_SIZE;
use hmm_device::LARGE_PAGES;
use hmm_uapi::mapping::{Advice, Mapping};
use rustix::io::Errno;

/// Zeroed memory between guard pages.
#[derive(Debug)]
pub(crate) struct Own {
    mapping: Mapping,
    /// Where it begins in the mapping, behind the first guard.
    start: usize,
    len: usize,
}

impl Own {
    /// `len` bytes, rounded up to pages. They take memory when they are touched.
    pub(crate) fn new(len: usize) -> Result<Self, Errno> {
        Self::aligned(len, PAGE_SIZE)
    }

    /// The same, of huge pages as far as there are any.
    pub(crate) fn huge(len: usize) -> Result<Self, Errno> {
        let own = Self::aligned(len, LARGE_PAGES * PAGE_SIZE)?;
        // Only a wish: without huge pages everything works as well.
        let _ = own.mapping.advise(own.start, own.len, Advice::HugePage);
        Ok(own)
    }

    fn aligned(len: usize, alignment: usize) -> Result<Self, Errno> {
        let len = len.max(1).checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::NOMEM)?;
        let with_guards = len.checked_add(alignment + PAGE_SIZE).ok_or(Errno::NOMEM)?;
        let mapping = Mapping::reserve_aligned(with_guards, alignment)?;
        mapping.commit(alignment, len)?;
        // A child of a fork has no units.
        mapping.advise(0, mapping.len(), Advice::DontFork)?;
        Ok(Self { mapping, start: alignment, len })
    }

    /// The first byte.
    pub(crate) const fn as_ptr(&self) -> *mut u8 {
        self.mapping.as_ptr().wrapping_add(self.start)
    }
}

/// Types of which zeroed memory is a value.
///
/// # Safety
/// All bytes zero are a valid value, and dropping it does nothing.
pub(crate) unsafe trait Zeroed {}

// SAFETY: a plain number.
unsafe impl Zeroed for u64 {}
// SAFETY: as the number in it.
unsafe impl Zeroed for AtomicU64 {}
// SAFETY: as its elements.
unsafe impl<T: Zeroed, const N: usize> Zeroed for [T; N] {}

/// A slice in memory of our own.
#[derive(Debug)]
pub(crate) struct OwnSlice<T> {
    own: Own,
    nr: usize,
    values: PhantomData<T>,
}

impl<T: Zeroed> OwnSlice<T> {
    /// `nr` zeroed values.
    pub(crate) fn new(nr: usize) -> Result<Self, Errno> {
        const { assert!(align_of::<T>() <= PAGE_SIZE) };
        let own = Own::new(nr.checked_mul(size_of::<T>()).ok_or(Errno::NOMEM)?)?;
        Ok(Self { own, nr, values: PhantomData })
    }
}

impl<T: Zeroed> Deref for OwnSlice<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the memory is page aligned, large enough (`new`), lives as long as `self`, began as zeroes, which are
        // values of `T`, and is changed through `&mut self` or inside of `T` only.
        unsafe { std::slice::from_raw_parts(self.own.as_ptr().cast(), self.nr) }
    }
}

impl<T: Zeroed> DerefMut for OwnSlice<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.own.as_ptr().cast(), self.nr) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_zeroed_and_keeps_what_is_written() {
        let mut slice = OwnSlice::<[u64; 512]>::new(3).unwrap();
        assert!(slice.iter().flatten().all(|word| *word == 0));
        slice[2][511] = 7;
        assert_eq!(slice[2][511], 7);
        assert_eq!(slice.len(), 3);
    }
}
