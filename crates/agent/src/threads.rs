//! The agent's threads.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use hmm::uapi::procfs::Procfs;
use hmm::uapi::tasks;
use hmm::uapi::thread::{RawThread, Spawn, clone_thread, exit_thread};
use hmm::uapi::{Errno, Mapping};

use crate::locals;

const STACK_BYTES: usize = 256 << 10;
/// Local storage: room for the static thread-locals of programs that have many.
const TLS_BYTES: usize = 64 << 10;

/// How many there are in this process.
static NR_RUNNING: AtomicUsize = AtomicUsize::new(0);

/// In the child of a fork, which has none.
pub(crate) fn reset() {
    NR_RUNNING.store(0, Ordering::Relaxed);
}

/// How many there are.
pub(crate) fn nr() -> usize {
    NR_RUNNING.load(Ordering::Relaxed)
}

/// Whether the program has one thread. False also where that cannot be read. For the program's threads.
pub(crate) fn is_program_alone() -> bool {
    let threads = Procfs::open().ok().and_then(|procfs| tasks::threads(&procfs));
    threads.is_some_and(|threads| threads.nr == NR_RUNNING.load(Ordering::Relaxed) + 1)
}

/// Whether none but ours are left: the program's have ended one by one, the last of them not by ending the process. The
/// kernel would keep a process with ours. Gives the status that it ends with then.
pub(crate) fn is_over(procfs: &Procfs) -> Option<i32> {
    let threads = tasks::threads(procfs)?;
    // The first thread is counted until all have ended.
    threads.first_ended.filter(|_| threads.nr == NR_RUNNING.load(Ordering::Relaxed) + 1)
}

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
        locals: locals::own(),
    };
    memory.protect(0, 4096)?;
    NR_RUNNING.fetch_add(1, Ordering::Relaxed);
    // SAFETY:
    // 1. stack and storage are a mapping of their own that is never unmapped and never managed.
    // 2. the argument is a function pointer, as `run` expects.
    // 3. what the threads do uses no thread-locals (the crate's rule), but for what a panic needs.
    let spawned = unsafe { clone_thread(&spawn, run, work as *mut u8) };
    spawned.inspect_err(|_| _ = NR_RUNNING.fetch_sub(1, Ordering::Relaxed))
}

unsafe extern "C" fn run(work: *mut u8) -> ! {
    // SAFETY: `spawn` passes a `fn()`.
    let work: fn() = unsafe { std::mem::transmute(work) };
    work();
    NR_RUNNING.fetch_sub(1, Ordering::Relaxed);
    exit_thread()
}
