//! libc's own calls of `mmap`, `brk` and `mremap` come to us, too.
//!
//! `malloc`, new threads and much else in libc map memory without going through the dynamic symbol table: no function that
//! we put in front sees that, and what is touched before we know of it is resident without having been charged (I9). But
//! all of these calls end in libc's thin wrappers of the system calls. So, before the program has a second thread, a
//! jump to our function is written over the first bytes of each wrapper. Nothing of the old body is needed: ours makes the
//! system call itself.
//!
//! The bytes are written by way of `/proc/self/mem`, which needs no writable mapping of code. Where that is not possible,
//! or where a wrapper does not look as expected, libc stays as it is, and the functions of `malloc` that are put in
//! front (`interpose`) notice what they can.

use std::ffi::{CStr, c_void};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::dl::{About, about, libc_handle};
use crate::{brk, interpose, mappings};

/// When this environment variable is there, libc stays as it is: to test what holds then.
const KEEP_ENV: &str = "HMM_KEEP_LIBC";
/// `jmp *0(%rip)`, and behind it the address to go to.
const JUMP: [u8; 6] = [0xff, 0x25, 0, 0, 0, 0];
const JUMP_LEN: usize = JUMP.len() + size_of::<usize>();
/// `syscall`
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// A wrapper is not larger than this: what is does more than wrap.
const MAX_LEN: usize = 256;

static REPLACED: AtomicBool = AtomicBool::new(false);

/// Whether libc's own calls come to us.
#[inline]
pub(crate) fn are_replaced() -> bool {
    REPLACED.load(Ordering::Relaxed)
}

/// Puts ours in the place of libc's. To be called while the program has only one thread.
pub(crate) fn replace() {
    if std::env::var_os(KEEP_ENV).is_none() && cfg!(target_arch = "x86_64") && is_only_thread() {
        REPLACED.store(try_replace().is_some(), Ordering::Relaxed);
    }
}

/// A thread that is inside of a body must not find other instructions there.
fn is_only_thread() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1)
}

fn try_replace() -> Option<()> {
    // All are looked at before one is changed.
    let needed = [
        (wrapper(c"mmap")?, (interpose::mmap as *const ()).addr()),
        (wrapper(c"brk")?, (brk::brk as *const ()).addr()),
    ];
    // Not to learn of memory, but to move it as we do: better than not at all.
    let wished = wrapper(c"mremap").map(|libc| (libc, (mappings::mremap as *const ()).addr()));
    let wrappers = needed.into_iter().chain(wished);
    let memory = File::options().write(true).open("/proc/self/mem").ok()?;
    for (number, (wrapper, ours)) in wrappers.enumerate() {
        let mut code = [0; JUMP_LEN];
        code[..JUMP.len()].copy_from_slice(&JUMP);
        code[JUMP.len()..].copy_from_slice(&ours.to_ne_bytes());
        let written = memory.write_all_at(&code, wrapper.addr() as u64);
        // A body that calls ours is right without the other one. But who thinks that all of them do would be wrong.
        if written.is_err() && number == 0 {
            return None;
        }
        written.ok()?;
    }
    Some(())
}

/// libc's function of that name, if it is a wrapper of a system call, and long enough for the jump.
fn wrapper(name: &CStr) -> Option<*const u8> {
    let libc = libc_handle()?;
    // SAFETY: looks a function up in it.
    let function = unsafe { libc::dlsym(libc, name.as_ptr()) };
    let len = symbol_len(function)?;
    if function.is_null() || !(JUMP_LEN..=MAX_LEN).contains(&len) {
        return None;
    }
    // SAFETY: the function's code has that many bytes, and is never changed but by us.
    let body = unsafe { std::slice::from_raw_parts(function.cast::<u8>(), len) };
    body.windows(SYSCALL.len()).any(|bytes| bytes == SYSCALL).then_some(function.cast())
}

/// Bytes of the function's code, by libc's table of symbols.
fn symbol_len(function: *mut c_void) -> Option<usize> {
    let symbol = about(function, About::Symbol)?;
    // SAFETY: it is a symbol of the library's table, which stays as long as libc.
    let size = unsafe { (*symbol.cast::<libc::Elf64_Sym>()).st_size };
    usize::try_from(size).ok()
}
