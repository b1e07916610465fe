//! How hmm ends when it cannot do what it was asked: a message, and the exit codes of `env` and `timeout`.

use std::fmt;
use std::process::ExitCode;

use crate::output;

/// hmm itself failed: wrong use, a missing privilege, no memory.
pub(crate) const HMM_FAILED: u8 = 125;
/// The program is there but cannot be executed, or not under hmm.
pub(crate) const CANNOT_EXECUTE: u8 = 126;
/// The program is not there.
pub(crate) const NOT_FOUND: u8 = 127;

/// What went wrong, for the user, and the exit code that says so.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// hmm itself failed.
    pub(crate) fn of_hmm(message: impl fmt::Display) -> Self {
        Self::with_code(HMM_FAILED, message)
    }

    /// With an exit code of one's own.
    pub(crate) fn with_code(code: u8, message: impl fmt::Display) -> Self {
        Self { code, message: message.to_string() }
    }

    /// Tells the user.
    pub(crate) fn report(&self) -> ExitCode {
        output::note(format_args!("{}", self.message));
        ExitCode::from(self.code)
    }

    /// The exit code.
    pub(crate) const fn code(&self) -> u8 {
        self.code
    }
}

/// Says what was attempted when an error comes up.
pub(crate) trait Attempt<T> {
    /// Turns the error into a failure of hmm: `cannot WHAT: why`.
    fn attempt(self, what: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> Attempt<T> for Result<T, E> {
    // The alternate form: errors with a chain of causes print all of it.
    fn attempt(self, what: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::of_hmm(format_args!("cannot {what}: {error:#}")))
    }
}
