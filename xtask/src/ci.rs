//! Everything, what fails soonest first.

use anyhow::Result;

use crate::{cargo, interleavings, test, tidy};

pub(crate) fn run() -> Result<()> {
    tidy::run()?;
    cargo::run("fmt --all --check", &[])?;
    cargo::run("clippy --workspace --all-targets --locked --quiet -- -D warnings", &[])?;
    cargo::run("doc --workspace --no-deps --locked --quiet", &[("RUSTDOCFLAGS", "-D warnings")])?;
    interleavings::run()?;
    test::run(&["--locked".to_owned()])
}
