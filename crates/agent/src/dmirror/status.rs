//! What programs see of the devices without opening them, and of their descriptors: character devices.

#![expect(unreachable_pub, reason = "called through the dynamic symbol table")]

use std::ffi::{c_char, c_int};

use super::calls::{device_fd, device_of};
use crate::errno::failed;
use crate::next::Next;

type Access = unsafe extern "C" fn(*const c_char, c_int) -> c_int;
type Stat = unsafe extern "C" fn(*const c_char, *mut libc::stat) -> c_int;
type FStat = unsafe extern "C" fn(c_int, *mut libc::stat) -> c_int;

// SAFETY: the type is that of access(2).
static ACCESS: Next<Access> = unsafe { Next::new(c"access", no_access) };
// SAFETY: the type is that of stat(2).
static STAT: Next<Stat> = unsafe { Next::new(c"stat", no_stat) };
// SAFETY: the type is that of fstat(2).
static FSTAT: Next<FStat> = unsafe { Next::new(c"fstat", no_fstat) };

/// Looks the functions up, while there is only one thread.
pub(crate) fn install() {
    ACCESS.get();
    STAT.get();
    FSTAT.get();
}

unsafe extern "C" fn no_access(path: *const c_char, mode: c_int) -> c_int {
    // SAFETY: the system call, with the caller's arguments.
    let result = unsafe { libc::syscall(libc::SYS_access, path, mode) };
    c_int::try_from(result).unwrap_or(-1)
}

unsafe extern "C" fn no_stat(path: *const c_char, status: *mut libc::stat) -> c_int {
    // SAFETY: the system call, with the caller's arguments.
    let result = unsafe { libc::syscall(libc::SYS_stat, path, status) };
    c_int::try_from(result).unwrap_or(-1)
}

unsafe extern "C" fn no_fstat(fd: c_int, status: *mut libc::stat) -> c_int {
    // SAFETY: the system call, with the caller's arguments.
    let result = unsafe { libc::syscall(libc::SYS_fstat, fd, status) };
    c_int::try_from(result).unwrap_or(-1)
}

/// Says that it is a character device that everybody may use.
///
/// # Safety
/// `status` can be written to.
unsafe fn describe(status: *mut libc::stat) {
    // SAFETY: a structure of integers, for which zero is a value.
    let mut device: libc::stat = unsafe { std::mem::zeroed() };
    device.st_mode = libc::S_IFCHR | 0o666;
    device.st_nlink = 1;
    device.st_blksize = 4096;
    // SAFETY: the caller's promise.
    unsafe { status.write(device) };
}

/// See `access(2)`.
///
/// # Safety
/// As of `access(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn access(path: *const c_char, mode: c_int) -> c_int {
    // SAFETY: the caller's promise.
    match unsafe { device_of(path) } {
        // SAFETY: the caller's promise.
        None => unsafe { ACCESS.get()(path, mode) },
        Some(_) if mode & libc::X_OK != 0 => failed(hmm::uapi::Errno::ACCESS),
        Some(_) => 0,
    }
}

/// See `stat(2)`.
///
/// # Safety
/// As of `stat(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stat(path: *const c_char, status: *mut libc::stat) -> c_int {
    // SAFETY: the caller's promise.
    if unsafe { device_of(path) }.is_none() {
        // SAFETY: the caller's promise.
        return unsafe { STAT.get()(path, status) };
    }
    // SAFETY: the caller's promise.
    unsafe { describe(status) };
    0
}

/// See `stat(2)`.
///
/// # Safety
/// As of `stat(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stat64(path: *const c_char, status: *mut libc::stat) -> c_int {
    // SAFETY: the same function on 64-bit systems.
    unsafe { stat(path, status) }
}

/// See `fstat(2)`.
///
/// # Safety
/// As of `fstat(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fstat(fd: c_int, status: *mut libc::stat) -> c_int {
    if device_fd(fd).is_none() {
        // SAFETY: the caller's promise.
        return unsafe { FSTAT.get()(fd, status) };
    }
    // SAFETY: the caller's promise.
    unsafe { describe(status) };
    0
}

/// See `fstat(2)`.
///
/// # Safety
/// As of `fstat(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fstat64(fd: c_int, status: *mut libc::stat) -> c_int {
    // SAFETY: the same function on 64-bit systems.
    unsafe { fstat(fd, status) }
}
