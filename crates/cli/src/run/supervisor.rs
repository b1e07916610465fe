//! The program's parent: see the protocol in the module above.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::Instant;

use hmm::control::{CONFIG_ENV, CONTROL_ENV, Control, VerdictKind};
use hmm::door::{DOOR_ENV, LIBRARY_ENV};
use hmm_uapi::{Fd, sys};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use super::channel::{Ending, Next};
use super::door::Door;
use super::job::{Job, Show, StatsFile};
use super::live::Live;
use super::place::Place;
use super::preload::{self, PRELOAD_ENV};
use super::program::Program;
use super::recorder::Recorder;
use super::sanitizers;
use super::signals::{self, Inbox, Mask};
use super::standstill::{Change, Standstill};
use super::strays::Strays;
use super::summary::Summary;
use super::verdict;
use super::watch::Watch;
use crate::failure::{Attempt, CANNOT_EXECUTE, Failure, HMM_FAILED, NOT_FOUND};
use crate::output;

/// How often the slots are looked at. Deaths of known processes are noticed at once.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Runs the program to its end, and what it leaves behind to theirs. The exit code is seen by nobody.
pub(super) fn supervise(
    job: Job,
    mask: Mask,
    front: Pid,
    socket: UnixStream,
    place: Option<&Place>,
) -> ExitCode {
    let refused = match Supervisor::start(job, mask, front, &socket, place) {
        Ok(supervisor) => supervisor.work().err(),
        Err(failure) => Some(failure),
    };
    if let Some(failure) = refused {
        let _printed = failure.report();
        let _front_gone = Ending::Exited(failure.code()).send(Next::Ends, &socket);
    }
    place.inspect(|place| place.remove());
    ExitCode::SUCCESS
}

/// The state of a run.
#[derive(Debug)]
struct Supervisor<'a> {
    socket: &'a UnixStream,
    /// `None` when the front is gone: killed, or told.
    front: Option<Fd>,
    inbox: Inbox,
    program: Pid,
    /// How it ended, when it has.
    ending: Option<Ending>,
    standstill: Standstill,
    control: Control,
    watch: Watch,
    strays: Strays,
    /// Only in a run of root's.
    door: Option<Door>,
    live: Option<Live>,
    verdict_told: bool,
    show: Show,
    stats: Option<StatsFile>,
    /// Only in `hmm trace`.
    recorder: Option<Recorder>,
    command_line: Vec<OsString>,
    started: Instant,
    /// The control page and the library: reached by the program's processes through this one's descriptors.
    _files: [OwnedFd; 2],
}

impl<'a> Supervisor<'a> {
    fn start(
        job: Job,
        mask: Mask,
        front: Pid,
        socket: &'a UnixStream,
        place: Option<&Place>,
    ) -> Result<Self, Failure> {
        let inbox = Inbox::open().attempt("read signals")?;
        socket.set_nonblocking(true).attempt("use the socket pair")?;
        let front_fd = sys::pidfd_open(front.as_raw_nonzero().get()).attempt("watch the front process")?;
        rustix::process::set_child_subreaper(Some(front))
            .attempt("become the reaper of the program's orphans")?;
        let group = rustix::process::getpgrp();
        // In a group of its own, this process gets no signals that were meant for the program's group: they would be
        // passed on, and come twice.
        rustix::process::setpgid(None, None).attempt("leave the process group")?;

        let (control_fd, control) = Control::create(&job.config).map_err(Failure::of_hmm)?;
        let library = preload::library().attempt("create the library to preload")?;
        let door = place.map(|place| open_door(place, &control_fd)).transpose()?;
        let mut command = command(&job.program, &job.command_line, [&library, &control_fd], place)?;
        command.env(CONFIG_ENV, job.config.to_string());
        put_in_place(&mut command, mask, group);
        if job.trace.is_some() {
            control.trace().begin();
        }
        let started = Instant::now();
        let child = command.spawn().map_err(|error| cannot_start(&job.program, &error))?;
        let program = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Ok(Self {
            socket,
            front: Some(front_fd),
            inbox,
            program: program.ok_or_else(|| Failure::of_hmm("the kernel gave the program no pid"))?,
            ending: None,
            standstill: Standstill::default(),
            control,
            watch: Watch::new(control),
            strays: Strays::default(),
            door,
            live: job.show.live.then(|| Live::new(job.config, group)),
            verdict_told: false,
            show: job.show,
            stats: job.stats,
            recorder: job.trace.map(|file| Recorder::start(file, control)).transpose()?,
            command_line: job.command_line,
            started,
            _files: [control_fd, library],
        })
    }

    fn work(mut self) -> Result<(), Failure> {
        loop {
            self.wait()?;
            self.heed_front();
            self.door.as_mut().map(Door::serve);
            while let Some(signal) = self.inbox.next().attempt("read signals")? {
                if signal.number != libc::SIGCHLD && !signal.from_kernel {
                    self.pass_on(signal.number);
                }
            }
            let any_left = self.reap();
            self.look_for_standstill();
            // While its process still has its slot, and its name.
            self.tell_verdict();
            self.watch.look();
            if self.ending.is_none() {
                self.strays.look();
            }
            if let Some(live) = &mut self.live {
                live.draw(&self.control);
            }
            if let Some(ending) = self.ending
                && self.front.take().is_some()
            {
                self.finish(ending, if any_left { Next::Stays } else { Next::Ends });
            }
            if !any_left {
                return Ok(());
            }
        }
    }

    /// Returns when there is something to do, or it is time to look.
    fn wait(&self) -> Result<(), Failure> {
        let mut fds = vec![PollFd::from_borrowed_fd(self.inbox.as_fd(), PollFlags::IN)];
        if self.front.is_some() {
            fds.push(PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN));
        }
        fds.extend(
            self.door.iter().flat_map(Door::fds).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
        );
        fds.extend(self.watch.fds().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        match poll(&mut fds, Some(&TICK)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).attempt("wait for the program"),
        }
    }

    /// Passes on what the front has got; if it is dead, so is the program.
    fn heed_front(&mut self) {
        let mut numbers = [0; 64];
        while self.front.is_some() {
            match self.socket.read(&mut numbers) {
                Ok(0) => {
                    self.front = None;
                    self.live = None;
                    self.pass_on(libc::SIGKILL);
                }
                Ok(len) => numbers[..len].iter().for_each(|number| self.pass_on((*number).into())),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    }

    fn pass_on(&self, signal: i32) {
        // As long as it was not waited for, its pid is nobody else's.
        if self.ending.is_none() {
            let _gone = signals::send(self.program, signal);
        }
    }

    /// Waits for all children that have something to say; whether any is left.
    fn reap(&mut self) -> bool {
        let options = WaitOptions::NOHANG | WaitOptions::UNTRACED | WaitOptions::CONTINUED;
        loop {
            match rustix::process::wait(options) {
                Ok(Some((pid, status))) if pid == self.program => self.note_status(status),
                // An orphan that the program left behind.
                Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }

    fn note_status(&mut self, status: WaitStatus) {
        if let Some(ending) = Ending::of_status(status) {
            self.ending = Some(ending);
            // It was killed, or went on for so short a time that only its end is told: the front has to hear of it.
            if self.standstill.end() {
                self.tell_front(Change::Continued);
            }
        } else {
            self.standstill.note(!status.continued());
            self.tell_front(if status.continued() { Change::Continued } else { Change::Stopped });
        }
    }

    /// Has the front stop and go on with the program. Both from here, so they come in the order in which they happened.
    fn tell_front(&self, change: Change) {
        let signal = match change {
            Change::Stopped => Signal::STOP,
            Change::Continued => Signal::CONT,
        };
        if let Some(front) = &self.front {
            let _gone = rustix::process::pidfd_send_signal(front, signal);
        }
    }

    /// A stop of which the kernel does not tell.
    fn look_for_standstill(&mut self) {
        if self.ending.is_none()
            && let Some(change) = self.standstill.look(self.program)
        {
            self.tell_front(change);
        }
    }

    /// Says at once what a process could not go on for.
    fn tell_verdict(&mut self) {
        let Some(verdict) = self.control.verdict() else { return };
        let still_writing = verdict.kind == VerdictKind::Unknown && self.ending.is_none();
        if still_writing || std::mem::replace(&mut self.verdict_told, true) {
            return;
        }
        if let Some(live) = &mut self.live {
            live.clear();
        }
        let name =
            self.control.slots().find(|slot| slot.owner().is_some_and(|owner| owner.pid() == verdict.pid));
        let name = name.map_or_else(|| "process".to_owned(), |slot| slot.name().to_string());
        for line in verdict::lines(&verdict, &name, self.control.config()) {
            output::note(format_args!("{line}"));
        }
    }

    /// The program has ended: tells the user and the front, and lets go of the terminal.
    fn finish(&mut self, ending: Ending, next: Next) {
        if let Some(mut live) = self.live.take() {
            live.clear();
        }
        let not_started = |kind, pid| kind == VerdictKind::AgentFailed && pid == self.program_pid();
        let ending = match self.control.verdict() {
            Some(verdict) if not_started(verdict.kind, verdict.pid) => Ending::Exited(HMM_FAILED),
            _ => ending,
        };
        if let Some(recorder) = self.recorder.take() {
            recorder.finish(!self.show.summary);
        }
        let command_line = std::mem::take(&mut self.command_line);
        let wall = self.started.elapsed();
        let summary = Summary::new(command_line, ending, wall, &self.control, (&self.watch, &self.strays));
        for warning in summary.warnings() {
            output::note(format_args!("{warning}"));
        }
        if self.show.summary {
            output::raw(&summary.to_string());
        }
        if let Some(stats) = self.stats.take()
            && let Err(error) = summary.write_json(&stats.file)
        {
            output::note(format_args!("cannot write the figures to {}: {error}", stats.path.display()));
        }
        let _front_gone = ending.send(next, self.socket);
        let _best_effort = let_go();
    }

    const fn program_pid(&self) -> u32 {
        self.program.as_raw_nonzero().get().unsigned_abs()
    }
}

fn open_door(place: &Place, control: &OwnedFd) -> Result<Door, Failure> {
    let control = control.try_clone().attempt("copy a descriptor")?;
    Door::open(&place.door(), control).attempt("make a socket for programs of other users")
}

/// The program with the agent inside.
fn command(
    program: &Program,
    command_line: &[OsString],
    [library, control]: [&OwnedFd; 2],
    place: Option<&Place>,
) -> Result<Command, Failure> {
    let path_of = |fd| preload::path_of(fd).attempt("hand memory to the program by way of /proc");
    let by_descriptor = path_of(library)?;
    // Where there is a place it is for all: the environment goes from one user's program to another's.
    let library = place.map_or_else(|| by_descriptor.clone(), Place::library);
    let preload = preload::with_inherited(library.as_os_str(), std::env::var_os(PRELOAD_ENV));
    let mut command = Command::new(&program.path);
    if let Some((name, args)) = command_line.split_first() {
        command.arg0(name).args(args);
    }
    command.env(PRELOAD_ENV, preload).env(CONTROL_ENV, path_of(control)?);
    command.envs(sanitizers::options(&|name| std::env::var_os(name)));
    if let Some(place) = place {
        command.env(DOOR_ENV, place.door()).env(LIBRARY_ENV, by_descriptor);
    }
    Ok(command)
}

/// Makes the child what it would be if hmm were not there: a member of the caller's process group, with the caller's
/// mask of signals. And it must not outlive its supervisor.
fn put_in_place(command: &mut Command, mask: Mask, group: Pid) {
    let prepare = move || {
        rustix::process::setpgid(None, Some(group))?;
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        mask.restore()
    };
    // SAFETY: between fork and exec it makes three system calls, on values that it owns; no locks, no allocation.
    unsafe { command.pre_exec(prepare) };
}

fn cannot_start(program: &Program, error: &io::Error) -> Failure {
    let code = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_EXECUTE };
    Failure::with_code(code, format_args!("{}: cannot be executed: {error}", program.path.display()))
}

/// What outlives the front must hold nothing that others wait for: no pipe, no terminal, no directory.
fn let_go() -> io::Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    std::env::set_current_dir("/")
}
