//! Something that must not be.

use std::ffi::c_int;
use std::fmt;

/// Exit status of a worker, or of a child of its, that has found something.
pub(crate) const FOUND: i32 = 1;
/// Exit status of a worker that has lost memory that it cannot do without to a device that fails on purpose.
pub(crate) const LOST: i32 = 77;
/// What a line begins with that tells of a finding.
pub(crate) const FINDING: &str = "finding: ";

/// Whether such a signal ends a process that has lost memory which it cannot do without (its stack: SIGSEGV, because SIGBUS
/// finds no room there), or whose budget is full of what cannot leave any more (SIGKILL).
pub(crate) const fn ends_what_lost(signal: c_int) -> bool {
    matches!(signal, libc::SIGKILL | libc::SIGSEGV)
}

/// What was found, in a sentence.
#[derive(Debug)]
pub(crate) struct Finding(pub(crate) String);

/// Says that it is one.
pub(crate) fn found<T>(what: impl fmt::Display) -> Result<T, Finding> {
    Err(Finding(what.to_string()))
}

/// Writes a line to standard error, at once, without a lock: a child of a fork may have got one that is taken.
pub(crate) fn say(line: &str) {
    let line = format!("{line}\n");
    // SAFETY: the line's own bytes.
    unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
}

/// Ends the process at once.
pub(crate) fn end(status: i32) -> ! {
    // SAFETY: nothing of the process is needed any more.
    unsafe { libc::_exit(status) }
}

impl Finding {
    /// Tells of it, and ends the process.
    pub(crate) fn end(&self, who: impl fmt::Display) -> ! {
        say(&format!("{FINDING}{who}: {}", self.0));
        end(FOUND)
    }
}
