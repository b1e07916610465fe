//! The C programs of this crate, compiled when a test needs them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::skip::has_programs;
use crate::temp::TempDir;

/// Compiles `c/NAME.c`. `None`, and a skipped test, where there is no compiler.
///
/// # Panics
/// When the compiler does not like it.
pub fn compile(name: &str, dir: &TempDir) -> Option<PathBuf> {
    compile_to(name, dir.join(name), &[])
}

/// Compiles it to a library, with `LIBRARY` defined.
///
/// # Panics
/// As [`compile`].
pub fn compile_library(name: &str, dir: &TempDir) -> Option<PathBuf> {
    compile_to(name, dir.join(name).with_extension("so"), &["-DLIBRARY", "-shared", "-fPIC"])
}

fn compile_to(name: &str, file: PathBuf, more: &[&str]) -> Option<PathBuf> {
    if !has_programs(&["gcc"]) {
        return None;
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("c").join(name).with_extension("c");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]).args(more).arg("-o").arg(&file).arg(&source);
    let status = gcc.status().expect("gcc was found");
    assert!(status.success(), "gcc cannot compile {}", source.display());
    Some(file)
}
