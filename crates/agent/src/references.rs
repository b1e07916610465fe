//! Functions of libc by which the kernel comes to refer to pages otherwise than by their addresses, without pinning them: before
//! the first of them memory that the program has left is not used for other pages any more. io_uring is found by its mapping.

#![expect(unreachable_pub, reason = "called through the dynamic symbol table")]

use std::ffi::{c_int, c_long, c_uint, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use hmm::runtime::Runtime;

use crate::MANAGED;
use crate::mailbox::MAILBOX;
use crate::next::Next;

type Vmsplice = unsafe extern "C" fn(c_int, *const libc::iovec, usize, c_uint) -> isize;

// SAFETY: the type is that of vmsplice(2).
static VMSPLICE: Next<Vmsplice> = unsafe { Next::new(c"vmsplice", no_vmsplice) };

unsafe extern "C" fn no_vmsplice(fd: c_int, parts: *const libc::iovec, nr: usize, flags: c_uint) -> isize {
    // SAFETY: the system call, with the caller's arguments; libc's wrapper sets errno.
    let len: c_long = unsafe { libc::syscall(libc::SYS_vmsplice, fd, parts, nr, flags) };
    isize::try_from(len).unwrap_or(-1)
}

/// Looks the function up, while there is only one thread.
pub(crate) fn install() {
    VMSPLICE.get();
}

/// The program wants the kernel to refer to pages.
static WANTED: AtomicBool = AtomicBool::new(false);
/// The engine knows.
static KNOWN: AtomicBool = AtomicBool::new(false);

/// On a thread of the program, which takes no lock of the engine's: has the control thread tell the engine, and waits for that.
fn announce() {
    if MANAGED.load(Ordering::Relaxed) && !KNOWN.load(Ordering::Acquire) {
        WANTED.store(true, Ordering::Release);
        MAILBOX.wait(MAILBOX.poke());
    }
}

/// The control thread's side.
pub(crate) fn serve(runtime: &Runtime) {
    if WANTED.load(Ordering::Acquire) && !KNOWN.load(Ordering::Relaxed) {
        runtime.engine().stop_reusing_memory();
        KNOWN.store(true, Ordering::Release);
    }
}

/// See `vmsplice(2)`. libc's own: a thread that waits there can be cancelled.
///
/// # Safety
/// As of `vmsplice(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsplice(fd: c_int, parts: *const libc::iovec, nr: usize, flags: c_uint) -> isize {
    announce();
    // SAFETY: the caller's arguments.
    unsafe { VMSPLICE.get()(fd, parts, nr, flags) }
}

/// See `setsockopt(2)`. Without `SO_ZEROCOPY` on its socket nothing is sent as it is.
///
/// # Safety
/// As of `setsockopt(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn setsockopt(
    socket: c_int,
    level: c_int,
    option: c_int,
    value: *const c_void,
    len: libc::socklen_t,
) -> c_int {
    if (level, option) == (libc::SOL_SOCKET, libc::SO_ZEROCOPY) {
        announce();
    }
    // SAFETY: the system call, with the caller's arguments; libc's wrapper sets errno.
    let status = unsafe { libc::syscall(libc::SYS_setsockopt, socket, level, option, value, len) };
    c_int::try_from(status).unwrap_or(-1)
}
