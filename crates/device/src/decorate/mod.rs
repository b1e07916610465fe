//! Devices around devices: each adds one property to any device and changes nothing else.

mod contained;
mod faulty;
mod stats;
mod throttle;

pub use contained::Contained;
pub use faulty::{Fault, Faulty, Rule, When};
pub use stats::{Counts, Snapshot, WithStats};
pub use throttle::{Throttle, Throttled};

/// What is asked of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// [`alloc`](crate::Device::alloc).
    Alloc,
    /// [`store`](crate::Device::store).
    Store,
    /// [`fetch`](crate::Device::fetch).
    Fetch,
    /// [`free`](crate::Device::free).
    Free,
    /// [`holds`](crate::Device::holds).
    Holds,
    /// [`flush`](crate::Device::flush).
    Flush,
}

impl Verb {
    /// All verbs.
    pub const ALL: [Self; 6] = [Self::Alloc, Self::Store, Self::Fetch, Self::Free, Self::Holds, Self::Flush];
}
