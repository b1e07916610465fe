//! The address space that is measured, or why there is none.

use anyhow::Result;
use hmm::AddressSpace;
use hmm::heap::Heap;

/// What this user or this machine lacks.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Lacking(String);

impl Lacking {
    /// For this reason.
    pub(crate) fn new(why: impl std::fmt::Display) -> Self {
        Self(why.to_string())
    }
}

/// An address space for drivers, without a budget.
///
/// # Errors
/// [`Lacking`]: no userfaultfd to be had, for example.
pub(crate) fn space() -> Result<AddressSpace> {
    // Else the device's tables would lie in memory that could be managed, and a fault might wait for itself.
    if !Heap::is_installed() {
        return Err(Lacking::new("this program's allocator is not `hmm::Heap`").into());
    }
    AddressSpace::builder().build().map_err(|why| Lacking::new(why).into())
}
