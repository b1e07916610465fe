//! Small system calls: threads, signals, CPUs, futexes, descriptors, advice on memory of others.
//!
//! None of them goes through libc.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use linux_raw_sys::general as raw;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use rustix::thread::{CpuSet, Timespec, futex};

use crate::fd::Fd;
use crate::mapping::Advice;
use crate::maps::Perms;
use crate::range::AddrRange;
use crate::syscall::{any_syscall, syscall};

/// The calling thread.
pub fn gettid() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// The calling process.
pub fn getpid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// Sends a signal to one thread of a process; signal 0 only asks whether it is there.
///
/// # Errors
/// `ESRCH`: no such thread. `EPERM`: not ours. `EINVAL`: no such signal.
#[expect(clippy::cast_sign_loss, reason = "the kernel takes them as they are")]
pub fn tgkill(pid: i32, tid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: the call takes three numbers and touches no memory of ours.
    unsafe { syscall(raw::__NR_tgkill, [pid as usize, tid as usize, signal as usize, 0, 0]) }.map(drop)
}

/// Names the calling thread; the kernel keeps the first 15 bytes.
///
/// # Errors
/// None is expected.
pub fn set_thread_name(name: &CStr) -> Result<(), Errno> {
    rustix::thread::set_name(name)
}

/// The CPU the calling thread runs on, at the time of the call.
pub fn current_cpu() -> usize {
    let mut cpu = 0u32;
    let place = std::ptr::from_mut(&mut cpu).expose_provenance();
    // SAFETY: the call writes a `u32` to the place given, and skips the null pointers.
    // It fails only for bad pointers; by system call because rustix's shortcut looks for the vDSO on first use.
    let _ = unsafe { syscall(raw::__NR_getcpu, [place, 0, 0, 0, 0]) };
    cpu as usize
}

/// The CPUs the thread may run on; `None` means the calling thread.
///
/// # Errors
/// `ESRCH`: no such thread.
pub fn affinity(tid: Option<i32>) -> Result<CpuSet, Errno> {
    rustix::thread::sched_getaffinity(tid.and_then(Pid::from_raw))
}

/// Sets the CPUs a thread may run on; `None` means the calling thread.
///
/// # Errors
/// `EINVAL`: none of the CPUs may be used. `ESRCH`, `EPERM`.
pub fn set_affinity(tid: Option<i32>, cpus: &CpuSet) -> Result<(), Errno> {
    rustix::thread::sched_setaffinity(tid.and_then(Pid::from_raw), cpus)
}

/// Has the calling thread run on that CPU only.
///
/// # Errors
/// `EINVAL`: it may not be used. `EPERM`.
pub fn pin_to(cpu: usize) -> Result<(), Errno> {
    let mut only = CpuSet::new();
    only.set(cpu);
    set_affinity(None, &only)
}

/// While it lives, the thread that made it takes no signals (but those that cannot be blocked).
#[derive(Debug)]
pub struct SignalsBlocked {
    before: u64,
    /// The mask is the thread's: the guard must not leave it.
    not_send: std::marker::PhantomData<*const ()>,
}

impl SignalsBlocked {
    /// Blocks all signals of the calling thread, those that libc keeps to itself included.
    pub fn new() -> Self {
        Self::with_mask(u64::MAX)
    }

    /// The same, but for those that an access of the thread's own can raise: with one of these blocked the kernel ends the process.
    pub fn but_for_faults() -> Self {
        let raised = [raw::SIGBUS, raw::SIGSEGV, raw::SIGILL, raw::SIGFPE, raw::SIGTRAP];
        let mask = raised.into_iter().fold(u64::MAX, |mask, signal| mask & !(1 << (signal - 1)));
        Self::with_mask(mask)
    }

    fn with_mask(mask: u64) -> Self {
        Self { before: set_signal_mask(mask), not_send: std::marker::PhantomData }
    }

    /// Leaves the signals blocked for good.
    pub const fn keep(self) {
        let _ = std::mem::ManuallyDrop::new(self);
    }
}

impl Default for SignalsBlocked {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        set_signal_mask(self.before);
    }
}

/// Sets the calling thread's mask of blocked signals (bit `n` is signal `n + 1`) and gives the one before.
fn set_signal_mask(mask: u64) -> u64 {
    let mut before = 0u64;
    let new = std::ptr::from_ref(&mask).expose_provenance();
    let old = std::ptr::from_mut(&mut before).expose_provenance();
    // SAFETY: the call reads and writes eight bytes each at the places given. It fails only for bad arguments.
    let _ = unsafe { syscall(raw::__NR_rt_sigprocmask, [raw::SIG_SETMASK as usize, new, old, 8, 0]) };
    before
}

/// Who waits on a futex: threads of this process, or of any that map the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Threads of this process only: cheaper.
    Private,
    /// All that share the memory; also what the kernel itself wakes, at a thread's exit.
    Shared,
}

impl Scope {
    const fn flags(self) -> futex::Flags {
        match self {
            Self::Private => futex::Flags::PRIVATE,
            Self::Shared => futex::Flags::empty(),
        }
    }
}

/// Waits until woken, if the word has the value expected. May return for no reason.
///
/// # Errors
/// `EAGAIN`: the word has another value. `ETIMEDOUT`. `EINTR`: a signal came.
pub fn futex_wait(
    word: &AtomicU32,
    scope: Scope,
    expected: u32,
    timeout: Option<Duration>,
) -> Result<(), Errno> {
    let timeout = timeout.map(|time| Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    });
    futex::wait(word, scope.flags(), expected, timeout.as_ref())
}

/// Wakes up to `nr_waiters` threads, and gives how many were.
pub fn futex_wake(word: &AtomicU32, scope: Scope, nr_waiters: u32) -> usize {
    // The kernel counts with a sign. It fails only for bad pointers.
    futex::wake(word, scope.flags(), nr_waiters.min(i32::MAX.unsigned_abs())).unwrap_or(0)
}

/// Closes all descriptors from `first` to `last`, both included.
///
/// # Safety
/// Nobody who shares the descriptor table uses one of them any more, and no owner of one closes it later.
///
/// # Errors
/// `EINVAL`: `last` is below `first`.
pub unsafe fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: the call takes three numbers; what it closes is the caller's promise.
    unsafe { syscall(raw::__NR_close_range, [first as usize, last as usize, 0, 0, 0]) }.map(drop)
}

/// A descriptor that stands for a process.
///
/// # Errors
/// `ESRCH`: no such process. `EMFILE`, `ENFILE`: out of descriptors.
pub fn pidfd_open(pid: i32) -> Result<Fd, Errno> {
    let pid = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).map(Fd::from)
}

/// A copy of descriptor `target` of another process.
///
/// # Errors
/// `EPERM`: we may not trace the process. `EBADF`: it has no such descriptor. `ESRCH`: it is gone.
pub fn pidfd_getfd(pidfd: impl AsFd, target: i32) -> Result<Fd, Errno> {
    rustix::process::pidfd_getfd(pidfd, target, PidfdGetfdFlags::empty()).map(Fd::from)
}

/// A run of memory as system calls take it (`struct iovec`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct IoVec {
    /// Address of the first byte.
    pub addr: usize,
    /// Length in bytes.
    pub len: usize,
}

impl IoVec {
    /// The run of `len` bytes at `addr`.
    pub const fn new(addr: usize, len: usize) -> Self {
        Self { addr, len }
    }
}

/// Runs that one call takes at most.
pub const MAX_IOVECS: usize = 1024;

/// Gives advice on many runs of a process's memory at once, and tells how many bytes it was taken for: fewer than
/// asked when one of the runs failed.
///
/// # Safety
/// As far as the process is this one: the runs' bytes may change as the advice says (to zeroes, for
/// [`Advice::DontNeed`]) without breaking anybody's references.
///
/// # Errors
/// `EINVAL`: more than [`MAX_IOVECS`] runs, one that is not page aligned, or advice that cannot be given this way
/// (destructive kinds: for one's own process only, and since Linux 6.13). `EPERM`, `ESRCH`, `ENOMEM`.
pub unsafe fn process_madvise(pidfd: impl AsFd, runs: &[IoVec], advice: Advice) -> Result<usize, Errno> {
    use std::os::fd::AsRawFd;
    let fd = usize::try_from(pidfd.as_fd().as_raw_fd()).map_err(|_| Errno::BADF)?;
    let list = runs.as_ptr().expose_provenance();
    // SAFETY:
    // 1. the call reads `runs.len()` structs of `iovec`'s layout.
    // 2. what the advice does is the caller's promise.
    unsafe { syscall(raw::__NR_process_madvise, [fd, list, runs.len(), advice.raw() as usize, 0]) }
}

/// Faults the range in as writes would that change nothing: ends sharing with forked processes. Must not be called by
/// who has to answer the faults.
///
/// # Errors
/// `EINVAL`: the range cannot be written to. `ENOMEM`: not mapped, or no memory. `EFAULT`: an access would raise
/// SIGBUS. `EHWPOISON`: poisoned.
pub fn populate_write(range: AddrRange) -> Result<(), Errno> {
    // SAFETY: no byte changes.
    unsafe { madvise(range, Advice::PopulateWrite) }
}

/// Has the kernel write to the page that begins there, without changing it: ends sharing with forked processes. It never waits:
/// where a fault would have to be answered by somebody it fails, so whoever answers faults may call it.
///
/// # Errors
/// `EFAULT`: nothing is there, or it cannot be written to, or a userfaultfd would have to be asked.
pub fn write_nothing(addr: u64) -> Result<(), Errno> {
    /// Or-s the second word with 0, and wakes those who wait for it if it was this value: a waiter looks again anyway.
    const OR_NOTHING: usize = 2 << 28 | 0x82e;
    let nobody_waits = AtomicU32::new(0);
    let operation = (raw::FUTEX_WAKE_OP | raw::FUTEX_PRIVATE_FLAG) as usize;
    let addr = usize::try_from(addr).map_err(|_| Errno::FAULT)?;
    let word = nobody_waits.as_ptr().expose_provenance();
    // SAFETY:
    // 1. the first word lives here; the kernel uses its address only.
    // 2. the other word is or-ed with 0 in one step that is atomic to its owners, or not written to at all.
    unsafe { any_syscall(raw::__NR_futex as usize, [word, operation, 0, 0, addr, OR_NOTHING]) }.map(drop)
}

/// Faults the range in as reads would. Must not be called by who has to answer the faults.
///
/// # Errors
/// As [`populate_write`], but for ranges that cannot be read.
pub fn populate_read(range: AddrRange) -> Result<(), Errno> {
    // SAFETY: no byte changes.
    unsafe { madvise(range, Advice::PopulateRead) }
}

/// Changes what may be done with memory of this process. [`Perms::SHARED`] means nothing here.
///
/// # Safety
/// No reference into the range is used for what is forbidden from now on.
///
/// # Errors
/// As `mprotect(2)`.
pub unsafe fn mprotect(range: AddrRange, perms: Perms) -> Result<(), Errno> {
    let start = usize::try_from(range.start).map_err(|_| Errno::INVAL)?;
    let len = usize::try_from(range.len()).map_err(|_| Errno::INVAL)?;
    let prot =
        [(Perms::READ, raw::PROT_READ), (Perms::WRITE, raw::PROT_WRITE), (Perms::EXEC, raw::PROT_EXEC)]
            .into_iter()
            .filter(|(perm, _)| perms.contains(*perm))
            .fold(raw::PROT_NONE, |prot, (_, bit)| prot | bit);
    // SAFETY: the call takes three numbers; what it does to the range is the caller's promise.
    unsafe { syscall(raw::__NR_mprotect, [start, len, prot as usize, 0, 0]) }.map(drop)
}

/// Gives advice on any memory of this process.
///
/// # Safety
/// The range's bytes may change as the advice says (to zeroes, for [`Advice::DontNeed`]) without breaking anybody's
/// references, and be missing in forked children.
///
/// # Errors
/// As `madvise(2)`.
pub unsafe fn madvise(range: AddrRange, advice: Advice) -> Result<(), Errno> {
    let start = usize::try_from(range.start).map_err(|_| Errno::INVAL)?;
    let len = usize::try_from(range.len()).map_err(|_| Errno::INVAL)?;
    // SAFETY: the call takes three numbers; what it does to the range is the caller's promise.
    unsafe { syscall(raw::__NR_madvise, [start, len, advice.raw() as usize, 0, 0]) }.map(drop)
}
