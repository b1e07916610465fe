//! A file as a device: pages that are away lie on a disk.
//!
//! ```
//! use hmm_device::{Access, Device, DevicePfn, Fetch, Store};
//! use hmm_file::{FileConfig, FileDevice};
//!
//! let device = FileDevice::create(&FileConfig::new(std::env::temp_dir(), 64 << 20))?;
//! let mut frames = [DevicePfn(0)];
//! assert_eq!(device.alloc(&mut frames), 1);
//! let page = [7; 4096];
//! let stored = device.store(Store { frames: &frames, bytes: &page, access: Access::Random });
//! assert_eq!(stored.stop, None);
//!
//! let mut back = [0; 4096];
//! assert_eq!(device.fetch(Fetch { frames: &frames, bytes: &mut back }).stop, None);
//! assert_eq!(back, page);
//! device.free(&frames);
//! # Ok::<(), hmm_file::FileError>(())
//! ```
//!
//! # What is in the file
//!
//! Frame `n` is the 4096 bytes at offset `4096 * n`, as the program wrote them. There is nothing else: no header, no
//! checksums, no index. All of that is in memory, because the file means nothing to anybody else: it has no name
//! (`O_TMPFILE`; where the file system has none, its name is removed at once), so that it is gone with its last user,
//! however that ends. It is sparse, and grows up to the capacity; the room of freed frames is used again, and given
//! back to the file system with the file.
//!
//! # What can go wrong
//!
//! | what | what the caller sees |
//! | --- | --- |
//! | the file system is full, or the quota (`ENOSPC`, `EDQUOT`) | [`OutOfMemory`](hmm_device::DeviceError::OutOfMemory) |
//! | a sector cannot be read or written (`EIO`), and what else may pass | [`Io`](hmm_device::DeviceError::Io) |
//! | the disk is gone (`ENODEV`, `ENXIO`, `ESTALE`, `ESHUTDOWN`) | [`Lost`](hmm_device::DeviceError::Lost) |
//! | bytes changed on the disk; the file was truncated behind our back | [`Corrupt`](hmm_device::DeviceError::Corrupt) |
//!
//! Each frame has a 64-bit checksum in memory (8 bytes a frame), which is compared whenever the frame is read. Short
//! transfers are continued.
//!
//! # How it is read and written
//!
//! Around the page cache (`O_DIRECT`), so that what was taken out of RAM is not kept there a second time; where the file
//! system cannot do that, or [`FileConfig::through_page_cache`] asks for it, through it. Frames that follow each other are one request, and all requests of a call
//! are given to the kernel at once by an io_uring. Where there is none (it can be forbidden: `io_uring_disabled`,
//! seccomp) each is a `pread` or `pwrite`.
//!
//! After its construction the device allocates nothing, prints nothing, uses no thread-local storage and does not
//! panic. After a fork the child must not use it, because both would hand out the same frames, unless it makes it its
//! own ([`FileDevice::another_file`]).

mod device;
mod frames;
mod open;
mod ring;
mod transfer;
mod zeroed;

#[cfg(test)]
mod tests;

pub use device::{FileConfig, FileDevice, PATIENCE};
pub use open::FileError;
