//! The address space that is measured, or why there is none.

use anyhow::{Context, Result};
use hmm::AddressSpace;
use hmm::heap::Heap;
use hmm_lz4::{Lz4, Lz4Config};
use std::sync::Arc;

/// More than what is measured takes.
const DEVICE_BYTES: usize = 2 << 30;

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

/// An address space of so much RAM, with compressed RAM behind it.
///
/// # Errors
/// As [`space`].
pub(crate) fn bounded(ram_bytes: usize) -> Result<AddressSpace> {
    if !Heap::is_installed() {
        return Err(Lacking::new("this program's allocator is not `hmm::Heap`").into());
    }
    let pool = Lz4::new(Lz4Config::new(DEVICE_BYTES)).context("no addresses for compressed RAM")?;
    let builder = AddressSpace::builder().ram(ram_bytes as u64).device(Arc::new(pool));
    builder.build().map_err(|why| Lacking::new(why).into())
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
