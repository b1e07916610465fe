//! The supervisor's side of the door ([`hmm::door`]): who knocks, and whether he is let in.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use hmm::control::ProcessId;
use hmm::door::Doorkeeper;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};

use super::descent::descends;

/// Those who have knocked and are waited for: as many as there may be processes, and no more, because anybody may knock.
const MAX_GUESTS: usize = hmm::control::NR_SLOTS;
/// How long a guest may take.
const PATIENCE: Duration = Duration::from_secs(10);
const BACKLOG: i32 = 128;
/// Linux 6.5; the bindings lack it.
const SO_PEERPIDFD: libc::c_int = 77;
const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// A process of the run that asks for something.
#[derive(Debug)]
struct Guest {
    end: OwnedFd,
    process: ProcessId,
    since: Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Door {
    listener: OwnedFd,
    guests: Vec<Guest>,
    keeper: Doorkeeper,
}

impl Door {
    /// Opens the door at `path`.
    pub(super) fn open(path: &Path, control: OwnedFd) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        bind(&listener, &SocketAddrUnix::new(path)?)?;
        // Whatever the mask is that files are made with.
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
        listen(&listener, BACKLOG)?;
        Ok(Self { listener, guests: Vec::new(), keeper: Doorkeeper::new(control) })
    }

    /// Descriptors that become readable when there is something to do.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let listener = (self.guests.len() < MAX_GUESTS).then(|| self.listener.as_fd());
        listener.into_iter().chain(self.guests.iter().map(|guest| guest.end.as_fd()))
    }

    /// Lets in who has knocked, and answers them. Waits for nobody.
    pub(super) fn serve(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while self.guests.len() < MAX_GUESTS
            && let Ok(end) = accept_with(&self.listener, flags)
        {
            if let Some(process) = process_of_run(&end) {
                self.guests.push(Guest { end, process, since: Instant::now() });
            }
        }
        let keeper = &self.keeper;
        self.guests.retain(|guest| {
            let answered = keeper.answer(&guest.end, guest.process);
            let goes_on = matches!(answered, Ok(()) | Err(Errno::AGAIN | Errno::INTR));
            goes_on && guest.since.elapsed() < PATIENCE
        });
    }
}

/// Who is at the other end, if that is a process of the run. It is alive when this is found out: so it is not another that
/// has the pid by now, and the other end somebody else's.
fn process_of_run(end: &OwnedFd) -> Option<ProcessId> {
    let pid = socket_peercred(end).ok()?.pid.as_raw_nonzero().get().unsigned_abs();
    let pidfd = pidfd_of_peer(end)?;
    let (process, _) = ProcessId::of_pid(pid).ok()?;
    let is_of_run = descends(pid, std::process::id());
    let is_alive = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&AT_ONCE)) == Ok(0);
    (is_of_run && is_alive).then_some(process)
}

/// See `SO_PEERPIDFD` in `unix(7)`.
fn pidfd_of_peer(end: &OwnedFd) -> Option<OwnedFd> {
    let (mut fd, mut len) = (-1, libc::socklen_t::try_from(size_of::<i32>()).ok()?);
    // SAFETY: the call writes an `i32` and its length.
    let result = unsafe {
        libc::getsockopt(
            end.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            std::ptr::from_mut(&mut fd).cast(),
            &raw mut len,
        )
    };
    // SAFETY: the kernel has just made the descriptor for us.
    (result == 0 && fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn knock(path: &Path) -> OwnedFd {
        let end =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::connect(&end, &SocketAddrUnix::new(path).unwrap()).unwrap();
        end
    }

    /// This process does not descend from itself, and a process that is gone can have been anybody.
    #[test]
    fn who_is_not_of_the_run_is_not_let_in() {
        let path = std::env::temp_dir().join(format!("hmm-door-{}", std::process::id()));
        let mut door = Door::open(&path, fs::File::open("/dev/null").unwrap().into()).unwrap();
        let stranger = knock(&path);
        door.serve();
        assert_eq!(door.guests.len(), 0);
        assert_eq!(rustix::io::read(&stranger, &mut [0; 8]), Ok(0), "the other end is closed");

        let script = "import socket,sys,time
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(sys.argv[1])
time.sleep(60)";
        let Ok(mut child) = Command::new("python3").args(["-c", script]).arg(&path).spawn() else { return };
        let begin = Instant::now();
        while door.guests.is_empty() && begin.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
            door.serve();
        }
        assert_eq!(door.guests.len(), 1);
        child.kill().unwrap();
        child.wait().unwrap();
        door.serve();
        assert_eq!(door.guests.len(), 0, "it has gone");
        fs::remove_file(&path).unwrap();
    }
}
