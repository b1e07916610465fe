//! The C programs of this crate, compiled when a test needs them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::skip::{has_programs, skipped};
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

/// Compiles it in another way than usual. `None`, and a skipped test, also where the compiler cannot do that.
pub fn compile_with(name: &str, dir: &TempDir, more: &[&str]) -> Option<PathBuf> {
    let file = dir.join(name);
    let is_made = has_programs(&["gcc"]) && {
        let status = gcc(name, &file, more).status().expect("gcc was found");
        if !status.success() {
            skipped(&format!("gcc cannot do {}", more.join(" ")));
        }
        status.success()
    };
    is_made.then_some(file)
}

fn gcc(name: &str, file: &Path, more: &[&str]) -> Command {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("c").join(name).with_extension("c");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]).args(more).arg("-o").arg(file).arg(source);
    gcc
}

fn compile_to(name: &str, file: PathBuf, more: &[&str]) -> Option<PathBuf> {
    if !has_programs(&["gcc"]) {
        return None;
    }
    let status = gcc(name, &file, more).status().expect("gcc was found");
    assert!(status.success(), "gcc cannot compile {name}.c");
    Some(file)
}
