//! Whether the program stands still although the kernel does not say that it has stopped.
//!
//! The kernel tells of a stop when every thread has stopped. A thread that waits where no signal wakes it stops when that
//! is over; but what it waits for may have stopped already. Above all, a thread in vfork waits until its child executes
//! something, and a terminal's key stops the child as well: under hmm, where such a child takes longer, this is seen in one
//! of twenty stops of a shell.
//!
//! So the program has stopped as far as it can when a stop is pending and its first thread, which would take it, waits so;
//! or when some threads have stopped, and all others wait so; and that does not change.

use std::time::{Duration, Instant};

use hmm_uapi::tasks::split_stat;
use rustix::process::Pid;

/// So long it has to be so: as a rule the kernel tells of the stop by then.
const PATIENCE: Duration = Duration::from_millis(100);

/// The signals that stop, unless they are caught or ignored: bit n is signal n + 1.
const STOPS: u64 =
    1 << (libc::SIGSTOP - 1) | 1 << (libc::SIGTSTP - 1) | 1 << (libc::SIGTTIN - 1) | 1 << (libc::SIGTTOU - 1);

/// What is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Stopped,
    Continued,
}

/// What was seen, and what was told.
#[derive(Debug, Default)]
pub(super) struct Standstill {
    since: Option<Instant>,
    is_told: bool,
    /// The kernel says that it has stopped.
    is_stopped: bool,
}

impl Standstill {
    /// The kernel says that the program has stopped, or goes on.
    pub(super) const fn note(&mut self, is_stopped: bool) {
        *self = Self { since: None, is_told: false, is_stopped };
    }

    /// The program has ended: whether it was told last that it has stopped.
    pub(super) fn end(&mut self) -> bool {
        std::mem::take(self).is_still()
    }

    const fn is_still(&self) -> bool {
        self.is_stopped || self.is_told
    }

    /// Looks at the program's threads.
    pub(super) fn look(&mut self, program: Pid) -> Option<Change> {
        if self.is_stopped {
            return None;
        }
        if !stands_still(program) {
            self.since = None;
            return std::mem::take(&mut self.is_told).then_some(Change::Continued);
        }
        let lasts = self.since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE;
        (lasts && !std::mem::replace(&mut self.is_told, lasts)).then_some(Change::Stopped)
    }
}

/// Whether it has to stop and cannot, or some of its threads have stopped and no other can run.
fn stands_still(program: Pid) -> bool {
    let process = format!("/proc/{}", program.as_raw_nonzero());
    // As a rule the first thread tells that it does not.
    match state(&format!("{process}/stat")) {
        Some('D') if has_to_stop(&format!("{process}/status")) => return true,
        Some('T' | 'D') => {}
        _ => return false,
    }
    let Ok(threads) = std::fs::read_dir(format!("{process}/task")) else { return false };
    let mut any_stopped = false;
    for thread in threads.flatten() {
        match state(&format!("{}/stat", thread.path().display())) {
            Some('T') => any_stopped = true,
            // It has just ended, or waits.
            None | Some('D' | 'X' | 'Z') => {}
            Some(_) => return false,
        }
    }
    any_stopped
}

/// Whether a signal is pending that stops the process.
fn has_to_stop(status: &str) -> bool {
    let status = std::fs::read_to_string(status).unwrap_or_default();
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
    };
    let pending = mask("SigPnd") | mask("ShdPnd");
    pending & !(mask("SigIgn") | mask("SigCgt")) & STOPS != 0
}

/// What a thread does: the letter behind its name.
fn state(path: &str) -> Option<char> {
    let stat = std::fs::read(path).ok()?;
    split_stat(&stat)?.1.next()?.chars().next()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::{Signal, kill_process};

    use super::*;

    /// Until something is to be told, ten seconds at most.
    fn wait(standstill: &mut Standstill, program: Pid) -> Option<Change> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            if let Some(change) = standstill.look(program) {
                return Some(change);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }

    #[test]
    fn a_stop_is_told_once_and_so_is_its_end() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let program = Pid::from_child(&child);
        let mut standstill = Standstill::default();
        assert_eq!(standstill.look(program), None);
        kill_process(program, Signal::STOP).unwrap();
        assert_eq!(wait(&mut standstill, program), Some(Change::Stopped));
        assert_eq!(standstill.look(program), None);
        kill_process(program, Signal::CONT).unwrap();
        assert_eq!(wait(&mut standstill, program), Some(Change::Continued));
        assert_eq!(standstill.look(program), None);

        kill_process(program, Signal::STOP).unwrap();
        standstill.note(true);
        std::thread::sleep(PATIENCE * 2);
        assert_eq!(standstill.look(program), None, "the kernel has told");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn what_is_caught_does_not_stop() {
        let path = std::env::temp_dir().join(format!("hmm-pending-{}", std::process::id()));
        for (caught, stops) in [(0u64, true), (1 << (libc::SIGTSTP - 1), false)] {
            let pending = 1u64 << (libc::SIGTSTP - 1);
            let status = format!(
                "Name:\tx\nSigPnd:\t0\nShdPnd:\t{pending:016x}\nSigIgn:\t0\nSigCgt:\t{caught:016x}\n"
            );
            std::fs::write(&path, status).unwrap();
            assert_eq!(has_to_stop(&path.display().to_string()), stops);
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn names_do_not_matter() {
        let dir = std::env::temp_dir().join(format!("hmm-standstill-{}", std::process::id()));
        std::fs::write(&dir, "17 (a) T (b) D 1 2").unwrap();
        assert_eq!(state(&dir.display().to_string()), Some('D'));
        std::fs::remove_file(&dir).unwrap();
    }
}
