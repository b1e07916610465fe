//! What interposed functions return for an error.

use hmm::uapi::Errno;

/// Sets this thread's errno, and gives -1.
pub(crate) fn failed<T: From<i8>>(errno: Errno) -> T {
    // SAFETY: gives this thread's errno.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: valid as long as the thread lives.
    unsafe { place.write(errno.raw_os_error()) };
    T::from(-1)
}
