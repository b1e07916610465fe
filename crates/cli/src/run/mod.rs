//! `hmm run`: starts a program with the agent inside, keeps the accounts, and ends as the program ends.
//!
//! Two processes stand around the program:
//!
//! - the **front** is the process that was called. It takes the place of the program for its caller: it passes signals
//!   on, stops when the program stops, and ends with the program's exit status or by its signal. It does nothing else.
//! - the **supervisor** is its child and the program's parent. It holds the two memory files that every process under it
//!   opens by way of its `/proc/PID/fd`: the agent's library and the control page. It notices when a process is gone and
//!   takes its charges back, draws the live line, and tells the front how the program ended. It is the reaper of all that
//!   the program leaves behind, and stays as long as any of it lives: the files must not vanish before, nor its pid become
//!   somebody else's. So a program may leave a daemon running, and its caller does not wait for it. Where nothing is left
//!   the front waits until the supervisor has ended, so that its own caller is told what all of them took.
//!
//! They talk over a socket pair: signal numbers, a byte each, to the supervisor; one [`Ending`](channel::Ending) to the
//! front. Whoever sees the socket closed knows that the other is dead: the front reports it, the supervisor kills the
//! program, which the kernel also does when the supervisor dies. Nothing is left running unwatched.

mod channel;
mod descent;
mod door;
mod elf;
mod front;
mod job;
mod live;
mod place;
mod preload;
mod program;
mod recorder;
mod sanitizers;
mod signals;
mod standstill;
mod strays;
mod summary;
mod supervisor;
mod totals;
mod verdict;
mod watch;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hmm::control::{CONTROL_ENV, Control};
use hmm::door::DOOR_ENV;

use crate::args::{RunArgs, TraceArgs};
use crate::failure::{Attempt, Failure};
use job::Job;
use place::Place;
use signals::Mask;

/// Runs the program; what happens to its pages is written to a file as well. Returns as [`run`] does.
pub(crate) fn trace(args: TraceArgs) -> Result<ExitCode, Failure> {
    let (args, output) = args.into_parts();
    run_job(args, Some(output))
}

/// Runs the program. Returns in both processes, each with its own exit code.
pub(crate) fn run(args: RunArgs) -> Result<ExitCode, Failure> {
    run_job(args, None)
}

fn run_job(args: RunArgs, trace: Option<PathBuf>) -> Result<ExitCode, Failure> {
    refuse_nesting()?;
    let job = Job::new(args, trace)?;
    crate::doctor::require_run()?;
    let mask = Mask::block().attempt("block signals")?;
    let (to_supervisor, to_front) = UnixStream::pair().attempt("create a socket pair")?;
    let place = Place::create();
    let front = rustix::process::getpid();
    // SAFETY: this process has one thread, so the child finds every lock free and may do what the parent might.
    match unsafe { libc::fork() } {
        0 => {
            drop(to_supervisor);
            Ok(supervisor::supervise(job, mask, front, to_front, place.as_ref()))
        }
        pid if pid > 0 => {
            drop((to_front, job));
            front::stand_in(to_supervisor, pid.cast_unsigned(), place.as_ref())
        }
        _ => {
            let error = std::io::Error::last_os_error();
            place.inspect(Place::remove);
            Err(error).attempt("start the supervisor")
        }
    }
}

/// A process can have one agent, and this one's children would get two.
fn refuse_nesting() -> Result<(), Failure> {
    let door = std::env::var_os(DOOR_ENV).map(PathBuf::from);
    match std::env::var_os(CONTROL_ENV) {
        Some(path) if Control::is_there(Path::new(&path), door.as_deref()) => Err(Failure::of_hmm(
            "`hmm run` was called by a program that runs under hmm itself: its memory is managed already",
        )),
        _ => Ok(()),
    }
}
