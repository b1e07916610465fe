//! `hmm bench --mirror --quick` on the real kernel: every row is there, and all bytes were right. Speed is not looked at.
//!
//! The bench is the example of this package, because a bench starts its own executable again as worker.

#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "everything in this file is a test"
)]

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

const ROWS: [&str; 16] = [
    "to-device4k",
    "to-system4k",
    "to-device-huge",
    "to-system-huge",
    "snapshot",
    "load-in-place",
    "load-frame",
    "sum-in-place",
    "sum-frames",
    "copy-in-place",
    "copy-frames",
    "fault",
    "twice-by-words",
    "twice-by-pages",
    "twice-moved-by-words",
    "twice-moved-by-pages",
];

fn bench(args: &[&str]) -> Output {
    // .../debug/deps/mirror-0123 to .../debug/examples/bench
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("examples/bench");
    assert!(path.exists(), "build it by `cargo build -p hmm-bench --examples`: {}", path.display());
    // It ends by itself, or is ended: a device that hangs is a defect, and not to hang the tests.
    Command::new("timeout").arg("120").arg(path).args(args).output().unwrap()
}

#[test]
fn every_row_is_there_and_all_bytes_are_right() {
    let output = bench(&["bench", "--mirror", "--quick", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["figure"].as_str().unwrap()).collect();
    assert_eq!(names, ROWS);
    for row in rows {
        assert!(row["failed"].is_null(), "{row:#}");
        if let Some(why) = row["skipped"].as_str() {
            // What a machine may lack. Any other reason is a defect.
            assert!(["userfaultfd", "huge pages"].iter().any(|lack| why.contains(lack)), "{why}");
            eprintln!("SKIPPED: {}: {why}", row["figure"]);
            continue;
        }
        for value in ["figure", "floor", "ratio"] {
            let value = row["median"][value].as_f64().unwrap();
            assert!(value.is_finite() && value >= 0.0, "{row:#}");
        }
        assert!(
            row["median"]["floor"].as_f64().unwrap() > 0.0 && row["median"]["met"].is_boolean(),
            "{row:#}"
        );
    }
}

#[test]
fn what_comes_home_is_measured_and_right() {
    let output = bench(&["bench", "--paging", "--quick", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["figure"].as_str().unwrap()).collect();
    assert_eq!(names, ["fault-home4k", "fault-home2m", "sparse-work", "sparse-tables"]);
    for row in rows {
        assert!(row["failed"].is_null(), "{row:#}");
        if let Some(why) = row["skipped"].as_str() {
            assert!(["userfaultfd", "addresses"].iter().any(|lack| why.contains(lack)), "{why}");
            eprintln!("SKIPPED: {}: {why}", row["figure"]);
            continue;
        }
        assert!(row["median"]["figure"].as_f64().unwrap() > 0.0, "{row:#}");
        assert!(row["median"]["floor"].as_f64().unwrap() > 0.0, "{row:#}");
    }
}

#[test]
fn choices_of_the_other_bench_are_refused() {
    for other in ["--workloads=sort", "--ram=8M", "--systems=zram"] {
        let output = bench(&["bench", "--mirror", "--quick", other]);
        assert!(!output.status.success(), "{other}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("cannot be used with"), "{said}");
    }
}
