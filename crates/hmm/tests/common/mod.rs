//! What the tests of the library share.

mod watchdog;

use std::sync::Arc;

use hmm::device::Device;
use hmm::{AddressSpace, Faults};

pub(crate) use watchdog::within;

pub(crate) const MIB: usize = 1 << 20;

/// An address space with a budget of `ram` bytes. In the tests that are of threads that serve their own faults it is one of
/// those.
pub(crate) fn space(ram: usize, device: Arc<dyn Device>) -> AddressSpace {
    let faults = if module_path!().starts_with("in_thread") { Faults::InThread } else { Faults::Handlers };
    let builder = AddressSpace::builder().ram(ram as u64).device(device).faults(faults);
    builder.build().expect("userfaultfd can be had")
}
