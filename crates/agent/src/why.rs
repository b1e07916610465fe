//! Why the agent could not start. Its threads must not make a text of an error: libc looks up the message for an errno by the
//! thread's locale, and they have no thread-local storage. So they hand over the error, and the program's main thread, which
//! waits for them, makes the text.

use std::error::Error;
use std::fmt;

/// See the module.
#[derive(Debug)]
pub(crate) struct Why {
    what: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Why {
    /// For `map_err`: what could not be done, and what the error is.
    pub(crate) fn not<E: Error + Send + Sync + 'static>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        |error| Self { what: what.into(), source: Some(Box::new(error)) }
    }

    /// An error that says all by itself.
    pub(crate) fn all<E: Error + Send + Sync + 'static>(error: E) -> Self {
        Self { what: String::new(), source: Some(Box::new(error)) }
    }
}

impl From<&str> for Why {
    fn from(what: &str) -> Self {
        Self { what: what.to_owned(), source: None }
    }
}

/// For the program's threads only.
impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            None => f.write_str(&self.what),
            Some(source) if self.what.is_empty() => source.fmt(f),
            Some(source) => write!(f, "{}: {source}", self.what),
        }
    }
}
