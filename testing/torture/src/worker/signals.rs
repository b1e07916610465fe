//! Signals that memory raises. In the worker's areas, with a device that fails on purpose, SIGBUS says that a page is
//! lost: it is replaced by a fresh one, as a program would do that can, and noted. Everything else is a finding.

use std::ffi::{c_int, c_void};
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::finding::{FINDING, FOUND, LOST, end};
use super::place::{PAGE, area};
use super::thread::{MAX_THREADS, Progress};
use super::trail;

/// Room for what a signal tells of, of as many threads as there may be.
const MAX_LINE: usize = 512;
/// Changes of its page that it tells of at most, the last ones.
const MAX_STEPS: usize = 16;
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

/// A page of the areas was lost.
fn note_lost(page: usize) {
    NR_LOST.fetch_add(1, Ordering::Relaxed);
    LOST_PAGES[page / 64].fetch_or(1 << (page % 64), Ordering::Relaxed);
}

/// As if a device had lost it.
#[cfg(test)]
pub(crate) fn lose(page: usize) {
    MAY_LOSE.store(true, Ordering::Relaxed);
    note_lost(page);
}

extern "C" fn on_signal(signal: c_int, info: *const libc::siginfo_t, _context: *const c_void) {
    // SAFETY: the kernel gives it to handlers of this kind.
    let info = unsafe { &*info };
    // SAFETY: these signals have an address.
    let addr = unsafe { info.si_addr() }.addr();
    let areas = area(0, MAX_PAGES * PAGE);
    let page = addr.checked_sub(areas.addr()).map(|at| at / PAGE).filter(|page| *page < MAX_PAGES);
    if signal == libc::SIGBUS && may_lose() {
        let Some(page) = page else { end(LOST) };
        note_lost(page);
        if areas.pages(page, 1).map(libc::PROT_READ | libc::PROT_WRITE, 0).is_ok() {
            return;
        }
    }
    // No allocation: the allocator may be what failed.
    let (pid, nr_lost) = (std::process::id(), nr_lost());
    tell(|rest| {
        write!(
            rest,
            "signal {signal} (code {}) at {addr:#x} in {pid}, which has lost {nr_lost} pages; threads do",
            info.si_code
        )?;
        for thread in 0..MAX_THREADS {
            match Progress::of(thread) {
                (0, _) => {}
                (nr_done, operation) => write!(rest, " {operation} ({nr_done} done)")?,
            }
        }
        Ok(())
    });
    if let Some(page) = page {
        tell_of(addr, page);
    }
    end(FOUND)
}

/// Writes a line of a finding.
fn tell(what: impl FnOnce(&mut &mut [u8]) -> std::io::Result<()>) {
    let mut line = [0; MAX_LINE];
    let mut rest = &mut line[..MAX_LINE - 1];
    let _too_long = write!(rest, "{FINDING}").and_then(|()| what(&mut rest));
    let len = MAX_LINE - rest.len();
    line[len - 1] = b'\n';
    // SAFETY: the line's own bytes.
    unsafe { libc::write(2, line.as_ptr().cast(), len) };
}

/// What was done to the page, and what the kernel has there.
fn tell_of(addr: usize, page: usize) {
    let nr_steps = trail::of(page).count();
    for (ago, step) in trail::of(page).skip(nr_steps.saturating_sub(MAX_STEPS)) {
        tell(|rest| write!(rest, "page {page}, {ago} changes ago: {step}"));
    }
    let mut around = Around { addr, line: [0; MAX_LINE], len: 0 };
    // SAFETY: the name is a string of C's.
    let maps = unsafe { libc::open(c"/proc/self/maps".as_ptr(), libc::O_RDONLY) };
    let mut bytes = [0; 1024];
    loop {
        // SAFETY: there is room for as many.
        let nr_read = unsafe { libc::read(maps, bytes.as_mut_ptr().cast(), bytes.len()) };
        let Some(nr_read) = usize::try_from(nr_read).ok().filter(|nr_read| *nr_read > 0) else { return };
        bytes[..nr_read].iter().for_each(|byte| around.hear(*byte));
    }
}

/// Tells of the mappings that are near an address, of all, byte by byte.
struct Around {
    addr: usize,
    line: [u8; MAX_LINE],
    len: usize,
}

impl Around {
    fn hear(&mut self, byte: u8) {
        /// What is near.
        const NEAR: usize = 64 * PAGE;
        if byte != b'\n' {
            if let Some(place) = self.line.get_mut(self.len) {
                *place = byte;
                self.len += 1;
            }
            return;
        }
        let line = std::str::from_utf8(&self.line[..std::mem::take(&mut self.len)]).unwrap_or_default();
        let mut ends = line.split([' ', '-']).map(|end| usize::from_str_radix(end, 16).unwrap_or(0));
        let (start, end) = (ends.next().unwrap_or(0), ends.next().unwrap_or(0));
        if start < self.addr.saturating_add(NEAR) && self.addr.saturating_sub(NEAR) < end {
            tell(|rest| write!(rest, "mapped: {line}"));
        }
    }
}
