//! A slice of numbers that are 0 until they are written to, begins at a page's border, and takes no memory until then.
//!
//! Not from the allocator, because there are allocators that write the zeroes: a table is made for the whole capacity.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use hmm_uapi::mapping::Advice;
use hmm_uapi::{AddrRange, Errno, Mapping};

/// What any bytes are one of, zeroes included, at any address in a page that is a multiple of its size.
pub(crate) trait Number: Copy + PartialEq + private::Sealed {
    const ZERO: Self;
}

impl Number for u8 {
    const ZERO: Self = 0;
}

impl Number for u32 {
    const ZERO: Self = 0;
}

impl Number for u64 {
    const ZERO: Self = 0;
}

mod private {
    pub(crate) trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Zeroed<T: Number> {
    mapping: Mapping,
    len: usize,
    numbers: PhantomData<T>,
}

impl<T: Number> Zeroed<T> {
    pub(crate) fn new(len: usize) -> Result<Self, Errno> {
        let bytes =
            len.max(1).checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_next_multiple_of(4096));
        let mapping = Mapping::anonymous(bytes.ok_or(Errno::NOMEM)?)?;
        mapping.leave_out_of_dumps();
        Ok(Self { mapping, len, numbers: PhantomData })
    }

    /// Where it is.
    pub(crate) fn range(&self) -> AddrRange {
        self.mapping.range()
    }

    /// Makes all of them 0 again, and takes no memory until they are written to.
    pub(crate) fn clear(&mut self) {
        if self.mapping.advise(0, self.mapping.len(), Advice::DontNeedLocked).is_err() {
            self.iter_mut().for_each(|number| *number = T::ZERO);
        }
    }

    /// As a fork does it, but that what is 0 is not touched.
    #[cfg(test)]
    pub(crate) fn copy_to(&self, other: &mut Self) {
        self.iter().zip(other.iter_mut()).filter(|(from, to)| from != to).for_each(|(from, to)| *to = *from);
    }
}

impl<T: Number> Deref for Zeroed<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY:
        // 1. the mapping is ours, readable, aligned to pages, has at least `len` numbers, and lives as long as `self`.
        // 2. it begins with zeroes, and any bytes are numbers.
        // 3. who has a `&mut` to it has `self` alone.
        unsafe { std::slice::from_raw_parts(self.mapping.as_ptr().cast(), self.len) }
    }
}

impl<T: Number> DerefMut for Zeroed<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; the mapping is writable, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.as_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_one_costs_nothing() {
        let mut numbers = Zeroed::<u64>::new(1 << 32).expect("32 GiB of addresses");
        numbers[1 << 31] = 7;
        assert_eq!((numbers[0], numbers[1 << 31], numbers.last()), (0, 7, Some(&0)));
        assert_eq!(numbers.range().len(), 8 << 32);
        numbers.clear();
        assert_eq!(numbers[1 << 31], 0);
        assert!(Zeroed::<u64>::new(usize::MAX).is_err());
        assert_eq!(Zeroed::<u8>::new(5).expect("a page").range().len(), 4096);
    }
}
