//! Signals to `hmm run` reach the program, once; nothing that is killed leaves anything running.

use std::time::{Duration, Instant};

use crate::common::{
    Running, TempDir, can_run, children, is_alive, kill, process_state, run_sh, skipped,
    supervisor_and_program, wait_until,
};

fn pid(pid: u32) -> i32 {
    i32::try_from(pid).unwrap()
}

/// A shell that notes every signal of one kind in a file, until it is told to end by `USR2`.
struct Listener {
    running: Running,
    dir: TempDir,
    signal: i32,
}

impl Listener {
    fn new(name: &str, signal: i32) -> Self {
        let dir = TempDir::new(&format!("{name}-{signal}"));
        let script = format!(
            "trap 'echo got >>{}/notes' {signal}; trap 'exit 0' USR2; while :; do sleep 0.05; done",
            dir.path().display()
        );
        let running = Running::start(&mut run_sh(&script));
        wait_until("the traps are set", || {
            let (_, program) = supervisor_and_program(running.pid());
            [signal, libc::SIGUSR2].iter().all(|signal| caught(program) & (1 << (signal - 1)) != 0)
        });
        Self { running, dir, signal }
    }

    /// How often the signal came.
    fn finish(self) -> usize {
        let notes = || std::fs::read_to_string(self.dir.path().join("notes")).unwrap_or_default();
        wait_until(&format!("signal {} arrives", self.signal), || !notes().is_empty());
        // Time for one too many.
        std::thread::sleep(Duration::from_millis(200));
        kill(pid(self.running.pid()), libc::SIGUSR2);
        assert_eq!(self.running.finish().code(), 0);
        notes().lines().count()
    }
}

/// The signals for which the process has handlers.
fn caught(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    line.map_or(0, |mask| u64::from_str_radix(mask.trim(), 16).unwrap())
}

#[test]
fn every_signal_reaches_the_program_once() {
    if !can_run() {
        return;
    }
    for signal in [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGUSR1,
        libc::SIGALRM,
        libc::SIGTERM,
        libc::SIGWINCH,
        libc::SIGRTMIN() + 5,
    ] {
        let listener = Listener::new("front", signal);
        kill(pid(listener.running.pid()), signal);
        assert_eq!(listener.finish(), 1, "signal {signal}");
    }
}

#[test]
fn a_signal_to_the_supervisor_reaches_the_program_too() {
    if !can_run() {
        return;
    }
    let listener = Listener::new("supervisor", libc::SIGTERM);
    let (supervisor, _) = supervisor_and_program(listener.running.pid());
    kill(pid(supervisor), libc::SIGTERM);
    assert_eq!(listener.finish(), 1);
}

#[test]
fn a_stopped_program_stops_hmm_and_both_go_on_together() {
    if !can_run() {
        return;
    }
    let running = Running::start(&mut run_sh("trap 'exit 5' TERM; while :; do sleep 0.05; done"));
    let front = running.pid();
    let (_, program) = supervisor_and_program(front);
    wait_until("the trap is set", || caught(program) & (1 << (libc::SIGTERM - 1)) != 0);
    let state = |pid| process_state(pid).map(|(state, _)| state);
    // In vfork its thread does not stop, but nor can it go on.
    let both_stopped = || state(front) == Some('T') && matches!(state(program), Some('T' | 'D'));
    for (stop, to, go_on, whom) in [
        (libc::SIGTSTP, front, libc::SIGCONT, front),
        (libc::SIGSTOP, program, libc::SIGCONT, program),
        (libc::SIGTSTP, program, libc::SIGCONT, front),
    ] {
        kill(pid(to), stop);
        wait_until("both stop", both_stopped);
        kill(pid(whom), go_on);
        wait_until("both go on", || state(front) != Some('T') && state(program) != Some('T'));
    }
    kill(pid(front), libc::SIGTERM);
    assert_eq!(running.finish().code(), 5);
}

/// The kernel tells of its end alone, not that it went on before.
#[test]
fn a_stopped_program_that_is_killed_ends_hmm() {
    if !can_run() {
        return;
    }
    for (signal, also) in [(libc::SIGKILL, libc::SIGKILL), (libc::SIGTERM, libc::SIGCONT)] {
        let running = Running::start(&mut run_sh("echo begun; exec sleep 60"));
        let front = running.pid();
        let (_, program) = supervisor_and_program(front);
        kill(pid(program), libc::SIGSTOP);
        wait_until("hmm stops", || process_state(front).is_some_and(|(state, _)| state == 'T'));
        kill(pid(program), signal);
        kill(pid(program), also);
        assert_eq!(running.finish().signal(), Some(signal));
    }
}

/// A thread in vfork does not stop before its child has executed something, and the child is stopped as well.
#[test]
fn a_program_is_seen_to_stop_in_vfork() {
    if !can_run() {
        return;
    }
    let running = Running::start(&mut run_sh("trap 'exit 5' TERM; while :; do /bin/true; done"));
    let front = running.pid();
    let (_, program) = supervisor_and_program(front);
    wait_until("the trap is set", || caught(program) & (1 << (libc::SIGTERM - 1)) != 0);
    let state = |pid| process_state(pid).map(|(state, _)| state);
    let (start, mut in_vfork, mut round) = (Instant::now(), 0, 0);
    while in_vfork < 3 && start.elapsed() < Duration::from_secs(20) {
        round += 1;
        std::thread::sleep(Duration::from_micros(round * 377 % 15_000));
        let before = children(program);
        kill(pid(program), libc::SIGSTOP);
        before.iter().chain(&children(program)).for_each(|child| kill(pid(*child), libc::SIGSTOP));
        wait_until("the front stops", || state(front) == Some('T'));
        in_vfork += u32::from(state(program) == Some('D'));
        kill(pid(program), libc::SIGCONT);
        children(program).iter().for_each(|child| kill(pid(*child), libc::SIGCONT));
        wait_until("the front goes on", || state(front) != Some('T'));
    }
    kill(pid(front), libc::SIGTERM);
    assert_eq!(running.finish().code(), 5);
    if in_vfork == 0 {
        skipped("the shell was never stopped in vfork: it may not use it");
    }
}

#[test]
fn the_program_does_not_outlive_a_killed_front() {
    if !can_run() {
        return;
    }
    let running = Running::start(&mut run_sh("sleep 60"));
    let (supervisor, program) = supervisor_and_program(running.pid());
    kill(pid(running.pid()), libc::SIGKILL);
    wait_until("the program is killed", || !is_alive(program));
    // The shell's own child is left to end by itself, or ended with it; the supervisor stays for it.
    children(supervisor).iter().for_each(|child| kill(pid(*child), libc::SIGKILL));
    wait_until("the supervisor ends", || !is_alive(supervisor));
    assert_eq!(running.finish().signal(), Some(libc::SIGKILL));
}

#[test]
fn the_program_does_not_outlive_a_killed_supervisor() {
    if !can_run() {
        return;
    }
    let running = Running::start(&mut run_sh("exec sleep 60"));
    let (supervisor, program) = supervisor_and_program(running.pid());
    kill(pid(supervisor), libc::SIGKILL);
    wait_until("the program is killed", || !is_alive(program));
    let done = running.finish();
    assert_eq!(done.code(), 125);
    assert!(done.stderr.contains("supervisor was killed"), "{}", done.stderr);
}
