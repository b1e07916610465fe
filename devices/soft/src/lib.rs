//! A software accelerator: the reference device of hmm.

mod buffer;
mod device;
mod error;
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
