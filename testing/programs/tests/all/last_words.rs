//! What the kernel touches when a thread has ended is there, by `c/lastword.c`; threads that end are not left alone; and they may end
//! from wherever they are, by `c/leaving.c`.

use crate::calls::check;
use hmm_programs::skip::has_programs;
use hmm_programs::{Hmm, Job, MIB, can_run};

fn told(act: &str, number: &str, mib: &str) {
    check("lastword", &[act, number, mib], 16 * MIB);
}

/// The kernel does not wait for a page that is away when a thread ends, but gives up: `pthread_join` would wait for ever.
#[test]
fn threads_are_joined() {
    told("join", "5000", "48");
}

/// The same for robust mutexes: nobody would learn that who has one locked has ended.
#[test]
fn who_leaves_a_mutex_locked_is_told_of() {
    told("mutex", "20", "48");
}

/// The list of the mutexes is in memory that leaves, the mutex is shared.
#[test]
fn a_process_that_leaves_a_mutex_locked_is_told_of() {
    told("process", "5", "48");
}

/// Where the list of a thread's mutexes is none the kernel looks no further, and so does the agent.
#[test]
fn a_list_of_mutexes_that_is_none_is_borne() {
    told("nonsense", "900", "48");
}

/// Each gives its stack back, which is an event, and faults; the kernel gives faults first, and serves none while there is an
/// event.
#[test]
fn many_threads_end_at_once() {
    told("crowd", "500", "32");
}

/// libc unwinds their stacks: a frame of ours in them would end the process.
#[test]
fn threads_end_from_where_they_are() {
    for way in ["exit", "thrd_exit", "pause", "open", "openat", "vmsplice", "close", "at any time"] {
        check("leaving", &[way, "20", "24"], 16 * MIB);
    }
}

/// An interpreter that ends leaves threads behind, which end by themselves when they come to wait for it (`pthread_exit`).
#[test]
fn an_interpreter_leaves_threads_behind() {
    if !can_run() || !has_programs(&["/usr/bin/python3"]) {
        return;
    }
    let work = "import threading, time
b = bytearray(48 << 20)
def touch():
  while True:
    for i in range(0, len(b), 4096): b[i] = 1
for _ in range(3): threading.Thread(target=touch, daemon=True).start()
time.sleep(0.3)
";
    let managed = Job::new("/usr/bin/python3").args(["-c", work]).under(&Hmm::ram(32 * MIB));
    assert!(managed.status.success(), "{managed:?}");
}
