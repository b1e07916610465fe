//! A slice of numbers that are 0 until they are written to, and take no memory until then.
//!
//! Not from the allocator, because there are allocators that write the zeroes: a table is made for the whole capacity.

use std::ops::{Deref, DerefMut};

use hmm_uapi::{AddrRange, Errno, Mapping};

/// See the module.
#[derive(Debug)]
pub(crate) struct Zeroed {
    mapping: Mapping,
    len: usize,
}

impl Zeroed {
    pub(crate) fn new(len: usize) -> Result<Self, Errno> {
        let bytes =
            len.max(1).checked_mul(size_of::<u64>()).and_then(|bytes| bytes.checked_next_multiple_of(4096));
        Ok(Self { mapping: Mapping::anonymous(bytes.ok_or(Errno::NOMEM)?)?, len })
    }

    /// Where it is.
    pub(crate) fn range(&self) -> AddrRange {
        self.mapping.range()
    }
}

impl Deref for Zeroed {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        // SAFETY:
        // 1. the mapping is ours, readable, aligned to pages, has at least `len` numbers, and lives as long as `self`.
        // 2. it begins with zeroes, and any bytes are numbers.
        // 3. who has a `&mut` to it has `self` alone.
        unsafe { std::slice::from_raw_parts(self.mapping.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Zeroed {
    fn deref_mut(&mut self) -> &mut [u64] {
        // SAFETY: as above; the mapping is writable, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.as_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_one_costs_nothing() {
        let mut numbers = Zeroed::new(1 << 32).expect("32 GiB of addresses");
        numbers[1 << 31] = 7;
        assert_eq!((numbers[0], numbers[1 << 31], numbers.last()), (0, 7, Some(&0)));
        assert_eq!(numbers.range().len(), 8 << 32);
        assert!(Zeroed::new(usize::MAX).is_err());
    }
}
