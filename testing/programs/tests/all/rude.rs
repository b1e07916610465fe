//! Programs that do to their process what libraries in it do not expect, by `c/rude.c`.

use std::os::unix::process::ExitStatusExt;

use hmm_programs::skip::is_root;
use hmm_programs::{Hmm, Job, MIB, TempDir, assert_same_output, can_run, compile};
use rustix::process::Signal;

/// What the program works on, and its budget.
const WORKING_SET: &str = "64";
const RAM: u64 = 16 * MIB;

/// Alone and in a quarter of its memory it prints the same and ends in the same way. Gives how.
#[track_caller]
fn rude(act: &str) -> Option<std::process::ExitStatus> {
    if !can_run() {
        return None;
    }
    let dir = TempDir::new();
    let job = Job::new(compile("rude", &dir)?).args([act, WORKING_SET]);
    let (alone, managed) = (job.alone(), job.under(&Hmm::ram(RAM)));
    assert_same_output(&managed, &alone);
    let stats = managed.stats();
    assert!(stats.count("pgstore") * 4096 >= RAM, "hardly anything left: {stats}");
    assert!(stats.get("peak_resident_bytes") <= RAM, "the budget was exceeded: {stats}");
    assert_eq!(stats.get("unmanaged_processes"), 0, "{stats}");
    Some(alone.status)
}

/// As [`rude`], and that is with success.
#[track_caller]
fn succeeds(act: &str) {
    if let Some(status) = rude(act) {
        assert!(status.success(), "{status}");
    }
}

#[test]
fn all_descriptors_are_closed() {
    succeeds("close everything");
}

#[test]
fn a_daemon_goes_on() {
    succeeds("leave to a daemon");
}

/// The children of what has become another user, and is not dumpable, are managed.
#[test]
fn another_user() {
    if is_root() {
        succeeds("change user");
    }
}

/// The children of what has no `/proc` any more are managed.
#[test]
fn a_root_without_procfs() {
    if is_root() {
        succeeds("change root");
    }
}

/// Pids inside are not those by which the supervisor knows its processes.
#[test]
fn a_namespace_of_pids() {
    if is_root() {
        succeeds("change pids");
    }
}

/// The threads of the agent do not keep a process whose own have all ended.
#[test]
fn system_calls_are_confined() {
    if let Some(status) = rude("confine") {
        assert_eq!(status.code(), Some(7));
    }
}

#[test]
fn threads_end_and_nobody_ends_the_process() {
    if let Some(status) = rude("end by threads") {
        assert_eq!(status.code(), Some(5));
    }
}

#[test]
fn signals_are_blocked() {
    succeeds("block signals");
}

#[test]
fn limits_are_lowered() {
    succeeds("limit itself");
}

#[test]
fn a_crash_in_a_handler() {
    if let Some(status) = rude("crash in a handler") {
        assert_eq!(status.signal(), Some(Signal::SEGV.as_raw()));
    }
}

#[test]
fn a_thread_executes_another_program() {
    succeeds("execute in a thread");
}

#[test]
fn terabytes_of_addresses() {
    succeeds("reserve terabytes");
}
