//! Heterogeneous memory management in user space.
//!
//! An [`AddressSpace`] gives a process more memory than it may hold in RAM: at most a budget of it is resident, the rest
//! lives on devices ([`device::Device`]), and comes home when it is touched.
//!
//! ```no_run
//! use std::sync::Arc;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = Arc::new(hmm::lz4::Lz4::new(hmm::lz4::Lz4Config::new(1 << 30))?);
//! let space = hmm::AddressSpace::builder().ram(64 << 20).device(pool).build()?;
//! let mut memory = space.alloc(256 << 20)?;
//! memory.as_mut_slice::<u64>().fill(42);
//! println!("{} pages are away", space.stats().away);
//! # Ok(())
//! # }
//! ```
//!
//! The same runtime, over memory that it finds instead of memory that it is asked for, is what `hmm run` preloads into
//! unmodified programs: [`runtime::Runtime`].

pub mod adopt;
mod books;
pub mod calibrate;
mod callers;
mod clock;
pub mod control;
mod divided;
pub mod door;
mod drive;
pub mod extents;
mod forbidden;
mod frames;
mod freeze;
pub mod handover;
pub mod heap;
pub mod hints;
mod hunger;
mod in_thread;
pub mod inherit;
mod leave;
pub mod loaded;
pub mod manage;
mod messages;
mod migrating;
pub mod mirror;
pub mod mm;
mod moves;
pub mod open;
mod pin;
mod place;
mod put_off;
mod ranges;
pub mod rehearsal;
pub mod runtime;
mod sigbus;
mod space;
pub mod spec;
mod statics;
mod unshared;
mod untold;
mod waiter;
mod waits;
mod walk;
mod withhold;

pub use heap::Heap;
pub use hmm_core as core;
pub use hmm_core::policy::Name as PolicyName;
pub use hmm_device as device;
pub use hmm_lz4 as lz4;
pub use hmm_uapi as uapi;
pub use in_thread::{Faults, InThreadError};
pub use migrating::Migrating;
pub use pin::{PinError, Pinned};
pub use space::{AddressSpace, BuildError, Builder, Plain, Region, Snapshot};
