//! What the child of a fork has of what its parent knew.
//!
//! The program keeps mappings from its children (`MADV_DONTFORK`), or has them zeroes there (`MADV_WIPEONFORK`), and its other
//! threads may be unmapping and moving memory while it forks. The child's copy of the engine knows all of that as its parent
//! did, and has to forget what is not so, before anybody can be given the parent's bytes.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hmm::inherit::{Inherited, More};
use hmm::runtime::Runtime;
use hmm::uapi::Errno;

use crate::control;

/// Whether the program has ever asked for zeroes: to look for such mappings takes long.
static ANY_WIPED: AtomicBool = AtomicBool::new(false);

/// How often the fork that is under way was repeated, as the child sees it.
pub(crate) static NR_REPEATED: AtomicUsize = AtomicUsize::new(0);
/// From then on memory that may have grown in place counts as that. It is found before each fork; if it is there all the same,
/// again and again, it is of a kind that is not looked for.
const MAX_REPEATED: usize = 8;

/// Takes note of a `madvise(2)`.
pub(crate) fn note(advice: c_int) {
    if advice == libc::MADV_WIPEONFORK {
        ANY_WIPED.store(true, Ordering::Relaxed);
    }
}

/// In the child of a fork, whose engine stands still: forgets what is zeroes here.
pub(crate) fn forget_wiped(runtime: &Runtime) -> Result<(), Errno> {
    if ANY_WIPED.load(Ordering::Relaxed) { runtime.forget_wiped() } else { Ok(()) }
}

/// Whether bytes may be missing in this child.
pub(crate) fn is_useless(inherited: &Inherited) -> bool {
    match inherited.more() {
        More::Nothing => false,
        More::Behind => control::has_budget() && NR_REPEATED.load(Ordering::Relaxed) < MAX_REPEATED,
        More::Elsewhere => true,
    }
}
