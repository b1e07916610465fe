//! The handler of SIGBUS: for faults that are served in the thread that has them ([`in_thread`](crate::in_thread)).
//!
//! It is installed once and stays. What is none of ours goes to the handler that was there before, or does what the system
//! would have done. All signals that are not of the thread's own making wait until it returns: a handler of the program's that
//! ran in between, and touched a page that is away, would find the locks of the fault below it held by its own thread.
//!
//! It runs on the stack of the thread that faults. The alternate stacks that Rust's threads have are of a few KiB, too
//! little for taking memory out.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use hmm_core::addr::Vpn;
use hmm_uapi::uffd::FaultAccess;
use libc::{c_int, c_void, sigaction, siginfo_t, ucontext_t};
use rustix::io::Errno;

use crate::in_thread;
use crate::runtime::Touch;

/// `si_code`s of SIGBUS: an address without a page, and memory that is lost, found out by a touch of it.
const BUS_ADRALN: c_int = 1;
const BUS_ADRERR: c_int = 2;
const BUS_MCEERR_AR: c_int = 4;
/// Bytes of a set of signals, to the kernel.
const SET_BYTES: usize = 8;
/// What a thread raises by itself is not held back: what faults in the handler has to end the process, not to hang.
const NOT_HELD_BACK: [c_int; 5] = [libc::SIGSEGV, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGABRT];

/// What was there before ours.
static BEFORE: OnceLock<sigaction> = OnceLock::new();
/// It wanted to be called once only, and was.
static IS_SPENT: AtomicBool = AtomicBool::new(false);

/// Installs the handler, at the first call.
///
/// # Errors
/// What `sigaction(2)` says; none is expected.
pub(crate) fn install() -> Result<(), Errno> {
    static DONE: OnceLock<Result<(), Errno>> = OnceLock::new();
    *DONE.get_or_init(|| {
        // SAFETY: of all zeroes it is a valid value: the default action.
        let mut before: sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: writes what is in force to `before`.
        if unsafe { sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before) } != 0 {
            return Err(last_error());
        }
        // Known before ours is in force: it may be called at once.
        let _ = BEFORE.set(before);
        // SAFETY: as above.
        let mut ours: sigaction = unsafe { std::mem::zeroed() };
        ours.sa_sigaction = on_sigbus as *const () as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        // SAFETY: the set is ours to fill.
        unsafe { libc::sigfillset(&raw mut ours.sa_mask) };
        for signal in NOT_HELD_BACK {
            // SAFETY: as above.
            unsafe { libc::sigdelset(&raw mut ours.sa_mask, signal) };
        }
        // SAFETY: the handler is async-signal-safe (module), and keeps `errno`.
        let result = unsafe { sigaction(libc::SIGBUS, &raw const ours, std::ptr::null_mut()) };
        if result == 0 { Ok(()) } else { Err(last_error()) }
    })
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: gives the place of the calling thread's `errno`.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: it is valid as long as the thread lives.
    let errno = unsafe { place.read() };
    // SAFETY: the kernel hands out a valid `siginfo_t`, for as long as the handler runs.
    let told = unsafe { &*info };
    // SAFETY: of SIGBUS it has an address; of one that is sent what is there is not looked at.
    let addr = unsafe { told.si_addr() };
    let touch = Touch { page: Vpn::of_addr(addr.addr() as u64), access: access(context), tid: 0 };
    // Lost pages are the program's to know of.
    let is_served = told.si_code == BUS_ADRERR && in_thread::serve(touch);
    // SAFETY: as for the reading.
    unsafe { place.write(errno) };
    if !is_served {
        pass_on(signal, told.si_code, info, context);
    }
}

/// What the access was that faulted.
#[cfg(target_arch = "x86_64")]
fn access(context: *mut c_void) -> FaultAccess {
    const PRESENT: i64 = 1;
    const WRITE: i64 = 2;
    // SAFETY: the kernel hands out a valid `ucontext_t`, for as long as the handler runs.
    let context = unsafe { &*context.cast::<ucontext_t>() };
    let error = context.uc_mcontext.gregs[libc::REG_ERR.unsigned_abs() as usize];
    match (error & WRITE != 0, error & PRESENT != 0) {
        (true, true) => FaultAccess::WriteProtect,
        (true, false) => FaultAccess::Write,
        (false, _) => FaultAccess::Read,
    }
}

/// It is not told: what serves a write serves a read. Nothing is write-protected in this mode.
#[cfg(not(target_arch = "x86_64"))]
fn access(_: *mut c_void) -> FaultAccess {
    FaultAccess::Write
}

/// It is none of ours.
fn pass_on(signal: c_int, code: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let before = BEFORE.get().filter(|_| !IS_SPENT.load(Ordering::Relaxed));
    let handler = before.map_or(libc::SIG_DFL, |before| before.sa_sigaction);
    // The kernel asks nobody whether what it raises itself is ignored.
    let is_sent = !(BUS_ADRALN..=BUS_MCEERR_AR).contains(&code);
    match before.filter(|_| handler != libc::SIG_DFL && handler != libc::SIG_IGN) {
        Some(before) => call(before, signal, info, context),
        None if handler == libc::SIG_IGN && is_sent => {}
        None => end(signal, is_sent),
    }
}

/// Calls the handler that was there before, with the signals held back that it wants held back.
fn call(before: &sigaction, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    if before.sa_flags & libc::SA_RESETHAND != 0 {
        IS_SPENT.store(true, Ordering::Relaxed);
    }
    let own = if before.sa_flags & libc::SA_NODEFER == 0 { 1 << (signal - 1) } else { 0 };
    let context_of_thread = context.cast::<ucontext_t>();
    // SAFETY: as in `access`. Of the set only as much is the kernel's.
    let set = unsafe { &raw const (*context_of_thread).uc_sigmask };
    // SAFETY: as above, and aligned for what the kernel keeps there.
    let of_thread = unsafe { set.cast::<u64>().read() };
    // SAFETY: a set is larger than that.
    let of_handler = unsafe { (&raw const before.sa_mask).cast::<u64>().read() };
    let held_back: u64 = of_thread | of_handler | own;
    // SAFETY: the call reads a set of the size given. The one before comes back when the handler returns.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const held_back,
            std::ptr::null_mut::<u64>(),
            SET_BYTES,
        )
    };
    if before.sa_flags & libc::SA_SIGINFO == 0 {
        // SAFETY: without the flag it is a function of one argument.
        let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(before.sa_sigaction) };
        handler(signal);
    } else {
        // SAFETY: with the flag it is a function of three.
        let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
            unsafe { std::mem::transmute(before.sa_sigaction) };
        handler(signal, info, context);
    }
}

/// Does as the system would: the process ends when the handler has returned.
fn end(signal: c_int, is_sent: bool) {
    // SAFETY: of all zeroes it is the default action.
    let default: sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: the default action runs no code.
    unsafe { sigaction(signal, &raw const default, std::ptr::null_mut()) };
    if is_sent {
        // An access faults again; this would not come again by itself. It waits until the handler has returned.
        let _ = hmm_uapi::sys::tgkill(hmm_uapi::sys::getpid(), hmm_uapi::sys::gettid(), signal);
    }
}
