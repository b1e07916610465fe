//! Being written.

mod budget;
mod classes;
mod config;
mod content;
mod device;
mod frames;
mod lanes;
mod pool;
mod slabs;
mod stats;
mod vault;
mod word;

#[cfg(test)]
mod test_pool;

pub mod codec;

pub use config::{Lz4Config, Lz4Error};
pub use device::Lz4;
pub use pool::PoolMemory;
pub use stats::Lz4Stats;
