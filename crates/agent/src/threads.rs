//! The agent's threads.

use std::ptr::NonNull;

use hmm::uapi::thread::{RawThread, Spawn, clone_thread, exit_thread};
use hmm::uapi::{Errno, Mapping};

const STACK_BYTES: usize = 256 << 10;
/// Local storage: room for the static thread-locals of programs that have many.
const TLS_BYTES: usize = 64 << 10;

/// Starts a raw thread in `work`. Its memory comes from the agent's allocator and stays for the life of the process.
pub(crate) fn spawn(share_files: bool, work: fn()) -> Result<RawThread, Errno> {
    let memory = Box::leak(Box::new(Mapping::anonymous(STACK_BYTES + TLS_BYTES)?));
    let base = NonNull::new(memory.as_ptr()).ok_or(Errno::NOMEM)?;
    crate::control::exclude(memory.range());
    let spawn = Spawn {
        // The lowest page of the mapping guards the stack.
        stack: base,
        stack_len: STACK_BYTES,
        // SAFETY: the local storage lies behind the stack in the same mapping.
        tls: unsafe { base.add(STACK_BYTES) },
        tls_len: TLS_BYTES,
        share_files,
    };
    memory.protect(0, 4096)?;
    // SAFETY:
    // 1. stack and storage are a mapping of their own that is never unmapped and never managed.
    // 2. the argument is a function pointer, as `run` expects.
    // 3. what the threads do uses no thread-locals (the crate's rule).
    unsafe { clone_thread(&spawn, run, work as *mut u8) }
}

unsafe extern "C" fn run(work: *mut u8) -> ! {
    // SAFETY: `spawn` passes a `fn()`.
    let work: fn() = unsafe { std::mem::transmute(work) };
    work();
    exit_thread()
}
