//! How large a device is, and what it does beyond the necessary.

use hmm_device::PAGE_SIZE;

use crate::classes::{Class, SLAB_BYTES};
use crate::entry::Entry;
use crate::word::MAX_REGION_BYTES;

/// Frames for each page of capacity. Same-filled pages take no more than their frame.
const FRAMES_PER_PAGE: usize = 32;
/// Bytes below which there is no point: working memory takes a third of them.
const MIN_CAPACITY: usize = 1 << 20;
/// Bytes that the index can address.
const MAX_CAPACITY: usize = MAX_REGION_BYTES / 2;

/// What a device shall be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lz4Config {
    /// Bytes of RAM that it may keep resident, tables and working memory included; at least 1 MiB.
    pub capacity_bytes: usize,
    /// Whether each page's fingerprint is compared when it is fetched. Off by default: the bytes lie in RAM, which
    /// nobody else can reach.
    pub verify: bool,
}

impl Lz4Config {
    /// The defaults, for a capacity in bytes.
    pub const fn new(capacity_bytes: usize) -> Self {
        Self { capacity_bytes, verify: false }
    }

    /// The defaults, for a machine with so many bytes of RAM: half of them.
    pub const fn for_machine(physical_bytes: usize) -> Self {
        Self::new(physical_bytes / 2)
    }

    /// The same, with or without verification.
    #[must_use]
    pub const fn verify(self, verify: bool) -> Self {
        Self { verify, ..self }
    }

    /// Bytes of addresses that [`Lz4::in_memory`](crate::Lz4::in_memory) needs: a quarter more than the capacity and 20 MiB. At most the
    /// capacity is ever resident.
    pub const fn pool_bytes(&self) -> usize {
        (self.nr_frames() * size_of::<Entry>()).saturating_add(self.region_bytes())
    }

    /// A multiple of the entries in a page, so that the slabs begin at a page.
    pub(crate) const fn nr_frames(&self) -> usize {
        let nr_frames = (self.capacity_bytes / PAGE_SIZE).saturating_mul(FRAMES_PER_PAGE);
        let max = 1 << 31;
        if nr_frames > max { max } else { nr_frames.next_multiple_of(PAGE_SIZE / size_of::<Entry>()) }
    }

    /// Bytes for slabs: more than the capacity, because slabs become resident page by page, so that of each class there
    /// may be one that has only begun, and some that were taken up again.
    pub(crate) const fn region_bytes(&self) -> usize {
        (self.capacity_bytes / SLAB_BYTES * 9 / 8 + Class::COUNT).saturating_mul(SLAB_BYTES)
    }

    pub(crate) fn check(&self) -> Result<(), Lz4Error> {
        let fits = (MIN_CAPACITY..=MAX_CAPACITY).contains(&self.capacity_bytes);
        fits.then_some(()).ok_or(Lz4Error::Capacity(self.capacity_bytes))
    }
}

/// Why there is no device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Lz4Error {
    /// The capacity is out of range.
    #[error("a capacity of {0} bytes is out of range: choose one from 1 MiB to 512 GiB")]
    Capacity(usize),
    /// The memory for the pool is too small.
    #[error("the pool needs {needed} bytes of addresses, but was given {given}")]
    PoolTooSmall {
        /// What [`Lz4Config::pool_bytes`] says.
        needed: usize,
        /// What was given.
        given: usize,
    },
    /// The system has no addresses for the pool.
    #[error(
        "cannot reserve {0} bytes of addresses for the pool: raise the limit (ulimit -v), or choose a smaller capacity"
    )]
    Map(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_is_a_quarter_larger_than_the_capacity() {
        for capacity in [1 << 20, 3 << 29, 12 << 30, 256 << 30] {
            let pool = Lz4Config::new(capacity).pool_bytes();
            assert!(pool >= capacity && pool <= capacity / 4 * 5 + (24 << 20), "{capacity}: {pool}");
        }
        assert_eq!(Lz4Config::for_machine(4 << 30), Lz4Config::new(2 << 30));
    }

    #[test]
    fn absurd_capacities_are_refused_not_miscounted() {
        let config = Lz4Config::new(usize::MAX);
        assert_eq!(config.check(), Err(Lz4Error::Capacity(usize::MAX)));
        assert!(config.pool_bytes() >= MAX_CAPACITY);
        assert_eq!(Lz4Config::new(MAX_CAPACITY).check(), Ok(()));
        assert!(Lz4Config::new(MAX_CAPACITY).region_bytes() <= MAX_REGION_BYTES);
    }
}
