//! Raw threads: threads of this process that libc does not know.
//!
//! A program's libc cannot signal them, wait for them, count them or run its thread-exit code in them, and they can
//! have a descriptor table of their own, which a program that closes every descriptor does not reach. In return they
//! must not use anything of libc's that needs its thread descriptor, nor thread-locals of Rust.
//!
//! The caller gives a block of zeroed memory as the thread's local storage:
//!
//! ```text
//! tls                                      thread pointer (fs base)                              tls + tls_len
//!  | static TLS of the program's libraries  | TCB: self at +0 and +16, dtv at +8 .. locals .. exit word |
//! ```
//!
//! So a stray write to `errno` or another static thread-local lands in this block, and libc finds a descriptor of
//! zeroes that says "nothing special". A *dynamic* thread-local (those of a preloaded library are, unless compiled for
//! the initial-exec model) is found through the dtv. Without [`Locals`] that is null, and touching one crashes at once. With
//! them those of one library work as far as they need no destructor: a panic of Rust's gets as far as the hook, and can be told.
//!
//! Signals are blocked in the thread from its first instruction, those that libc keeps to itself included.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use linux_raw_sys::general as raw;
use rustix::io::Errno;

use crate::sys::{Scope, SignalsBlocked, futex_wait};
use crate::syscall::syscall;

mod locals;

use locals::LOCALS_BYTES;
pub use locals::Locals;

/// Bytes at the end of the local storage for what the thread pointer points to.
pub const TCB_BYTES: usize = 8192;
/// Least local storage. It has room for 12 KiB of static thread-locals: enough where the program itself has few.
/// Give more where it has many: they lie between the thread pointer and those of libc.
pub const MIN_TLS_BYTES: usize = 20 * 1024;
/// Least stack.
pub const MIN_STACK_BYTES: usize = 16 * 1024;

/// Where in the TCB the library's thread-locals are: behind more than libc's thread descriptor has (2304 bytes in glibc 2.36), so
/// that what libc looks up there is inside, and zero.
const LOCALS_OFFSET: usize = 4096;
/// Where in the TCB the kernel clears a word at the thread's exit: at the very end.
const EXIT_WORD_OFFSET: usize = TCB_BYTES - 64;
const _: () = assert!(LOCALS_OFFSET + LOCALS_BYTES <= EXIT_WORD_OFFSET);

/// What a raw thread stands on.
#[derive(Clone, Copy, Debug)]
pub struct Spawn {
    /// Lowest byte of its stack.
    pub stack: NonNull<u8>,
    /// Bytes of its stack, at least [`MIN_STACK_BYTES`].
    pub stack_len: usize,
    /// Lowest byte of its local storage, zeroed and aligned to 64.
    pub tls: NonNull<u8>,
    /// Bytes of its local storage, a multiple of 64, at least [`MIN_TLS_BYTES`].
    pub tls_len: usize,
    /// Whether it shares the descriptor table, or gets a copy of its own as it is now.
    pub share_files: bool,
    /// Thread-locals of the library that its code is of. Those that do not [fit](Locals::fit) are left out.
    pub locals: Option<Locals>,
}

/// A raw thread that was started.
#[derive(Debug)]
pub struct RawThread {
    tid: i32,
    /// 1 while it lives; the kernel sets it to 0 and wakes waiters when the thread is off its stack.
    alive: NonNull<AtomicU32>,
}

// SAFETY: the word is an atomic in memory that outlives the handle, by the contract of `clone_thread`.
unsafe impl Send for RawThread {}
// SAFETY: as above.
unsafe impl Sync for RawThread {}

impl RawThread {
    /// The kernel's number of the thread.
    pub const fn tid(&self) -> i32 {
        self.tid
    }

    /// Whether the thread is gone: from then on its stack and local storage can be used for something else.
    pub fn has_exited(&self) -> bool {
        self.word().load(Ordering::Acquire) == 0
    }

    /// Waits for the thread's end, but not longer than `timeout` between two wake-ups; tells whether it came.
    pub fn join(&self, timeout: Duration) -> bool {
        loop {
            if self.has_exited() {
                return true;
            }
            if futex_wait(self.word(), Scope::Shared, 1, Some(timeout)) == Err(Errno::TIMEDOUT) {
                return self.has_exited();
            }
        }
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: the word lies in the thread's local storage, which outlives the handle by the contract of
        // `clone_thread`; all access to it is atomic.
        unsafe { self.alive.as_ref() }
    }
}

/// Ends the calling raw thread. Never to be called by a thread that libc made.
pub fn exit_thread() -> ! {
    loop {
        // SAFETY: ends this thread; nothing of it is needed any more, as its entry point never returns.
        let _ = unsafe { syscall(raw::__NR_exit, [0; 5]) };
    }
}

/// Starts a raw thread in `entry`, which ends it by [`exit_thread`].
///
/// # Safety
/// 1. The stack and the local storage are mapped, readable and writable, nobody else uses them until the thread has
///    exited, and the local storage is mapped as long as the [`RawThread`] lives. Neither is ever managed memory (I6).
/// 2. `arg` is what `entry` expects, and may be used by another thread.
/// 3. What `entry` calls needs no thread-locals beyond the local storage's room, does not unwind, and does not return
///    into libc's idea of a thread (no spawning, no `std::thread::current`, no allocation by the program's `malloc`).
///
/// # Errors
/// `EINVAL`: a size or an alignment is not as [`Spawn`] says. `EAGAIN`: the limit of threads. `ENOMEM`. `EPERM`: a
/// filter forbids it. `ENOSYS`: this architecture's entry sequence has not been written (only `x86_64` has).
pub unsafe fn clone_thread(
    spawn: &Spawn,
    entry: unsafe extern "C" fn(*mut u8) -> !,
    arg: *mut u8,
) -> Result<RawThread, Errno> {
    let well_formed = spawn.stack_len >= MIN_STACK_BYTES
        && spawn.tls_len >= MIN_TLS_BYTES
        && spawn.tls_len.is_multiple_of(64)
        && spawn.tls.addr().get().is_multiple_of(64);
    if !well_formed {
        return Err(Errno::INVAL);
    }
    // SAFETY: the local storage is `tls_len` bytes long, of which the TCB is the last part.
    let tcb = unsafe { spawn.tls.add(spawn.tls_len - TCB_BYTES) };
    // SAFETY: inside the TCB, by the definition of the offset.
    let alive = unsafe { tcb.add(EXIT_WORD_OFFSET) }.cast::<AtomicU32>();
    // SAFETY: the word is mapped, aligned to 64, and nobody's but ours before the thread runs.
    unsafe { alive.write(AtomicU32::new(1)) };
    // SAFETY: inside the TCB, by the definition of the offset.
    let at = unsafe { tcb.add(LOCALS_OFFSET) };
    // SAFETY: so many bytes are there, zeroed and aligned as the TCB is, and nobody's but ours before the thread runs.
    let dtv = spawn.locals.and_then(|locals| unsafe { locals.write(at) });
    let dtv = dtv.map_or(std::ptr::null_mut(), NonNull::as_ptr);
    // SAFETY: as above, for the words that x86_64's ABI and libc want to point to the TCB itself, and to the table.
    unsafe { tcb.cast::<[*mut u8; 3]>().write([tcb.as_ptr(), dtv, tcb.as_ptr()]) };

    let _blocked = SignalsBlocked::new();
    // SAFETY: by the caller's promises; the thread pointer points to a TCB with room for static thread-locals below.
    let tid = unsafe { arch::clone(spawn, tcb, alive, entry, arg) }?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        reason = "thread ids have 22 bits"
    )]
    Ok(RawThread { tid: tid as i32, alive })
}

#[cfg(target_arch = "x86_64")]
mod arch {
    use std::arch::asm;

    use super::{AtomicU32, Errno, NonNull, Spawn, raw};
    use crate::syscall::decode;

    const THREAD: u32 = raw::CLONE_VM
        | raw::CLONE_FS
        | raw::CLONE_SIGHAND
        | raw::CLONE_THREAD
        | raw::CLONE_SETTLS
        | raw::CLONE_CHILD_CLEARTID;

    /// # Safety
    /// As [`clone_thread`](super::clone_thread), and `tcb` is a thread pointer.
    pub(super) unsafe fn clone(
        spawn: &Spawn,
        tcb: NonNull<u8>,
        alive: NonNull<AtomicU32>,
        entry: unsafe extern "C" fn(*mut u8) -> !,
        arg: *mut u8,
    ) -> Result<usize, Errno> {
        let flags = THREAD | if spawn.share_files { raw::CLONE_FILES } else { 0 };
        let top = spawn.stack.as_ptr().wrapping_add(spawn.stack_len);
        // The two words that the new thread pops lie right below the aligned top.
        let top = top.map_addr(|addr| addr & !15).cast::<[*mut u8; 2]>().wrapping_sub(1);
        // SAFETY: inside of the stack, aligned, and nobody's but ours before the thread runs.
        unsafe { top.write([arg, entry as *mut u8]) };
        let ret: isize;
        // SAFETY:
        // 1. the arguments are as `clone(2)` wants them on x86_64: flags, stack, (no) parent word, exit word, TLS.
        // 2. the parent finds its registers as the system call leaves them: rax, rcx and r11 changed, all declared.
        // 3. the child never comes back here: on its own stack, empty and aligned to 16 as the ABI wants before a call,
        //    with no frame pointer, it calls `entry`, which does not return.
        unsafe {
            asm!(
                "syscall",
                "test rax, rax",
                "jnz 2f",
                "xor ebp, ebp",
                "pop rdi",
                "pop rax",
                "call rax",
                "ud2",
                "2:",
                inlateout("rax") raw::__NR_clone as usize => ret,
                in("rdi") u64::from(flags),
                in("rsi") top,
                in("rdx") 0usize,
                in("r10") alive.as_ptr(),
                in("r8") tcb.as_ptr(),
                lateout("rcx") _,
                lateout("r11") _,
            );
        }
        decode(ret)
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod arch {
    use super::{AtomicU32, Errno, NonNull, Spawn};

    /// # Safety
    /// None is needed: it does nothing.
    pub(super) unsafe fn clone(
        _: &Spawn,
        _: NonNull<u8>,
        _: NonNull<AtomicU32>,
        _: unsafe extern "C" fn(*mut u8) -> !,
        _: *mut u8,
    ) -> Result<usize, Errno> {
        Err(Errno::NOSYS)
    }
}
