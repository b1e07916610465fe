//! Whoever is ended by a fault of ours is told so first.
//!
//! Our threads in the program have no standard error, and run none of the program's signal handlers: what Rust and libc do in
//! such a case would end the program without a word, or have it handle a signal on a thread that it does not know. So what
//! happened is left in the control page, for the supervisor to tell, and the process is killed.

use std::panic::PanicHookInfo;

use hmm::control::{Text, VerdictKind};
use rustix::process::{Signal, getpid, kill_process};

use crate::{books, control};

/// From now on what ends the process is told.
pub(crate) fn install() {
    hmm::heap::when_full(|nr_bytes| {
        end(VerdictKind::NoMemory, format_args!("{nr_bytes} bytes were asked for"))
    });
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if control::setup().is_none() {
            // Nobody listens: Rust's own way, on the program's first thread.
            return before(panic);
        }
        end(VerdictKind::Defect, format_args!("{}", InOneLine(panic)));
    }));
}

/// Leaves word, and ends the process.
pub(crate) fn end(kind: VerdictKind, why: std::fmt::Arguments<'_>) -> ! {
    books::leave_word(kind, 0, Text::format(why));
    kill()
}

/// Ends the process, also where a filter forbids signals.
pub(crate) fn kill() -> ! {
    // Also ends the calling thread.
    let _ = kill_process(getpid(), Signal::KILL);
    // SAFETY: ends the process.
    unsafe { libc::_exit(crate::EXIT_FAILED) }
}

/// Where a panic is, and what it says.
struct InOneLine<'a>(&'a PanicHookInfo<'a>);

impl std::fmt::Display for InOneLine<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(location) = self.0.location() {
            write!(f, "{location}: ")?;
        }
        f.write_str(self.0.payload_as_str().unwrap_or("panicked"))
    }
}
