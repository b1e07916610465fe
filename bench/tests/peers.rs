//! The peers of the kernel's on the real kernel: they measure, and leave nothing behind, however the bench ends.
//!
//! Needs root and zram; without them each test says SKIPPED with the reason. The bench is the example of this package,
//! because a bench starts its own executable again as worker.

#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "everything in this file is a test"
)]

use serde_json::Value;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// There is one lock for the whole machine, so tests that take it take turns.
static TURN: Mutex<()> = Mutex::new(());
const TIMEOUT: Duration = Duration::from_secs(120);

/// Waits for this test's turn, or says why it cannot run here.
fn turn() -> Option<MutexGuard<'static, ()>> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut reason = None;
    wait_until("the end of another bench on this machine", || {
        let probe: Value = serde_json::from_slice(&bench(&["--workloads", "seqread"]).stdout).unwrap();
        reason = probe.pointer("/skipped/0/reason").and_then(Value::as_str).map(str::to_owned);
        !reason.as_ref().is_some_and(|why| why.contains("another hmm bench"))
    });
    let Some(why) = reason else { return Some(turn) };
    // What a machine may lack. Any other reason is a defect.
    assert!(["needs root", "no zram", "cgroup"].iter().any(|lack| why.contains(lack)), "{why}");
    eprintln!("SKIPPED: {why}");
    None
}

fn executable() -> PathBuf {
    // .../debug/deps/peers-0123 to .../debug/examples/bench
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("examples/bench");
    assert!(path.exists(), "build it by `cargo build -p hmm-bench --examples`: {}", path.display());
    path
}

fn command(args: &[&str]) -> Command {
    command_on("zram", args)
}

fn command_on(system: &str, args: &[&str]) -> Command {
    let mut command = Command::new(executable());
    command.args(["bench", "--quick", "--ram=8M", "--data=3:1", "--json"]).arg(format!("--systems={system}"));
    command.args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn bench(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

/// Swap devices that carry our label.
fn our_swaps() -> Vec<String> {
    let swaps = fs::read_to_string("/proc/swaps").unwrap();
    let devices = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    let has_label = |device: &&str| {
        let header = Command::new("head").args(["-c", "4096", device]).output().unwrap().stdout;
        header.get(1052..1061) == Some(b"hmm-bench")
    };
    devices.filter(has_label).map(str::to_owned).collect()
}

fn nr_zrams() -> usize {
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    devices.filter(|device| device.file_name().to_string_lossy().starts_with("zram")).count()
}

fn cgroup_exists() -> bool {
    ["/sys/fs/cgroup/memory/hmm-bench", "/sys/fs/cgroup/hmm-bench"]
        .iter()
        .any(|path| Path::new(path).exists())
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < TIMEOUT, "still not: {what}");
        sleep(Duration::from_millis(10));
    }
}

/// A bench in the middle of a measurement that would take minutes.
fn long_bench() -> Child {
    long_bench_on("zram")
}

fn long_bench_on(system: &str) -> Child {
    let mut child = command_on(system, &["--workloads", "seqrmw", "--passes", "10000"]).spawn().unwrap();
    wait_until("a worker that swaps", || {
        assert_eq!(child.try_wait().unwrap(), None, "the bench ended early");
        let used = fs::read_to_string("/proc/swaps").unwrap();
        let used = used.lines().filter_map(|line| line.split_whitespace().nth(3)?.parse::<u64>().ok());
        used.sum::<u64>() > 0 && !our_swaps().is_empty()
    });
    child
}

fn end(mut child: Child, signal: &str) -> ExitStatus {
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let mut status = None;
    wait_until("the end of the bench", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

#[test]
fn measures_and_leaves_nothing() {
    let Some(_turn) = turn() else { return };
    let before = nr_zrams();
    let output = bench(&["--workloads", "seqrmw,randread"]);
    assert!(output.status.success(), "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    for cell in json["cells"].as_array().unwrap() {
        let median = &cell["median"];
        assert!(median["mb_per_s"].as_f64().unwrap() > 1.0, "{json:#}");
        assert!(median["fault_share"].as_f64().unwrap() > 0.2, "half of the memory is away: {json:#}");
        assert!(median["device_bytes"].as_f64().unwrap() > 1e6, "{json:#}");
        let latency = &median["fault_latency"];
        assert!(latency["p50_ns"].as_f64().unwrap() > 1000.0, "{json:#}");
        assert!(latency["p50_ns"].as_f64() <= latency["p99_ns"].as_f64(), "{json:#}");
    }
    assert_eq!((our_swaps(), nr_zrams(), cgroup_exists()), (vec![], before, false));
}

#[test]
fn a_signal_ends_it_cleanly() {
    let Some(_turn) = turn() else { return };
    for (signal, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        let before = nr_zrams();
        let child = long_bench();
        assert!(cgroup_exists());
        assert_eq!(end(child, signal).code(), Some(code), "{signal}");
        assert_eq!((our_swaps(), nr_zrams(), cgroup_exists()), (vec![], before, false), "{signal}");
    }
}

#[test]
fn what_a_killed_bench_leaves_the_next_removes() {
    let Some(_turn) = turn() else { return };
    let before = nr_zrams();
    assert_eq!(end(long_bench(), "-KILL").signal(), Some(9));
    assert_eq!(our_swaps().len(), 1, "nothing is left, so this test shows nothing");
    assert!(bench(&["--workloads", "seqread"]).status.success());
    assert_eq!((our_swaps(), nr_zrams(), cgroup_exists()), (vec![], before, false));
}

#[test]
fn two_at_a_time_do_not_disturb_each_other() {
    let Some(_turn) = turn() else { return };
    let first = long_bench();
    let second = bench(&["--workloads", "seqread"]);
    let json: Value = serde_json::from_slice(&second.stdout).unwrap();
    let reason = json["skipped"][0]["reason"].as_str().unwrap_or("none");
    assert!(reason.contains("another hmm bench"), "{json:#}");
    assert_eq!(our_swaps().len(), 1, "the second has taken the first one's swap away");
    assert_eq!(end(first, "-TERM").code(), Some(143));
    assert_eq!(our_swaps().len(), 0);
}

/// What zswap is set to; `None` without it.
fn zswap() -> Option<(String, String)> {
    let read = |name: &str| fs::read_to_string(format!("/sys/module/zswap/parameters/{name}")).ok();
    Some((read("enabled")?, read("compressor")?))
}

fn nr_own_files() -> usize {
    ["hmm-bench.swap", "hmm-bench.map"]
        .iter()
        .filter(|name| Path::new("/var/tmp").join(name).exists())
        .count()
}

#[test]
fn the_others_measure_and_leave_nothing() {
    let Some(_turn) = turn() else { return };
    let before = zswap();
    let output = command_on("zswap,swapfile,mmap", &["--workloads", "seqrmw,randread"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    for skipped in json["skipped"].as_array().unwrap() {
        let why = skipped["reason"].as_str().unwrap();
        assert!(
            ["no zswap", "cannot swap to a file", "no room"].iter().any(|lack| why.contains(lack)),
            "{why}"
        );
        eprintln!("SKIPPED: {}: {why}", skipped["system"]);
    }
    let cells = json["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 2 * (3 - json["skipped"].as_array().unwrap().len()), "{json:#}");
    for cell in cells {
        assert!(cell["median"]["mb_per_s"].as_f64().unwrap() > 0.1, "{json:#}");
        assert!(cell["median"]["moved_bytes"].as_f64().unwrap() > 1e6, "{json:#}");
    }
    assert_eq!((our_swaps(), nr_own_files(), cgroup_exists()), (vec![], 0, false));
    assert_eq!(zswap(), before);
}

#[test]
fn the_next_bench_puts_zswap_back_after_one_that_was_killed() {
    let Some(_turn) = turn() else { return };
    let Some(before) = zswap().filter(|_| !json_of("zswap")["cells"][0]["median"].is_null()) else {
        return eprintln!("SKIPPED: no zswap");
    };
    let nr_before = nr_zrams();
    assert_eq!(end(long_bench_on("zswap"), "-KILL").signal(), Some(9));
    assert_ne!(zswap().unwrap(), before, "nothing has changed, so this test shows nothing");
    assert_eq!((our_swaps().len(), nr_own_files()), (1, 1), "nothing is left, so this test shows nothing");
    // Any of them does.
    assert!(bench(&["--workloads", "seqread"]).status.success());
    assert_eq!((our_swaps(), nr_own_files(), nr_zrams(), cgroup_exists()), (vec![], 0, nr_before, false));
    assert_eq!(zswap().unwrap(), before);
}

fn json_of(system: &str) -> Value {
    let output = command_on(system, &["--workloads", "seqread"]).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn an_adapter_is_measured_like_any_other() {
    let adapt = |adapter: &str| {
        let output = command_on("ram", &["--workloads", "randread", "--adapter", adapter]).output().unwrap();
        (output.status.success(), serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default())
    };
    let (done, json) = adapt(&format!("{} bench-worker {{args}}", executable().display()));
    let system = json["cells"][1]["system"].as_str();
    assert!(done && system == Some("adapter"), "{json:#}");
    assert!(json["cells"][1]["median"]["mb_per_s"].as_f64().unwrap() > 1.0, "{json:#}");
    let (done, json) = adapt("/nowhere/peer {args}");
    assert!(done && json["skipped"][0]["reason"].as_str().unwrap().contains("/nowhere/peer"), "{json:#}");
    let (done, _) = adapt("echo wrong bytes: {args} >&2; exit 3");
    assert!(!done, "wrong bytes are the end of the run");
}

#[test]
fn what_takes_too_long_is_given_up_with_all_its_repetitions() {
    let slow = "sleep 60; echo {args}";
    let args = ["--workloads", "randread", "--adapter", slow, "--patience", "1", "--reps", "3"];
    let start = Instant::now();
    let output = command_on("ram", &args).output().unwrap();
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let cell = &json["cells"][1];
    assert_eq!(cell["failures"], serde_json::json!(["repetition 1: given up after 1 s"]), "{json:#}");
    assert_eq!((output.status.code(), cell["given_up"].as_bool()), (Some(1), Some(true)));
    assert_eq!(json["cells"][0]["repetitions"].as_array().unwrap().len(), 3, "{json:#}");
}
