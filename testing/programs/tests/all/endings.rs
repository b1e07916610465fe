//! How programs end, and what they can see of hmm.

use hmm_programs::{
    Hmm, Job, MIB, TempDir, assert_healthy, assert_same_output, can_run, compile, compile_library,
};

/// Runs it alone and managed; everything must be the same.
#[track_caller]
fn same(job: &Job) {
    if !can_run() {
        return;
    }
    let (alone, managed) = (job.alone(), job.under(&Hmm::ram(16 * MIB)));
    assert_same_output(&managed, &alone);
}

#[test]
fn exit_codes() {
    for code in [0, 1, 42, 125, 126, 127, 255] {
        same(&Job::sh(&format!("exit {code}")));
    }
}

#[test]
fn signals() {
    for signal in ["TERM", "KILL", "SEGV", "ABRT", "USR1", "BUS"] {
        same(&Job::sh(&format!("ulimit -c 0; kill -{signal} $$; echo survived")));
    }
}

#[test]
fn exec_and_fork_with_exec() {
    same(&Job::sh("exec sh -c 'exec echo three deep'"));
    same(&Job::sh(
        "for i in 1 2 3 4 5 6 7 8 9 10; do /bin/true & done; wait; (exit 7); echo $?; false | true; echo $?",
    ));
    same(&Job::sh("env -i /bin/echo without an environment"));
    same(&Job::python(
        "import os, sys\nb = bytearray(48 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1\nsys.stdout.flush()\nos.execv('/bin/echo', ['echo', 'after exec', str(sum(b))])",
    ));
}

#[test]
fn a_program_that_closes_all_descriptors() {
    same(&Job::python(
        "
import os
n = 64 << 20
b = bytearray(n)
def write(add):
    for i in range(0, n, 4096): b[i:i + 8] = (i + add).to_bytes(8, 'little')
def check(add):
    for i in range(0, n, 4096): assert int.from_bytes(b[i:i + 8], 'little') == i + add, i
write(0)
out = os.dup2(1, 1000)
os.closerange(3, 1000)
check(0)
write(1)
check(1)
more = bytearray(b)
write(2)
assert more[4096:4104] == (4097).to_bytes(8, 'little')
check(2)
os.closerange(0, 1000)
check(2)
os.write(out, b'everything is there\\n')
",
    ));
}

#[test]
fn nothing_new_among_the_descriptors() {
    same(&Job::sh("exec ls /proc/self/fd"));
    same(&Job::python("import os; print(sorted(os.listdir('/proc/self/fd')))"));
}

#[test]
fn the_environment_of_children_works() {
    same(&Job::sh("cd / && pwd && echo \"$0\" && umask && nice && trap 'echo trapped' EXIT"));
}

#[test]
fn threads_that_are_killed_in_the_middle() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new();
    let Some(program) = compile("calls", &dir) else { return };
    // By itself: from a thread, while the others are at it.
    for how in ["exit", "_exit", "abort", "kill", "segv", "return"] {
        let job =
            Job::sh("ulimit -c 0; exec \"$0\" \"$@\"").arg(&program).args(["4", "64", "1000", "9", how]);
        let (alone, managed) = (job.alone(), job.under(&Hmm::ram(16 * MIB)));
        assert_same_output(&managed, &alone);
    }
}

#[test]
fn a_budget_that_suffices_costs_nothing_but_first_touches() {
    if !can_run() {
        return;
    }
    let job = Job::python(
        "b = bytearray(32 << 20)\nfor k in range(3):\n  for i in range(0, len(b), 4096): b[i] = k\nprint(sum(b))",
    );
    let (alone, managed) = (job.alone(), job.under(&Hmm::ram(128 * MIB)));
    assert_same_output(&managed, &alone);
    assert_healthy(&managed, 128 * MIB);
    let stats = managed.stats();
    assert_eq!((stats.count("pgstore"), stats.count("pgmajfault")), (0, 0), "{stats}");
    // Runs of at least sixteen pages: 32 MiB are 512 of them, python's other memory some more.
    assert!(stats.count("pgfault") < 1024, "{stats}");
}

/// A child that is killed before it has said anything cannot be told from one that starts, by who waits for its word: the thread
/// that forks has the child's end of the connection as well, and waits for a page.
#[test]
fn children_are_killed_at_birth() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new();
    let (Some(program), Some(library)) = (compile("dying", &dir), compile_library("dying", &dir)) else {
        return;
    };
    let job = Job::new(program).args(["10", "48"]).env("LD_PRELOAD", library);
    let (alone, managed) = (job.alone(), job.under(&Hmm::ram(16 * MIB)));
    assert_same_output(&managed, &alone);
    assert_healthy(&managed, 16 * MIB);
}
