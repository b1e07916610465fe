//! What the supervisor tells the front: how the program ended.

use std::fmt;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use rustix::process::WaitStatus;

use super::signals;

/// How the program ended, or that it never began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// With this exit status. Those of hmm itself (125, 126, 127) are told the same way, with their message printed.
    Exited(u8),
    /// By this signal.
    Signaled(u8),
}

/// What the supervisor does when it has told the ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It ends, too. Who waits for it has what the program took, for time(1).
    Ends,
    /// It stays with what the program has left running, which may be for ever.
    Stays,
}

impl Ending {
    /// What `wait` says; `None` when the process has not ended.
    pub(super) fn of_status(status: WaitStatus) -> Option<Self> {
        let byte = |value: i32| u8::try_from(value).unwrap_or(u8::MAX);
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Some(Self::Exited(byte(code))),
            (_, Some(signal)) => Some(Self::Signaled(byte(signal))),
            _ => None,
        }
    }

    /// Tells the other end of the socket, and what becomes of the one who tells.
    pub(super) fn send(self, next: Next, mut socket: impl Write) -> io::Result<()> {
        let (kind, value) = match self {
            Self::Exited(code) => (0, code),
            Self::Signaled(signal) => (1, signal),
        };
        socket.write_all(&[kind, value, next as u8])
    }

    /// Hears it from the other end.
    pub(super) fn receive(mut socket: impl Read) -> io::Result<(Self, Next)> {
        let mut message = [0; 3];
        socket.read_exact(&mut message)?;
        let [kind, value, next] = message;
        let ending = if kind == 0 { Self::Exited(value) } else { Self::Signaled(value) };
        Ok((ending, if next == Next::Ends as u8 { Next::Ends } else { Next::Stays }))
    }

    /// Ends this process's work the same way. A signal ends it before this returns; if not, the exit code says which it
    /// was, as shells have it.
    pub(super) fn imitate(self) -> ExitCode {
        match self {
            Self::Exited(code) => ExitCode::from(code),
            Self::Signaled(signal) => {
                signals::die_by(signal.into());
                ExitCode::from(128_u8.saturating_add(signal))
            }
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit status {code}"),
            Self::Signaled(signal) => write!(f, "ended by {}", signals::name((*signal).into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_come_through() {
        let endings = [Ending::Exited(0), Ending::Exited(255), Ending::Signaled(9), Ending::Signaled(64)];
        for (ending, next) in
            endings.into_iter().flat_map(|ending| [(ending, Next::Ends), (ending, Next::Stays)])
        {
            let mut bytes = Vec::new();
            ending.send(next, &mut bytes).unwrap();
            assert_eq!(Ending::receive(bytes.as_slice()).unwrap(), (ending, next));
        }
        assert!(Ending::receive([0, 0].as_slice()).is_err());
    }
}
