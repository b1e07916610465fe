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

/// The children of what has become another user, and is not dumpable, are managed; and so are the agent's threads that user's.
#[test]
fn another_user() {
    if is_root() {
        succeeds("change user");
    }
}

/// The agent's threads give up what the program's do, and no more.
#[test]
fn another_user_with_some_rights() {
    if is_root() {
        succeeds("keep capabilities");
    }
}

/// The agent's threads make nothing that the kernel tells a process with threads by.
#[test]
fn a_process_with_one_thread() {
    succeeds("compare");
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

/// The filter is for the program's thread, whose system calls they are, and not for the agent's.
#[test]
fn all_threads_are_confined() {
    succeeds("confine all threads");
}

/// It is refused as by the kernel, where there are threads that cannot have it.
#[test]
fn several_threads_are_not_confined() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new();
    let Some(program) = compile("rude", &dir) else { return };
    let done = Job::new(program).args(["confine several", WORKING_SET]).under(&Hmm::ram(RAM));
    assert_eq!((done.code(), done.stdout().as_str()), (0, "confine several\n"), "{done:?}");
}

/// A filter that comes over the agent's threads all the same ends the program, and that is told.
#[test]
fn the_agent_is_confined() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new();
    let Some(program) = compile("rude", &dir) else { return };
    let done = Job::new(program).args(["confine all, bare", WORKING_SET]).under(&Hmm::ram(RAM));
    assert_eq!(done.signal(), Some(Signal::KILL.as_raw()), "{done:?}");
    assert!(done.stderr.contains("as by a seccomp filter"), "{done:?}");
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

/// Of memory that is managed it is refused that, as the kernel does it for whoever comes second.
#[test]
fn a_userfaultfd_of_its_own() {
    succeeds("use a userfaultfd");
}

#[test]
fn memory_is_limited() {
    succeeds("limit its memory");
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
