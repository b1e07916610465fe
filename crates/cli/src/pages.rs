//! Pages, as people and machines are told of them: in bytes.

use hmm::spec::ByteSize;
use hmm_core::addr::PAGE_SIZE;

/// For people.
pub(crate) fn pages(nr_pages: u64) -> ByteSize {
    ByteSize(bytes(nr_pages))
}

/// For machines.
pub(crate) fn bytes(nr_pages: u64) -> u64 {
    nr_pages.saturating_mul(PAGE_SIZE as u64)
}
