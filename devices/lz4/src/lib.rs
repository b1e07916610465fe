//! Compressed RAM as a device: lz4 in a pool with a capacity in bytes.
//!
//! ```
//! use hmm_device::{Access, Device, DevicePfn, Fetch, Store};
//! use hmm_lz4::{Lz4, Lz4Config};
//!
//! let device = Lz4::new(Lz4Config::new(64 << 20))?;
//! let mut frames = [DevicePfn(0)];
//! assert_eq!(device.alloc(&mut frames), 1);
//! let page: Vec<u8> = (0..4096_u32).map(|byte| (byte / 16) as u8).collect();
//! let stored = device.store(Store { frames: &frames, bytes: &page, access: Access::Random });
//! assert_eq!(stored.stop, None);
//!
//! let mut back = [0; 4096];
//! assert_eq!(device.fetch(Fetch { frames: &frames, bytes: &mut back }).stop, None);
//! assert_eq!(back[..], page[..]);
//! device.free(&frames);
//! # Ok::<(), hmm_lz4::Lz4Error>(())
//! ```
//!
//! # How a page is stored
//!
//! - Same-filled (one 64-bit word, over and over): as nothing; the word is in the frame's table entry.
//! - [`Access::Random`](hmm_device::Access::Random): as a unit of its own.
//! - [`Access::Stream`](hmm_device::Access::Stream): four consecutive pages as one unit, which ends with the last of
//!   them. A fetch of consecutive pages decompresses it once; a fetch of one page decompresses up to that page.
//! - If compression saves less than a 16th (for a stream unit: a fifth): as it is, 4096 bytes, or page by page.
//!
//! Units lie in slots of 110 sizes, which round up by 2 % on average (stream units: 3 %); slots of a size share slabs of 128 KiB. The
//! index takes 16 bytes a frame: a word that says what and where the frame is, and a 64-bit fingerprint of its content,
//! by which [`holds`](hmm_device::Device::holds) knows it again.
//!
//! What is resident, tables and working memory included, never exceeds the capacity: every page of the pool is charged
//! before it is touched for the first time. Empty slabs go back to the system, but for some that are kept for the next
//! units; when the last frame ends, everything does. Slots of slabs that are not quite empty are not moved together.
//!
//! # Where it can live
//!
//! In a foreign process, on threads without a runtime: after its construction it allocates nothing, keeps nothing
//! thread-local, prints nothing and does not panic. All that grows lies in one run of addresses, which
//! [`Lz4::in_memory`] takes from the caller. After a fork the child has a copy of all of it, by copy on write; no call
//! may be running in another thread at that moment, because its locks would stay locked in the child.
//!
//! # What was measured
//!
//! `cargo run --release --package hmm-lz4 --example codec` (or `throughput`) on 2 vCPUs of an AMD EPYC (Zen 4); a core,
//! compiled for plain x86-64. Ratio, GB/s of compression, GB/s of decompression:
//!
//! | | 4 KiB | 16 KiB | 64 KiB |
//! | --- | --- | --- | --- |
//! | records, lz4_flex | 3.06, 1.14, 2.13 | 3.29, 1.25, 2.73 | 3.51, 1.30, 3.26 |
//! | records, C library | 3.07, 1.14, 2.84 | 3.31, 1.30, 3.64 | 3.58, 1.42, 4.36 |
//! | text, lz4_flex | 1.57, 0.57, 2.85 | 2.07, 0.64, 3.07 | 2.33, 0.60, 3.37 |
//! | text, C library | 1.58, 0.60, 2.96 | 2.08, 0.70, 3.33 | 2.35, 0.77, 3.30 |
//!
//! **Why C.** The pure Rust lz4_flex (unsafe code, checked decoding) compresses single pages as fast, but on structured
//! data decompresses a quarter more slowly at every size, and decompression is what a fault waits for: in the device a
//! fetch takes 1.09 us instead of 1.64. Its safe decoder is another 15 % slower. The C library also
//! decompresses the front of a unit alone, and sees earlier that a page cannot be compressed (5 GB/s).
//!
//! **Why stream units.** Four pages together take 8 % less (records) to 32 % less (text) than alone, compress 14 to 17 %
//! and decompress 12 to 28 % faster. A fetch of a single page out of one takes twice as long, which is why only
//! streams are stored so.
//!
//! **Why verification is an option.** The fingerprint costs 0.15 us a page (rapidhash, 21 to 27 GB/s; xxh3 19 to 26), 13 %
//! of a fetch. On the way in that is 3 %, and it pays for [`holds`](hmm_device::Device::holds), which is 20 times as fast
//! as a store.
//!
//! Per page, in nanoseconds: records stored 4230, fetched 1090 in order and 1420 in no order; incompressible pages stored
//! 3900, of which 2000 are the kernel's for fresh memory, fetched 290; same-filled ones 95 and 72.

mod budget;
mod classes;
mod config;
mod device;
mod entry;
mod frames;
mod pool;
mod slabs;
mod stats;
mod sync;
mod vault;
mod word;

#[cfg(test)]
mod test_pool;

pub use hmm_codec::lz4 as codec;

pub use config::{Lz4Config, Lz4Error};
pub use device::Lz4;
pub use pool::PoolMemory;
pub use stats::Lz4Stats;
