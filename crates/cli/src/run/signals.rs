//! Signals as messages: blocked, and read from a descriptor when there is time for them.
//!
//! No handler is ever installed, so the program inherits every disposition as `hmm` found it; the mask is put back in
//! the child before it executes the program.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit};

/// `si_code` of signals that the kernel makes, like a terminal's for the keys ^C and ^Z.
const SI_KERNEL: i32 = 0x80;
/// Size of `struct signalfd_siginfo`.
const RECORD_BYTES: usize = 128;

/// Signals that stay as they are: those that cannot be blocked, and those that tell of an error of our own.
const NOT_TAKEN: [i32; 9] = [
    libc::SIGKILL,
    libc::SIGSTOP,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGPIPE,
];

/// The mask of blocked signals, as it was before.
#[derive(Clone, Copy)]
pub(super) struct Mask(libc::sigset_t);

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mask")
    }
}

impl Mask {
    /// Blocks everything that can be taken, for this thread and those that it starts.
    pub(super) fn block() -> io::Result<Self> {
        let taken = taken_signals();
        let mut before = MaybeUninit::uninit();
        // SAFETY: the call reads one set and writes the other.
        let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const taken, before.as_mut_ptr()) };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        // SAFETY: the call has succeeded, so it has written the set.
        Ok(Self(unsafe { before.assume_init() }))
    }

    /// Puts the mask back. Async-signal-safe.
    pub(super) fn restore(&self) -> io::Result<()> {
        // SAFETY: the call reads one set.
        let result =
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
        if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
    }
}

fn taken_signals() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the call writes the set, and cannot fail for a good pointer.
    let _zero = unsafe { libc::sigfillset(set.as_mut_ptr()) };
    // SAFETY: written above.
    let mut set = unsafe { set.assume_init() };
    for signal in NOT_TAKEN {
        // SAFETY: the call changes the set, and fails only for numbers that are no signals.
        let _zero = unsafe { libc::sigdelset(&raw mut set, signal) };
    }
    set
}

/// One signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received {
    /// Its number.
    pub(super) number: i32,
    /// Whether the kernel made it. Then it made it for the program, too: they share the terminal and the process group.
    pub(super) from_kernel: bool,
    /// Who sent it, if somebody did.
    pub(super) sender: u32,
}

/// The signals that came to this process while they were blocked.
#[derive(Debug)]
pub(super) struct Inbox(OwnedFd);

impl Inbox {
    /// An inbox for what [`Mask::block`] blocks.
    pub(super) fn open() -> io::Result<Self> {
        let taken = taken_signals();
        // SAFETY: the call reads one set, and makes a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const taken, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and ours.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next signal, if there is one.
    pub(super) fn next(&self) -> io::Result<Option<Received>> {
        let mut record = [0; RECORD_BYTES];
        match rustix::io::read(&self.0, &mut record) {
            Ok(RECORD_BYTES) => Ok(Some(parse(&record))),
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The record begins with the signal's number, an error number, the code and the sender, 32 bits each.
fn parse(record: &[u8; RECORD_BYTES]) -> Received {
    let word = |index: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&record[4 * index..4 * index + 4]);
        u32::from_ne_bytes(bytes)
    };
    let code = word(2).cast_signed();
    let sender = if code <= 0 { word(3) } else { 0 };
    Received { number: word(0).cast_signed(), from_kernel: code == SI_KERNEL, sender }
}

/// Sends any signal, real-time ones included.
pub(super) fn send(pid: Pid, number: i32) -> io::Result<()> {
    // SAFETY: the call takes two numbers.
    match unsafe { libc::kill(pid.as_raw_nonzero().get(), number) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends this process by the signal that ended the program, so that who waits for us sees the real cause. Returns only if
/// the signal does not end a process.
pub(super) fn die_by(number: i32) {
    // The program has dumped its core; ours is of no interest.
    let no_core = Rlimit { current: Some(0), maximum: Some(0) };
    let _best_effort = rustix::process::setrlimit(Resource::Core, no_core);
    // SAFETY: the call takes a number and the default disposition, which runs no code of ours.
    let _before = unsafe { libc::signal(number, libc::SIG_DFL) };
    let mut only = MaybeUninit::uninit();
    // SAFETY: the call writes the set.
    let _zero = unsafe { libc::sigemptyset(only.as_mut_ptr()) };
    // SAFETY: written above.
    let mut only = unsafe { only.assume_init() };
    // SAFETY: the call changes the set, or does nothing when the number is no signal.
    let _zero = unsafe { libc::sigaddset(&raw mut only, number) };
    let _sent = send(rustix::process::getpid(), number);
    // SAFETY: the call reads one set. The signal is delivered before it returns.
    let _zero = unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const only, std::ptr::null_mut()) };
}

/// Names of the first signals, on every architecture that hmm supports.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// The signal's usual name.
pub(super) fn name(number: i32) -> String {
    let index = usize::try_from(number - 1).ok();
    match index.and_then(|index| NAMES.get(index)) {
        Some(name) => format!("SIG{name}"),
        None => format!("signal {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names() {
        for (number, text) in [
            (libc::SIGTERM, "SIGTERM"),
            (libc::SIGUSR2, "SIGUSR2"),
            (libc::SIGCONT, "SIGCONT"),
            (libc::SIGSYS, "SIGSYS"),
            (40, "signal 40"),
            (0, "signal 0"),
            (-1, "signal -1"),
        ] {
            assert_eq!(name(number), text);
        }
    }
}
