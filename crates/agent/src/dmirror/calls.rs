//! Functions of libc by which programs reach the devices.

#![expect(unreachable_pub, reason = "called through the dynamic symbol table")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_void};
use std::os::fd::{BorrowedFd, IntoRawFd};

use hmm::uapi::Errno;

use super::{client, is_on, names};
use crate::errno::failed;
use crate::next::Next;

// The last argument of these functions is there only if a flag says so. It lies in a register; who does not pass it leaves
// some value there, which is passed on and not looked at.
type Open = unsafe extern "C" fn(*const c_char, c_int, c_uint) -> c_int;
type OpenAt = unsafe extern "C" fn(c_int, *const c_char, c_int, c_uint) -> c_int;
type Open2 = unsafe extern "C" fn(*const c_char, c_int) -> c_int;
type OpenAt2 = unsafe extern "C" fn(c_int, *const c_char, c_int) -> c_int;
type Ioctl = unsafe extern "C" fn(c_int, c_ulong, *mut c_void) -> c_int;
type Close = unsafe extern "C" fn(c_int) -> c_int;

// SAFETY: the type is that of open(2).
static OPEN: Next<Open> = unsafe { Next::new(c"open", no_open) };
// SAFETY: the type is that of openat(2).
static OPENAT: Next<OpenAt> = unsafe { Next::new(c"openat", no_openat) };
// SAFETY: the type is that of open(2) with checks, which has no mode.
static OPEN_2: Next<Open2> = unsafe { Next::new(c"__open_2", no_open_2) };
// SAFETY: the type is that of openat(2) with checks, which has no mode.
static OPENAT_2: Next<OpenAt2> = unsafe { Next::new(c"__openat_2", no_openat_2) };
// SAFETY: the type is that of ioctl(2).
static IOCTL: Next<Ioctl> = unsafe { Next::new(c"ioctl", no_ioctl) };
// SAFETY: the type is that of close(2).
static CLOSE: Next<Close> = unsafe { Next::new(c"close", no_close) };

/// Looks the functions up, while there is only one thread.
pub(crate) fn install() {
    OPEN.get();
    OPENAT.get();
    OPEN_2.get();
    OPENAT_2.get();
    IOCTL.get();
    CLOSE.get();
}

// What is called while a function is looked up, and where there is none: the system call itself.

unsafe extern "C" fn no_open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { no_openat(libc::AT_FDCWD, path, flags, mode) }
}

unsafe extern "C" fn no_openat(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the system call, with the caller's arguments.
    int(unsafe { libc::syscall(libc::SYS_openat, dir, path, flags, mode) })
}

unsafe extern "C" fn no_open_2(path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { no_openat(libc::AT_FDCWD, path, flags, 0) }
}

unsafe extern "C" fn no_openat_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { no_openat(dir, path, flags, 0) }
}

unsafe extern "C" fn no_ioctl(fd: c_int, request: c_ulong, arg: *mut c_void) -> c_int {
    // SAFETY: the system call, with the caller's arguments.
    int(unsafe { libc::syscall(libc::SYS_ioctl, fd, request, arg) })
}

unsafe extern "C" fn no_close(fd: c_int) -> c_int {
    // SAFETY: the system call, with the caller's argument.
    int(unsafe { libc::syscall(libc::SYS_close, fd) })
}

fn int(result: libc::c_long) -> c_int {
    c_int::try_from(result).unwrap_or(-1)
}

/// The address that a system call has returned.
#[expect(clippy::cast_possible_truncation, reason = "addresses have 64 bits here")]
pub(super) const fn address(result: libc::c_long) -> usize {
    result.cast_unsigned() as usize
}

/// The device that a path of the program's names.
///
/// # Safety
/// `path` is null or ends with a zero, as all that takes a path demands.
pub(super) unsafe fn device_of(path: *const c_char) -> Option<hmm_dmirror::Number> {
    if !is_on() || path.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    names::device_of_path(unsafe { CStr::from_ptr(path) })
}

/// Opens the device if the path names one.
///
/// # Safety
/// As of `open(2)`.
unsafe fn open_device(path: *const c_char, flags: c_int) -> Option<c_int> {
    // SAFETY: the caller's promise.
    let device = unsafe { device_of(path) }?;
    Some(match client::open(device, flags & libc::O_CLOEXEC != 0) {
        Ok(fd) => fd.into_raw_fd(),
        Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => failed(errno),
        Err(_) => failed(Errno::NXIO),
    })
}

/// See `open(2)`.
///
/// # Safety
/// As of `open(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the caller's promise.
    let device = unsafe { open_device(path, flags) };
    // SAFETY: the caller's promise.
    device.unwrap_or_else(|| unsafe { OPEN.get()(path, flags, mode) })
}

/// See `open(2)`.
///
/// # Safety
/// As of `open(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the same function on 64-bit systems.
    unsafe { open(path, flags, mode) }
}

/// See `openat(2)`.
///
/// # Safety
/// As of `openat(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the caller's promise.
    let device = unsafe { open_device(path, flags) };
    // SAFETY: the caller's promise.
    device.unwrap_or_else(|| unsafe { OPENAT.get()(dir, path, flags, mode) })
}

/// See `openat(2)`.
///
/// # Safety
/// As of `openat(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat64(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the same function on 64-bit systems.
    unsafe { openat(dir, path, flags, mode) }
}

/// What `open` is to programs that were compiled with checks.
///
/// # Safety
/// As of `open(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __open_2(path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the caller's promise.
    let device = unsafe { open_device(path, flags) };
    // SAFETY: the caller's promise.
    device.unwrap_or_else(|| unsafe { OPEN_2.get()(path, flags) })
}

/// What `open64` is to programs that were compiled with checks.
///
/// # Safety
/// As of `open(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __open64_2(path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the same function on 64-bit systems.
    unsafe { __open_2(path, flags) }
}

/// What `openat` is to programs that were compiled with checks.
///
/// # Safety
/// As of `openat(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __openat_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the caller's promise.
    let device = unsafe { open_device(path, flags) };
    // SAFETY: the caller's promise.
    device.unwrap_or_else(|| unsafe { OPENAT_2.get()(dir, path, flags) })
}

/// What `openat64` is to programs that were compiled with checks.
///
/// # Safety
/// As of `openat(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __openat64_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the same function on 64-bit systems.
    unsafe { __openat_2(dir, path, flags) }
}

/// The program's descriptor, if it leads to a device.
pub(super) fn device_fd<'a>(fd: c_int) -> Option<BorrowedFd<'a>> {
    if !is_on() || fd < 0 {
        return None;
    }
    // SAFETY: not -1. If the program closes it meanwhile, system calls say so.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    names::device_of(fd).map(|_| fd)
}

/// See `ioctl(2)`.
///
/// # Safety
/// As of `ioctl(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, arg: *mut c_void) -> c_int {
    let Some(device) = device_fd(fd) else {
        // SAFETY: the caller's arguments.
        return unsafe { IOCTL.get()(fd, request, arg) };
    };
    // The kernel looks at 32 bits of it.
    #[expect(clippy::cast_possible_truncation, reason = "as the kernel does")]
    let request = request as u32;
    match client::ioctl(device, request, arg.expose_provenance() as u64) {
        Ok(()) => 0,
        Err(errno) => failed(errno),
    }
}

/// See `close(2)`.
///
/// # Safety
/// As of `close(2)`: nobody uses the descriptor any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(fd: c_int) -> c_int {
    // SAFETY: the caller's argument.
    let close = || unsafe { CLOSE.get()(fd) };
    match device_fd(fd) {
        None => close(),
        Some(device) => client::close(device, close),
    }
}
