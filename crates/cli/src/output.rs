//! Where the command writes: results to standard output, everything else to standard error.
//!
//! A reader that went away (`hmm doctor | head -1`) is no failure: what it did not want is dropped.

use std::fmt;
use std::io::{self, Write};

/// Writes to standard output.
pub(crate) fn print(text: fmt::Arguments<'_>) {
    let _reader_gone = io::stdout().lock().write_fmt(text);
}

/// Writes one line to standard error, with the command's name in front. Names in it may be anybody's: what would move a
/// terminal's cursor, or worse, is not written.
pub(crate) fn note(text: fmt::Arguments<'_>) {
    let mut line = format!("hmm: {text}").replace(|c: char| c.is_control() && c != '\n', "?");
    line.push('\n');
    raw(&line);
}

/// Writes to standard error as it is, in one piece, so that it does not mix with what the program writes.
pub(crate) fn raw(text: &str) {
    let _reader_gone = io::stderr().write_all(text.as_bytes());
}
