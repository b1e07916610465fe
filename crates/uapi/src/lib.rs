//! The one crate of hmm that talks to the kernel, and the home of most of its `unsafe`.
//!
//! Everything but [`probe`] and the errors' texts works on a raw thread ([`thread`]) inside a foreign process: system
//! calls are made directly, never through libc, so that nothing here reads thread-local storage, sets `errno`,
//! allocates, prints, or takes a lock. What is called on the fault path does not panic either.
//!
//! Where `unsafe` lies:
//!
//! - [`Userfaultfd::register`] is unsafe: it is what makes reads of ordinary memory depend on us. With that promise
//!   given, filling, protecting and poisoning holes of a registered range are safe;
//! - [`Userfaultfd::move`](Userfaultfd::move) is unsafe: its source can be any memory of the process, and is empty
//!   afterwards;
//! - addresses are plain `u64`: the pages behind them are the program's, change behind our back and are never seen
//!   through references (I7).

mod fd;
mod ioc;
mod range;
mod syscall;

pub mod aio;
pub mod claim;
pub mod mapping;
pub mod maps;
pub mod pagemap;
pub mod probe;
pub mod process_vm;
pub mod procfs;
pub mod sys;
pub mod tasks;
pub mod thread;
pub mod uffd;

pub use fd::Fd;
pub use mapping::{Mapping, SharedMapping};
pub use maps::{Maps, Vma, VmaKind};
pub use pagemap::Pagemap;
pub use range::AddrRange;
pub use rustix::io::Errno;
pub use syscall::any_syscall;
pub use uffd::Userfaultfd;

/// Bytes in a page: the only size that hmm supports. [`probe`] says when the machine's differs.
pub const PAGE_BYTES: u64 = PAGE_SIZE as u64;

const PAGE_SIZE: usize = 4096;
