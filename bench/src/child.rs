//! Starting a worker and waiting for it, so that nothing outlives the bench.
//!
//! A signal that asks the bench to end ends the running worker (the first one politely, because `hmm run` has to end what
//! it runs; a second one for certain), the wait for it is over, and the bench returns through all its callers, whose guards
//! take down what was set up. A bench that is killed outright takes its worker along.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group, set_parent_process_death_signal};
use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// The signal that asked the bench to end, or 0.
static STOPPED_BY: AtomicI32 = AtomicI32::new(0);
/// The process group of the running worker, or 0.
static RUNNING: AtomicI32 = AtomicI32::new(0);

/// What a worker gets to end after it was asked to.
const LAST_WORDS: Duration = Duration::from_secs(3);

const SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// A signal asked the bench to end.
#[derive(Debug, thiserror::Error)]
#[error("stopped by signal {0}")]
pub(crate) struct Stopped(pub(crate) i32);

/// Runs as a signal handler: only atomics and one system call, made without libc, so that `errno` stays as it was.
extern "C" fn on_signal(signal: libc::c_int) {
    let is_first = STOPPED_BY.swap(signal, Ordering::SeqCst) == 0;
    end_running(if is_first { Signal::TERM } else { Signal::KILL });
}

/// The number of a group that was just waited for may still be here for a moment; the kernel gives a number out again
/// only after all the others, so nobody else has it then.
fn end_running(signal: Signal) {
    if let Some(group) = Pid::from_raw(RUNNING.load(Ordering::SeqCst)) {
        // It may have ended by itself.
        let _ = kill_process_group(group, signal);
    }
}

/// From now on the signals that ask for an end are heeded in the bench's own way.
pub(crate) fn heed_signals() {
    let handler: extern "C" fn(libc::c_int) = on_signal;
    for signal in SIGNALS {
        // SAFETY: the handler does only what is allowed in one, and never returns to code that it has changed.
        unsafe { libc::signal(signal, handler as *const () as libc::sighandler_t) };
    }
}

/// Whether the bench was asked to end.
///
/// # Errors
/// [`Stopped`] when it was.
pub(crate) fn check_stopped() -> Result<(), Stopped> {
    match STOPPED_BY.load(Ordering::SeqCst) {
        0 => Ok(()),
        signal => Err(Stopped(signal)),
    }
}

/// A worker took too long, and was ended.
#[derive(Debug, thiserror::Error)]
#[error("given up after {} s", .0.as_secs_f64())]
pub(crate) struct GivenUp(Duration);

/// Runs the command in a process group of its own, inside the cgroup if there is one, and waits for its end.
///
/// # Errors
/// [`Stopped`], or that the command could not be started.
pub(crate) fn run(command: &mut Command, cgroup_procs: Option<&Path>) -> Result<Output> {
    run_within(Duration::MAX, command, cgroup_procs)
}

/// As [`run`], for so long at most.
///
/// # Errors
/// [`Stopped`], [`GivenUp`], or that the command could not be started.
pub(crate) fn run_within(
    patience: Duration,
    command: &mut Command,
    cgroup_procs: Option<&Path>,
) -> Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    join_before_exec(command, cgroup_procs)?;
    check_stopped()?;
    let child =
        command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    RUNNING.store(i32::try_from(child.id()).context("process numbers fit an i32")?, Ordering::SeqCst);
    // The signal may have come before the handler had a group to send it to.
    if check_stopped().is_err() {
        end_running(Signal::TERM);
    }
    let (ended, end) = mpsc::channel();
    let watchdog = thread::spawn(move || has_to_be_ended(patience, &end));
    let output = child.wait_with_output();
    drop(ended);
    let given_up = watchdog.join().unwrap_or(false);
    RUNNING.store(0, Ordering::SeqCst);
    check_stopped()?;
    if given_up {
        return Err(GivenUp(patience).into());
    }
    output.context("cannot wait for the worker")
}

/// Ends the running worker when it has not ended by itself in time; whether that was so.
fn has_to_be_ended(patience: Duration, end: &Receiver<()>) -> bool {
    let lasts = |time| end.recv_timeout(time) == Err(RecvTimeoutError::Timeout);
    let given_up = lasts(patience);
    if given_up {
        end_running(Signal::TERM);
    }
    if given_up && lasts(LAST_WORDS) {
        end_running(Signal::KILL);
    }
    given_up
}

/// Makes the child die with the bench and, before it has any memory of its own, a member of the cgroup.
fn join_before_exec(command: &mut Command, cgroup_procs: Option<&Path>) -> Result<()> {
    let open = |path: &Path| File::options().write(true).open(path);
    let procs = cgroup_procs.map(open).transpose().context("cannot open the cgroup's list of processes")?;
    let join = move || {
        set_parent_process_death_signal(Some(Signal::TERM))?;
        procs.as_ref().map_or(Ok(()), |mut file| file.write_all(b"0"))
    };
    // SAFETY: the closure makes only system calls, allocates nothing and takes no lock, as is asked for after a fork.
    unsafe { command.pre_exec(join) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn who_takes_too_long_is_ended() {
        let begin = Instant::now();
        let mut deaf = Command::new("sh");
        deaf.args(["-c", "trap '' TERM; echo here; sleep 100; sleep 100"]);
        let error = run_within(Duration::from_millis(300), &mut deaf, None).unwrap_err();
        assert_eq!(error.downcast::<GivenUp>().unwrap().to_string(), "given up after 0.3 s");
        assert!(begin.elapsed() < Duration::from_secs(50), "{:?}", begin.elapsed());
        let output = run_within(Duration::from_secs(50), Command::new("echo").arg("in time"), None).unwrap();
        assert_eq!(output.stdout, b"in time\n");
    }
}
