//! Calling cargo.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The root of the workspace.
pub(crate) fn root() -> Result<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    Ok(root.parent().context("xtask is a directory of the workspace")?.to_owned())
}

/// The cargo that runs us, to be run in the root of the workspace.
pub(crate) fn cargo() -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()?);
    Ok(command)
}

/// Runs it with these words, which must succeed.
pub(crate) fn run(words: &str, envs: &[(&str, &str)]) -> Result<()> {
    eprintln!("xtask: cargo {words}");
    let mut command = cargo()?;
    command.args(words.split(' ')).envs(envs.iter().copied());
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "`cargo {words}` failed ({status})");
    Ok(())
}
