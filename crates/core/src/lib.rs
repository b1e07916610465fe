//! The engine of hmm: where the bytes of every page are, and how they get elsewhere.
//!
//! No I/O, no threads, no clock, no unsafe code: the engine reaches the kernel through [`kernel::Kernel`] and devices
//! through [`hmm_device::Device`]; whoever owns threads calls [`Engine`] from as many of them as he likes.
//!
//! # The protocol
//!
//! Three kinds of work meet on a page:
//!
//! - **faults** ([`Engine::fault`]) bring it home;
//! - **reclaim** ([`Engine::reclaim`]) takes blocks out of the program into staging, and migrates what stays there from
//!   staging to a device;
//! - **events** ([`Engine::events`]) say that the program gave pages up or moved them.
//!
//! Locks, always taken in this order: *gate* -> block -> staging, queues -> device. The gate is a read-write lock: whoever
//! changes the program's mappings by what the states say holds it for reading; events are *read from the kernel* and
//! applied while it is held for writing. The kernel holds a program that unmaps until its event is read, so under the
//! gate the states never speak of a mapping that is not there any more.
//!
//! Devices are called without block lock and gate. A page that a device works on is `Fetching` or `Storing` meanwhile;
//! a fault on it parks (the completion wakes it) or is served from staging.

#![forbid(unsafe_code)]

pub mod addr;
pub mod bits;
pub mod driver;
pub mod duplicate;
pub mod hints;
pub mod kernel;
pub mod ledger;
pub mod mirror;
pub mod notifier;
pub mod past;
pub mod policy;
pub mod state;
pub mod stats;
pub mod stream;
pub mod stride;
pub mod trace;

mod adopt;
mod coherent;
mod copies;
mod demote;
mod engine;
mod events;
mod fault;
mod fetch;
mod flights;
mod frames;
mod home;
mod migrate;
mod read_ahead;
mod read_fault;
mod reclaim;
mod recording;
mod registry;
mod reserve;
mod staging;
mod sync;
mod table;
mod thrift;

pub use engine::{Config, Engine, HomeBy, Peeked};
pub use events::Events;
pub use fault::{CHANCE_PAGES, Outcome};
pub use fetch::FETCH_PAGES;
pub use frames::HeldFrame;
pub use reclaim::Reclaimed;
pub use registry::{AddError, DeviceId, MAX_DEVICES};
