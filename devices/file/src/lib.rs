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
//! Blocks of 4096 bytes, of which pages take as few as can be. There is nothing else: no header, no checksums, no
//! index. All of that is in memory, because the file means nothing to anybody else: it has no name (`O_TMPFILE`;
//! where the file system has none, its name is removed at once), so that it is gone with its last user, however that
//! ends. It is sparse, and grows up to the capacity; the room of freed frames is used again, and given back to the
//! file system with the file.
//!
//! - Same-filled pages (one 64-bit word, over and over) take no block: the word is in the frame's table entry.
//! - Others are compressed together as *units*: as many consecutive pages as fit into one block. To read one page
//!   alone takes one block, as if nothing were compressed.
//! - Where not even two pages fit into a block, those of an [`Access::Stream`](hmm_device::Access::Stream) are units
//!   of up to four blocks side by side, if these hold at least one page more than there are blocks.
//! - What does not compress is stored as it is, and everything is [without
//!   compression](FileConfig::with_compression): a page in a block.
//!
//! Nothing is smaller than a block of 4096 bytes, though direct I/O can often transfer 512: file systems make writes
//! of parts of their own blocks wait for each other, and a disk takes as long for one as for eight.
//!
//! # How full it is
//!
//! [`usage`](hmm_device::Device::usage) tells of blocks in use. There are 16 descriptors for each block, so that
//! [`alloc`](hmm_device::Device::alloc) has one where there is room: it is the store that says
//! [`OutOfMemory`](hmm_device::DeviceError::OutOfMemory), with the page still the caller's, when no block is free,
//! and never before: units of several blocks are made only where so many lie side by side, and while an eighth of all
//! is free.
//!
//! A unit's blocks are free when the last of its frames has ended. Nothing is moved together, and little needs to be:
//! a block never holds less than one living page, as without compression, but for those of units of four blocks,
//! which one page can hold. So a file of `n` blocks takes at least `n` pages of what is stored while nothing ends,
//! whatever is in them, and in the worst case, when one page is left of each unit of four, it is full with `n / 4`.
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
//! Each frame has a 64-bit fingerprint of its page in memory (16 bytes a frame, with the word that says where it is),
//! which is compared whenever the frame is read: after decompression, which stays within its bounds whatever it
//! reads. Short transfers are continued.
//!
//! # How it is read and written
//!
//! Around the page cache (`O_DIRECT`), so that what was taken out of RAM is not kept there a second time; where the
//! file system cannot do that, or [`FileConfig::through_page_cache`] asks for it, through it. The units of a call are
//! written side by side where there is room, and neighbours in the file are one request, also when they are read; all
//! requests of a call are given to the kernel at once [by an io_uring](By::Uring), or [by `io_submit`](By::Aio). What was
//! compressed is read in parts of up to 96 KiB, and what has come is decompressed while the rest is under way. Where there is neither (they can be forbidden: `io_uring_disabled`, seccomp) each
//! is a `pread` or `pwrite`.
//!
//! Compression and transfers are done without a lock for all: eight calls at a time have working memory of their own.
//!
//! After its construction the device allocates nothing, prints nothing, uses no thread-local storage and does not
//! panic. After a fork the child must not use it, because both would store to the same blocks, unless it makes it its
//! own ([`FileDevice::inherit`]): then it has what its parent had, without a copy.

mod bits;
mod blocks;
mod device;
mod entry;
mod fetch;
mod files;
mod flight;
mod lane;
mod open;
mod queue;
mod share;
mod store;
mod table;
mod transfer;
mod zeroed;

#[cfg(test)]
mod tests;

pub use device::{By, FileConfig, FileDevice, PATIENCE};
pub use open::FileError;

/// What the file is divided into: direct I/O is in multiples of it, and a page fits into one as it is.
const BLOCK_BYTES: usize = hmm_device::PAGE_SIZE;
