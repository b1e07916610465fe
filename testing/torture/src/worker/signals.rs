//! Signals that memory raises. In the worker's areas, with a device that fails on purpose, SIGBUS says that a page is
//! lost: it is replaced by a fresh one, as a program would do that can, and noted. Everything else is a finding.

use std::ffi::{c_int, c_void};
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::finding::{FINDING, FOUND, LOST, end};
use super::place::{PAGE, area};
use super::thread::{MAX_THREADS, Progress};

/// Room for what a signal tells of, of as many threads as there may be.
const MAX_LINE: usize = 512;
/// Pages of all areas together.
pub(crate) const MAX_PAGES: usize = 1 << 18;
/// Those that were lost, and not yet asked for.
static LOST_PAGES: [AtomicU64; MAX_PAGES / 64] = [const { AtomicU64::new(0) }; MAX_PAGES / 64];
/// So many in all.
static NR_LOST: AtomicU64 = AtomicU64::new(0);
/// Whether pages may be lost.
static MAY_LOSE: AtomicBool = AtomicBool::new(false);

/// Has the signals handled.
pub(crate) fn install(may_lose: bool) {
    MAY_LOSE.store(may_lose, Ordering::Relaxed);
    let handler: extern "C" fn(c_int, *const libc::siginfo_t, *const c_void) = on_signal;
    // SAFETY: all zeroes is a value of it.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    for signal in [libc::SIGBUS, libc::SIGSEGV] {
        // SAFETY: the handler makes system calls only, and ends the process or has the access made again.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
}

/// Whether pages may be lost.
pub(crate) fn may_lose() -> bool {
    MAY_LOSE.load(Ordering::Relaxed)
}

/// Pages lost so far.
pub(crate) fn nr_lost() -> u64 {
    NR_LOST.load(Ordering::Relaxed)
}

/// Whether this page of the areas was lost since it was asked for last.
pub(crate) fn take_lost(page: usize) -> bool {
    let bit = 1 << (page % 64);
    let word = &LOST_PAGES[page / 64];
    word.load(Ordering::Relaxed) & bit != 0 && word.fetch_and(!bit, Ordering::Relaxed) & bit != 0
}

extern "C" fn on_signal(signal: c_int, info: *const libc::siginfo_t, _context: *const c_void) {
    // SAFETY: the kernel gives it to handlers of this kind.
    let info = unsafe { &*info };
    // SAFETY: these signals have an address.
    let addr = unsafe { info.si_addr() }.addr();
    let areas = area(0, MAX_PAGES * PAGE);
    if signal == libc::SIGBUS && may_lose() {
        let Some(page) = addr.checked_sub(areas.addr()).map(|at| at / PAGE).filter(|page| *page < MAX_PAGES)
        else {
            end(LOST)
        };
        NR_LOST.fetch_add(1, Ordering::Relaxed);
        LOST_PAGES[page / 64].fetch_or(1 << (page % 64), Ordering::Relaxed);
        if areas.pages(page, 1).map(libc::PROT_READ | libc::PROT_WRITE, 0).is_ok() {
            return;
        }
    }
    let mut line = [0; MAX_LINE];
    let mut rest = &mut line[..];
    // No allocation: the allocator may be what failed.
    let (pid, nr_lost) = (std::process::id(), nr_lost());
    let _too_long = write!(
        rest,
        "{FINDING}signal {signal} (code {}) at {addr:#x} in {pid}, which has lost {nr_lost} pages; threads do",
        info.si_code
    );
    for thread in 0..MAX_THREADS {
        match Progress::of(thread) {
            (0, _) => {}
            (nr_done, operation) => _ = write!(rest, " {operation} ({nr_done} done)"),
        }
    }
    let _too_long = rest.write_all(b"\n");
    let len = MAX_LINE - rest.len();
    // SAFETY: the line's own bytes.
    unsafe { libc::write(2, line.as_ptr().cast(), len) };
    end(FOUND)
}
