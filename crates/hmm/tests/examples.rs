//! The examples run, and print what they are there to show.

#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

use std::path::PathBuf;
use std::process::Command;

/// Cargo builds examples beside the tests, for `cargo test`.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("has a name");
    let target = test.ancestors().nth(2).expect("deps is in a directory");
    target.join("examples").join(name)
}

#[test]
fn mirror_draws_what_a_device_sees() {
    let path = example("mirror");
    if !path.exists() {
        eprintln!("SKIPPED: only some targets were built, and not {}", path.display());
        return;
    }
    let output = Command::new(path).output().expect("starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let pictures = [
        "untouched:           ................",
        "six pages written:   wwwwww..........",
        "device maps eight:   wwwwww00........",
        "the device's sum is 21",
        "3 taken out:         ...www00........",
        "device maps again:   wwwwww00........",
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), pictures);
}
