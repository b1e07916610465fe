//! The rules of the source tree that no compiler checks.

mod dependencies;
mod named;
mod sources;

use anyhow::{Result, bail};

#[cfg(test)]
pub(crate) use dependencies::crates;

/// Checks all of them, and tells of everything that is wrong.
pub(crate) fn run() -> Result<()> {
    eprintln!("xtask: tidy");
    let mut wrong = sources::check()?;
    wrong.extend(dependencies::check()?);
    wrong.extend(named::check()?);
    for line in &wrong {
        eprintln!("{line}");
    }
    match wrong.len() {
        0 => Ok(()),
        number => bail!("{number} things are not tidy"),
    }
}
