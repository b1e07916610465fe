//! What the program keeps from the children of its forks: mappings that they do not get (`MADV_DONTFORK`), and those that
//! are zeroes to them (`MADV_WIPEONFORK`). The child's copy of the engine knows them as its parent did, and has to forget
//! what it knows, before anybody can be given the parent's bytes.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};

use hmm::runtime::Runtime;
use hmm::uapi::Errno;

/// Whether the program has ever asked for it: to look for such mappings takes long.
static IS_USED: AtomicBool = AtomicBool::new(false);

/// Takes note of a `madvise(2)`.
pub(crate) fn note(advice: c_int) {
    if matches!(advice, libc::MADV_DONTFORK | libc::MADV_WIPEONFORK) {
        IS_USED.store(true, Ordering::Relaxed);
    }
}

/// In the child of a fork, whose engine stands still.
pub(crate) fn forget(runtime: &Runtime) -> Result<(), Errno> {
    if IS_USED.load(Ordering::Relaxed) { runtime.forget_what_was_withheld() } else { Ok(()) }
}
