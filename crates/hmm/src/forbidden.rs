//! What the kernel says of userfaultfd's verbs only if somebody has forbidden them: a seccomp filter that came over our threads.
//!
//! Such a process cannot go on: what is away does not come back. It must not hang either.

use std::sync::atomic::{AtomicI32, Ordering};

use hmm_core::kernel::Stop;
use hmm_uapi::Errno;

/// 0, or what was said.
static SEEN: AtomicI32 = AtomicI32::new(0);

/// What an errno means to the engine that none of the verbs has for a reason of its own.
pub(crate) fn unsuited(errno: Errno) -> Stop {
    if matches!(errno, Errno::PERM | Errno::ACCESS | Errno::NOSYS) {
        SEEN.store(errno.raw_os_error(), Ordering::Relaxed);
    }
    Stop::Unsuited
}

/// What was said, if it was.
pub(crate) fn seen() -> Option<Errno> {
    let errno = SEEN.load(Ordering::Relaxed);
    (errno != 0).then(|| Errno::from_raw_os_error(errno))
}
