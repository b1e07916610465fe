//! Linux's HMM test devices, for programs that open `/dev/hmm_dmirror0` to `3`.
//!
//! # The protocol
//!
//! ```text
//!  program's thread                          device thread of the process that opened
//!  open("/dev/hmm_dmirror0"):
//!    fd = socket, connected to a listener -> accepts: an open device, a mirror of this process
//!  ioctl(fd, ..), perhaps in another process:
//!    request, with one end of a pair ------> reads the caller's structure and buffer, does it,
//!    <-------------------------- answer ---  writes them
//!  close(fd), and the process exits, ...:
//!    the last copy of fd goes -------------> hears the end: everything comes home
//! ```
//!
//! So the descriptor that the program has is a real one, a socket. It survives `dup`, `fork`, `exec` and being sent to
//! others, and whoever has it reaches the process that opened it, whose memory the device mirrors. Its peer's name tells
//! which device it is ([`names`]). The listener's name has the process in it, so that nobody else's device is opened.
//!
//! Commands are not carried out on the caller's thread, even where that is the opener's: its stack may be managed
//! memory, which nobody may touch while holding the engine's locks (I6). The device thread is one of the agent's. It
//! reaches the caller's memory as other processes do (`process_vm_readv`), so that a wrong address is an error and not
//! a crash.
//!
//! The interposed functions ([`calls`], [`status`]) only make system calls, and allocate nothing. Where there are no test
//! devices they cost a load and a branch.

mod calls;
mod client;
mod files;
mod map;
mod migration;
mod names;
mod server;
mod space;
mod status;
mod writable;

use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use map::map;
pub(crate) use server::{forget, listen, reserve, serve, share_frames};

/// Whether there are test devices.
static ON: AtomicBool = AtomicBool::new(false);

/// Whether there are test devices in this run.
#[inline]
pub(crate) fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Looks up what the interposed functions call, while there is only one thread.
pub(crate) fn install() {
    calls::install();
    status::install();
}

/// From now on there are. Called when the listeners are there, before the program begins.
fn turn_on() {
    ON.store(true, Ordering::Release);
}
