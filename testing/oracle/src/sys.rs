//! Errors of system calls, and their names.

use std::io;

/// What a call that returns -1 for an error has returned.
///
/// # Errors
/// The one in `errno`.
pub(crate) fn check(ret: libc::c_int) -> io::Result<()> {
    if ret == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// As it stands in a log: 0, or the name of the error.
pub(crate) fn name(result: &io::Result<()>) -> String {
    let Err(error) = result else { return "0".to_owned() };
    match error.raw_os_error() {
        Some(libc::EPERM) => "EPERM".to_owned(),
        Some(libc::ENOENT) => "ENOENT".to_owned(),
        Some(libc::EINTR) => "EINTR".to_owned(),
        Some(libc::EAGAIN) => "EAGAIN".to_owned(),
        Some(libc::ENOMEM) => "ENOMEM".to_owned(),
        Some(libc::EFAULT) => "EFAULT".to_owned(),
        Some(libc::EBUSY) => "EBUSY".to_owned(),
        Some(libc::EINVAL) => "EINVAL".to_owned(),
        Some(libc::ENOTTY) => "ENOTTY".to_owned(),
        Some(libc::EOPNOTSUPP) => "EOPNOTSUPP".to_owned(),
        Some(number) => format!("E{number}"),
        None => error.to_string().replace(' ', "-"),
    }
}
