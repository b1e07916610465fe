//! The process that was called: the program's stand-in towards whoever called it.
//!
//! It shares the program's process group, so a terminal's keys reach the program by themselves; only what somebody sent
//! to this process is passed on. When the program stops, the supervisor stops this process, so that a shell takes the
//! terminal back; the shell wakes the whole group.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::WaitOptions;

use super::channel::{Ending, Next};
use super::place::Place;
use super::signals::{Inbox, Received};
use crate::failure::{Attempt, Failure};

/// Waits until the supervisor says how the program ended, and ends the same way.
pub(super) fn stand_in(
    socket: UnixStream,
    supervisor: u32,
    place: Option<&Place>,
) -> Result<ExitCode, Failure> {
    let inbox = Inbox::open().attempt("read signals")?;
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(inbox.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).attempt("wait for the program"),
        }
        let told = !fds[1].revents().is_empty();
        while let Some(signal) = inbox.next().attempt("read signals")? {
            if is_for_program(signal, supervisor) {
                // A supervisor that is gone is noticed below.
                let _noticed = (&socket).write_all(&[u8::try_from(signal.number).unwrap_or(0)]);
            }
        }
        if told {
            return match Ending::receive(&socket) {
                Ok((ending, next)) => {
                    if next == Next::Ends {
                        // What was waited for counts for whoever waits for this process, as with time(1). It is the only child.
                        let _gone = rustix::process::wait(WaitOptions::empty());
                    }
                    Ok(ending.imitate())
                }
                Err(_) => {
                    // It would have.
                    place.inspect(|place| place.remove());
                    Err(Failure::of_hmm("the supervisor was killed, and the program with it"))
                }
            };
        }
    }
}

/// The terminal sends its signals to the program as well, and the supervisor's own are for this process.
fn is_for_program(signal: Received, supervisor: u32) -> bool {
    !signal.from_kernel && signal.number != libc::SIGCHLD && signal.sender != supervisor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_somebody_sent_is_passed_on() {
        let sent = Received { number: libc::SIGTERM, from_kernel: false, sender: 7 };
        assert!(is_for_program(sent, 100));
        assert!(!is_for_program(Received { from_kernel: true, ..sent }, 100), "the terminal's");
        assert!(!is_for_program(Received { sender: 100, ..sent }, 100), "the supervisor's");
        assert!(!is_for_program(Received { number: libc::SIGCHLD, ..sent }, 100));
    }
}
