//! What loom and shuttle have to say. Each replaces the locks of the code under test, so each needs a build of its own,
//! which is kept apart from the ordinary one.

use anyhow::Result;

use crate::cargo;

/// Packages with tests of this kind; they are the library's own and have this word in their names.
const PACKAGES: [&str; 2] = ["hmm-core", "hmm-lz4"];

pub(crate) fn run() -> Result<()> {
    for checker in ["loom", "shuttle"] {
        for package in PACKAGES {
            let words = format!(
                "test --quiet --locked --target-dir target/{checker} -p {package} --lib interleavings"
            );
            cargo::run(&words, &[("RUSTFLAGS", &format!("--cfg {checker}"))])?;
        }
    }
    Ok(())
}
