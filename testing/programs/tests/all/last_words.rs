//! What the kernel touches when a thread has ended is there, by `c/lastword.c`; and threads that end are not left alone.

use crate::calls::check;
use hmm_programs::MIB;

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

/// Each gives its stack back, which is an event, and faults; the kernel gives faults first, and serves none while there is an
/// event.
#[test]
fn many_threads_end_at_once() {
    told("crowd", "500", "32");
}
