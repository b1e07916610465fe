//! `hmm bench --applications --quick` on the real kernel, by the bench without `hmm run`: that is named for each application,
//! and nothing else is wrong.

#![expect(clippy::tests_outside_test_module, reason = "everything in this file is a test")]

use serde_json::Value;
use std::path::Path;
use std::process::Command;

#[test]
fn every_application_is_there() {
    // .../debug/deps/applications-0123 to .../debug/examples/bench
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("examples/bench");
    assert!(path.exists(), "build it by `cargo build -p hmm-bench --examples`: {}", path.display());
    let args = ["300", path.to_str().unwrap(), "bench", "--applications", "--quick", "--json"];
    let output = Command::new("timeout").args(args).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["app"].as_str().unwrap()).collect();
    assert_eq!(names, ["sort", "numpy", "redis", "sqlite", "graph"]);
    for row in rows {
        // It has run in RAM, or lacks a program.
        let why = row["skipped"].as_str().unwrap();
        let is_known =
            why.starts_with("hmm: ") || why.contains("there is no ") || why.contains("has no numpy");
        assert!(is_known && row["failures"].as_array().unwrap().is_empty(), "{row:#}");
        eprintln!("SKIPPED: {}: {why}", row["app"]);
    }
}
