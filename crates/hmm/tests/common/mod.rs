//! What the tests of the library share.

mod watchdog;

use std::sync::Arc;

use hmm::AddressSpace;
use hmm::device::Device;

pub(crate) use watchdog::within;

pub(crate) const MIB: usize = 1 << 20;

/// An address space with a budget of `ram` bytes.
pub(crate) fn space(ram: usize, device: Arc<dyn Device>) -> AddressSpace {
    AddressSpace::builder().ram(ram as u64).device(device).build().expect("userfaultfd can be had")
}
