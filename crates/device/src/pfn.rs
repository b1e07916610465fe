//! The name of a frame.

/// A page-sized slot of device memory, as its device numbers it. 32 bits reach 16 TiB a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DevicePfn(pub u32);

impl DevicePfn {
    /// The frame `nr_frames` behind this one.
    #[expect(clippy::cast_possible_truncation, reason = "frame numbers have 32 bits")]
    pub const fn add(self, nr_frames: usize) -> Self {
        Self(self.0 + nr_frames as u32)
    }

    /// Whether a large run can begin here.
    pub const fn is_large_start(self) -> bool {
        (self.0 as usize).is_multiple_of(crate::LARGE_PAGES)
    }
}
