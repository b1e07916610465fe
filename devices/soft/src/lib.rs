//! A software accelerator: the reference device of hmm, for those who write drivers, and for tests of everything that a
//! device does.
//!
//! It has memory of its own, smaller than the data it works on if need be, a page table, and compute units with TLBs. Kernels
//! are closures that get a [`Unit`] and access the program's memory by [`Ptr`]s: any pointer of the program is one.
//!
//! ```no_run
//! use hmm_soft::{Ptr, Soft};
//!
//! #[global_allocator]
//! static ALLOCATOR: hmm::Heap = hmm::Heap;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let space = hmm::AddressSpace::builder().build()?;
//! let soft = Soft::builder(&space)?.memory(64 << 20).units(2).build()?;
//! let mut data = vec![1_u64; 1 << 20];
//! let (at, nr) = (Ptr::of_mut(&mut data), data.len());
//! let kernel = |unit: &hmm_soft::Unit<'_>| {
//!     let mine = unit.share(nr);
//!     unit.chunks_mut(at.add(mine.start), mine.len(), |_, words| words.iter_mut().for_each(|word| *word += 1))
//! };
//! // Safe, because nobody else accesses `data` while the kernel runs, and each unit has its own part.
//! unsafe { soft.launch(kernel) }?;
//! assert!(data.iter().all(|word| *word == 2));
//! # Ok(())
//! # }
//! ```
//!
//! # The way of an access
//!
//! ```text
//!     TLB --miss--> page table --miss--> fault buffer --batch--> policy --> migrate --> range fault --> entry --> replay
//!      | hit
//!      +-- a frame of the device: accessed in an access window     (tlb)
//!      +-- a system page: accessed in place, by guarded instructions (trap)
//! ```
//!
//! What is only read stays where it is and is mapped read-only, in place; what is read mostly is copied (`duplicate`); what is
//! written migrates; hints of the program and pages that bounce change that (`policy`, `thrash`). A fault brings 64 KiB, more
//! where the device has most of a block or faults come in order, and all of a huge page (`grow`, `service`), which has one
//! entry (`enter`, `table`, `tlb`). When the memory is full something is evicted (`room`), and what would come back too soon is
//! not brought (`gone`). While units compute, what streams come to is brought (`ahead`).
//!
//! # What others wait for
//!
//! Callbacks of notifiers run on threads that serve the program's faults. They take the table's lock, in which nothing is
//! allocated and nothing waits, and wait for open access windows, in which nothing but the device's own memory is touched.
//! Faults are served on units' threads, which hold no lock that callbacks take (`buffer`, `service`).
//!
//! Everything that callbacks touch is made inside of hmm's private heap, or between guard pages (`own`).

mod ahead;
mod buffer;
mod device;
mod dropped;
mod duplicate;
mod enter;
mod error;
mod frames;
mod gone;
mod grow;
mod host;
mod memory;
mod mirror;
mod own;
mod policy;
mod room;
mod service;
mod soft;
mod space;
mod stats;
mod table;
mod thrash;
mod tlb;
mod trap;
mod unit;
mod word;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub use error::{BuildError, DeviceFault, LaunchError, Why};
pub use memory::Memory;
pub use soft::{Builder, Group, Soft};
pub use stats::Snapshot;
pub use trap::TrapError;
pub use unit::Unit;
pub use word::{AtomicWord, Ptr, Word};
