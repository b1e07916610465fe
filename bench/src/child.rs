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

/// The signal that asked the bench to end, or 0.
static STOPPED_BY: AtomicI32 = AtomicI32::new(0);
/// The process group of the running worker, or 0.
static RUNNING: AtomicI32 = AtomicI32::new(0);

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

/// Runs the command in a process group of its own, inside the cgroup if there is one, and waits for its end.
///
/// # Errors
/// [`Stopped`], or that the command could not be started.
pub(crate) fn run(command: &mut Command, cgroup_procs: Option<&Path>) -> Result<Output> {
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
    let output = child.wait_with_output();
    RUNNING.store(0, Ordering::SeqCst);
    check_stopped()?;
    output.context("cannot wait for the worker")
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
