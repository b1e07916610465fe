//! The name of a frame.

/// A page-sized slot of device memory, as its device numbers it. 32 bits reach 16 TiB a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DevicePfn(pub u32);
