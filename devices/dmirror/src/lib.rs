//! The device that Linux tests its heterogeneous memory management with, `/dev/hmm_dmirror`, as a driver on hmm.
//!
//! The device does nothing by itself. Programs tell it by ten commands ([`Command`]) to read and write their memory as a
//! device would, to migrate it, to make it exclusive, and to say what it sees. So one can test everything that a driver
//! may do, and programs that were written for Linux's device can do so here.
//!
//! - [`Memory`] is the memory of one device, shared by all who have it open;
//! - [`Mirror`] is one open device: a page table that is kept in step with the opener's, and the commands;
//! - [`Space`] is what a mirror needs of the address space that it mirrors, implemented on the engine, and by a fake in
//!   the tests;
//! - [`Caller`] is who issues a command, perhaps another process than the opener: where its buffers are.
//!
//! # Locks
//!
//! A mirror's table is locked for a few instructions or the copy of a page out of the device's own memory, never while the
//! address space is asked for something. A system page is copied by its address without the lock: that is an access like
//! the CPU's, and as right as one whatever happens meanwhile.

mod abi;
mod fault;
mod memory;
mod migrate;
mod mirror;
mod space;
mod table;

pub use abi::{CMD_BYTES, Cmd, Command, Failure, NR_DEVICES, Number};
pub use memory::{CHUNK_BYTES, Memory};
pub use mirror::{BATCH_PAGES, Caller, Mirror};
pub use space::{Drain, Fill, Kind, Moved, Request, Seen, Space, Vma};
pub use table::{Follow, Table, owner_of};

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
