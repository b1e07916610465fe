//! What can go wrong on a device.

/// Why a device did not do what it was asked. The page that was to be moved is untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No room for another page. The caller may try another device, or keep the page.
    #[error("the device is full")]
    OutOfMemory,
    /// The device is gone, and all it held with it.
    #[error("the device is lost")]
    Lost,
    /// This transfer failed; another may succeed.
    #[error("the transfer failed")]
    Io,
    /// The frame's bytes are not those that were stored. They must not be delivered.
    #[error("the frame's content does not match its checksum")]
    Corrupt,
    /// The device has not answered within its [patience](crate::Device::patience). It is not said what became of the transfer.
    #[error("the device has not answered in the time that it has for it")]
    TimedOut,
    /// The device cannot do this.
    #[error("the device does not support this")]
    Unsupported,
}
