//! What a device says of itself.

use std::iter::Sum;
use std::ops::AddAssign;

/// Where a device's frames are, as the CPU sees them (Linux: `MEMORY_DEVICE_PRIVATE`, `MEMORY_DEVICE_COHERENT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemKind {
    /// The CPU cannot map a frame: a touch brings the page home.
    Private,
    /// The CPU can map a frame.
    Coherent,
}

/// Constant properties of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Private or coherent.
    pub kind: MemKind,
    /// Upper bound of frames that it will ever hold. A device of compressed memory may be full earlier.
    pub capacity_pages: u64,
    /// Pages a transfer should have to be cheap, at least 1.
    pub preferred_run_pages: u32,
    /// Rough cost of storing a page, in nanoseconds; for the choice between devices and for read-ahead.
    pub store_page_ns: u32,
    /// Rough cost of fetching a page, in nanoseconds.
    pub fetch_page_ns: u32,
    /// Whether [`holds`](crate::Device::holds) can say yes: then pages that came home keep their frames for a while.
    pub keeps_copies: bool,
}

/// How full a device is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Frames handed out and not freed.
    pub frames: u64,
    /// Bytes of the device's memory that they take.
    pub used_bytes: u64,
    /// Bytes that it may take at most.
    pub capacity_bytes: u64,
}

impl AddAssign for Usage {
    /// That of several devices, or of one in several processes.
    fn add_assign(&mut self, other: Self) {
        self.frames += other.frames;
        self.used_bytes += other.used_bytes;
        self.capacity_bytes += other.capacity_bytes;
    }
}

impl Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, one| {
            sum += one;
            sum
        })
    }
}

impl Usage {
    /// The higher value of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            frames: self.frames.max(other.frames),
            used_bytes: self.used_bytes.max(other.used_bytes),
            capacity_bytes: self.capacity_bytes.max(other.capacity_bytes),
        }
    }
}
