//! The door of a run: how programs of other users than the supervisor's get what they need from it.
//!
//! The supervisor's descriptors, by which its own user's programs open the control page, are closed to others, and so is the
//! node of userfaultfd, as a rule. A supervisor whose programs may become other users (root) listens on a socket, the door.
//! Anybody may knock; only processes of the run are let in, which is the supervisor's to find out. They ask for one thing a
//! message:
//!
//! ```text
//!  agent                                      supervisor
//!  control page, I am PROCESS  ------------>  it is as I see it, too: the page's file
//!  node                        ------------>  the node of userfaultfd, open
//!  makes a userfaultfd of it
//!  enable, the userfaultfd     ------------>  the handshake, forks included, for which one has to be privileged
//! ```
//!
//! So nothing of another process's memory goes over, in either direction: a userfaultfd is one of the address space in which it
//! was made. The client's side neither uses thread-local storage nor goes through libc.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use hmm_uapi::uffd::{Access, Features, Userfaultfd, open_node};
use hmm_uapi::{Errno, Fd};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::control::ProcessId;
use crate::handover::{receive, send};

/// Environment variable that tells the agent where the door is, if there is one.
pub const DOOR_ENV: &str = "HMM_DOOR";

/// Environment variable that tells the agent, where there is a door, how the supervisor's own user reaches the library to preload.
pub const LIBRARY_ENV: &str = "HMM_LIBRARY";

const CONTROL: u8 = b'C';
const NODE: u8 = b'N';
const ENABLE: u8 = b'E';
const YES: u8 = b'y';
const NO: u8 = b'n';
/// A wish and a process.
const MAX_BYTES: usize = 9;

/// The supervisor is one process among many on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks for the file of the control page, for a process that sees itself as `process`. `None`: there is no such door, or it stays
/// closed.
pub(crate) fn control(door: &Path, process: ProcessId) -> Option<Fd> {
    let end = knock(door).ok()?;
    let mut wish = [CONTROL; MAX_BYTES];
    wish[1..].copy_from_slice(&process.word().to_ne_bytes());
    ask(&end, &wish, None)?
}

/// Makes a userfaultfd of this address space that serves the kernel's faults, with the features that a space needs, and with
/// reports of forks if the supervisor may have them. Says whether. `None`: as for the control page; or the supervisor has not got
/// the node.
pub fn userfaultfd(door: &Path) -> Option<(Userfaultfd, bool)> {
    let end = knock(door).ok()?;
    let node = ask(&end, &[NODE], None)??;
    let uffd = Userfaultfd::open_by_node(node, Access::Full).ok()?;
    let reports_forks = ask(&end, &[ENABLE], Some(&uffd)).is_some();
    if !reports_forks {
        uffd.enable(crate::open::features()).ok()?;
    }
    Some((uffd, reports_forks))
}

fn knock(door: &Path) -> Result<Fd, Errno> {
    let kind = SocketType::SEQPACKET;
    let end = Fd::from(socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?);
    for which in [Timeout::Send, Timeout::Recv] {
        set_socket_timeout(&end, which, Some(PATIENCE))?;
    }
    connect(&end, &SocketAddrUnix::new(door)?)?;
    Ok(end)
}

/// What came with a yes.
fn ask(end: &Fd, wish: &[u8], with: Option<&Userfaultfd>) -> Option<Option<Fd>> {
    send(end, wish, with.map(AsFd::as_fd)).ok()?;
    let mut answer = [NO];
    let (_, fd) = receive(end, &mut answer).ok()?;
    (answer == [YES]).then_some(fd)
}

/// The supervisor's side: what there is to be had.
#[derive(Debug)]
pub struct Doorkeeper {
    control: OwnedFd,
    node: Option<Fd>,
}

impl Doorkeeper {
    /// Gives away the control page, and the node of userfaultfd if this process may open it.
    pub fn new(control: OwnedFd) -> Self {
        Self { control, node: open_node().ok() }
    }

    /// Answers one message, if there is one, of a process that was found to be of the run. To be called again while `Some`.
    ///
    /// # Errors
    /// `EAGAIN`: there is none yet. Else the other side has gone, or does not read, or asks for something else.
    pub fn answer(&self, end: impl AsFd, guest: ProcessId) -> Result<(), Errno> {
        let mut wish = [0; MAX_BYTES];
        let (len, fd) = receive(&end, &mut wish)?;
        let (is_granted, what) = match (wish[..len].split_first(), fd) {
            // In a namespace of pids with a procfs of its own it is another, and its charges would be taken back.
            (Some((&CONTROL, word)), None) if *word == guest.word().to_ne_bytes() => {
                (true, Some(self.control.as_fd()))
            }
            (Some((&NODE, [])), None) => (self.node.is_some(), self.node.as_ref().map(AsFd::as_fd)),
            (Some((&ENABLE, [])), Some(fd)) => (enable(fd), None),
            (Some((&CONTROL, _)), None) => (false, None),
            _ => return Err(Errno::PROTO),
        };
        send(&end, &[if is_granted { YES } else { NO }], what)
    }
}

/// Only the handshake: the descriptor is a stranger's, and whatever is read from it would be as well.
fn enable(fd: Fd) -> bool {
    let wanted = crate::open::features() | Features::EVENT_FORK;
    Userfaultfd::of_stranger(fd).is_some_and(|uffd| uffd.enable(wanted).is_ok())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn asked(wish: &[u8], with: Option<Fd>, guest: ProcessId) -> (Result<(), Errno>, Option<u8>, Option<Fd>) {
        let keeper = Doorkeeper::new(File::open("/dev/null").unwrap().into());
        let (one, other) = UnixStream::pair().unwrap();
        other.set_nonblocking(true).unwrap();
        one.set_nonblocking(true).unwrap();
        send(&one, wish, with.as_ref().map(AsFd::as_fd)).unwrap();
        let result = keeper.answer(&other, guest);
        let mut answer = [0];
        let received = receive(&one, &mut answer);
        let (len, fd) = received.unwrap_or((0, None));
        (result, (len == 1).then_some(answer[0]), fd)
    }

    fn wish_of(process: ProcessId) -> Vec<u8> {
        [&[CONTROL][..], &process.word().to_ne_bytes()].concat()
    }

    #[test]
    fn a_process_that_sees_itself_as_another_gets_no_page() {
        let (me, _) = ProcessId::of_pid(std::process::id()).unwrap();
        let (other, _) = ProcessId::of_pid(1).unwrap();
        assert!(matches!(asked(&wish_of(me), None, me), (Ok(()), Some(YES), Some(_))));
        assert!(matches!(asked(&wish_of(other), None, me), (Ok(()), Some(NO), None)));
        assert!(matches!(asked(b"?", None, me), (Err(Errno::PROTO), None, None)));
        assert!(matches!(asked(b"", None, me), (Err(_), None, None)));
    }

    /// Else a stranger would have the supervisor call whatever the stranger may open.
    #[test]
    fn what_is_no_userfaultfd_is_not_called() {
        let (me, _) = ProcessId::of_pid(std::process::id()).unwrap();
        let null = File::open("/dev/null").unwrap();
        assert!(matches!(
            asked(&[ENABLE], Some(Fd::from(OwnedFd::from(null))), me),
            (Ok(()), Some(NO), None)
        ));
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
        assert!(Userfaultfd::of_stranger(event.into()).is_none());
        let uffd = Userfaultfd::open(Access::UserModeOnly).unwrap();
        assert!(Userfaultfd::of_stranger(uffd.into_fd()).is_some());
    }
}
