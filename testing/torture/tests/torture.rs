//! `hmm torture`, shortly: with a seed that is always the same, with one by chance, and with a device that is lost.
//!
//! A test that fails prints the command that does the same again.

#![expect(clippy::tests_outside_test_module, reason = "integration tests")]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hmm_programs::command::hmm_binary;
use hmm_programs::{can_run, procs};
use rustix::process::Signal;

/// Runs it, and gives what it reports.
fn torture(args: &[&str]) -> serde_json::Value {
    let output = Command::new(hmm_binary()).args(["torture", "--json"]).args(args).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    // With the seed.
    eprintln!("{text}");
    assert!(output.status.success(), "{} {text} {}", output.status, String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&text).expect("JSON")
}

/// It did something, and memory did not suffice.
fn assert_at_work(report: &serde_json::Value) {
    let count = |name: &str| report["done"][name].as_u64().expect(name);
    assert!(count("nr_operations") > 100, "{report}");
    assert!(count("nr_forks") > 0, "{report}");
    assert!(report["pages_stored"].as_u64() > Some(1000), "{report}");
    assert!(report["samples"].as_u64() > Some(0), "{report}");
}

/// What is expected of memory is what the kernel does by itself.
#[test]
fn the_kernel_alone_does_what_is_expected() {
    let report = torture(&["--alone", "--seed", "1", "--minutes", "0.05"]);
    assert!(report["done"]["nr_operations"].as_u64() > Some(100), "{report}");
}

#[test]
fn a_program_does_whatever_it_likes() {
    if can_run() {
        assert_at_work(&torture(&["--seed", "6", "--minutes", "0.2", "--ram", "48M", "--patience", "240"]));
    }
}

#[test]
fn each_process_does_whatever_it_likes_with_its_budget() {
    if can_run() {
        let args = ["--seed", "9", "--minutes", "0.1", "--ram", "48M", "--patience", "240", "--per-process"];
        assert_at_work(&torture(&args));
    }
}

#[test]
fn a_program_does_something_else_each_time() {
    if can_run() {
        assert_at_work(&torture(&["--minutes", "0.2", "--ram", "48M", "--patience", "240"]));
    }
}

/// A page of a device that is lost is SIGBUS, or as it must be.
#[test]
fn a_lost_device_gives_no_wrong_bytes() {
    if can_run() {
        let report = torture(&[
            "--seed",
            "3",
            "--minutes",
            "0.05",
            "--device",
            "lz4:lost-after=150",
            "--patience",
            "120",
        ]);
        assert!(report["pages_stored"].as_u64() > Some(0), "{report}");
    }
}

/// Errors that pass, checksums that are wrong, a device that is slow: the same.
#[test]
fn a_failing_device_gives_no_wrong_bytes() {
    if can_run() {
        let device = "lz4:io-errors=20,corrupt=300,latency=100,seed=1";
        let args = ["--seed", "5", "--minutes", "0.1", "--device", device, "--patience", "120"];
        let report = torture(&args);
        assert!(report["pages_stored"].as_u64() > Some(0), "{report}");
    }
}

/// Nothing is left of one that is killed, not even where the worker stands still, as it does whenever its memory is looked at.
#[test]
fn a_worker_ends_with_whom_it_is_for() {
    if !can_run() {
        return;
    }
    let mut command = Command::new(hmm_binary());
    command.args(["torture", "--seed", "8", "--minutes", "1"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut torture = command.spawn().expect("it runs");
    let started = || procs::tree(torture.id()).into_iter().filter(|pid| *pid != torture.id());
    let start = Instant::now();
    // Front, supervisor, program.
    while started().count() < 3 {
        assert!(start.elapsed() < Duration::from_secs(60), "it does not begin");
        std::thread::sleep(Duration::from_millis(10));
    }
    let all: Vec<u32> = started().collect();
    let program = all[2];
    procs::signal(program, Signal::STOP);
    torture.kill().expect("it is ours");
    torture.wait().expect("it is ours");
    let start = Instant::now();
    while let Some(pid) = all.iter().find(|pid| !matches!(procs::state(**pid), None | Some('Z' | 'X'))) {
        if start.elapsed() > Duration::from_secs(30) {
            let left = procs::describe(*pid);
            all.iter().for_each(|pid| procs::signal(*pid, Signal::KILL));
            panic!("left behind: {left}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
