//! Memory for a test to manage.

use hmm::uapi::{AddrRange, Mapping};

const BLOCK: usize = 2 << 20;

/// Pages from the start of a block on, which are no part of a mapping of anybody else's: the kernel joins neighbours, and what a
/// test thread needs itself must not be away. They are unmapped with the first.
pub(crate) fn pages(nr_pages: usize) -> (Mapping, AddrRange) {
    let len = nr_pages * 4096;
    let mapping = Mapping::reserve_aligned(len + 2 * BLOCK, BLOCK).expect("there are addresses");
    mapping.commit(BLOCK, len).expect("there is memory");
    let range = AddrRange::new(mapping.range().start + BLOCK as u64, len as u64);
    (mapping, range)
}
