//! Tests that cannot run here say so: on standard error, and in the file that `HMM_SKIPPED_FILE` names, so that whoever
//! started them can count.

use std::io::Write;

/// Says that the current test, or a part of it, cannot run.
///
/// # Panics
/// When the file cannot be written.
pub fn skipped(why: &str) {
    let thread = std::thread::current();
    let line = format!("{}: {why}\n", thread.name().unwrap_or("?"));
    eprint!("SKIPPED: {line}");
    if let Some(path) = std::env::var_os("HMM_SKIPPED_FILE") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        // One write, so that tests at the same time do not mix.
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("HMM_SKIPPED_FILE can be written");
    }
}

/// Whether all of these programs are installed; if not, the test is skipped.
pub fn has_programs(names: &[&str]) -> bool {
    let missing: Vec<_> = names.iter().copied().filter(|name| !is_installed(name)).collect();
    if !missing.is_empty() {
        skipped(&format!("not installed: {}", missing.join(", ")));
    }
    missing.is_empty()
}

fn is_installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    name.starts_with('/') && std::path::Path::new(name).exists()
        || std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

/// Whether the tests run as root; if not, this one is skipped.
pub fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skipped("needs root");
    }
    is_root
}
