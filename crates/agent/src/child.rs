//! The child's side of a fork ([`fork`](crate::fork)): it makes the copy of the engine its own.
//!
//! ```text
//!  child's only thread            child's control thread             parent's control thread
//!  starts it ------------------>  READY ---------------------------> stops answering our faults
//!                                 <--------------------------------- our userfaultfd
//!                                 is the copy of any use?
//!                                 takes over what is set aside
//!                                 USED, or USELESS ----------------> lets the parent go on, or fork again
//!                                 forgets what is not here
//!  goes on, or ends  <----------  starts the others
//! ```
//!
//! Another thread of the parent may have been changing mappings when memory was copied: the kernel had done it, and the engine
//! had not heard. What is gone then is forgotten here, before anybody works on it: else what comes to its place would be
//! taken for what was there, this thread's own stack for one. What has come then is of no use without the states of its
//! pages, which are at its old place, or on their way.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use hmm::control::SlotState;
use hmm::handover;
use hmm::inherit::Inherited;
use hmm::runtime::Runtime;
use hmm::uapi::procfs::Procfs;
use hmm::uapi::sys::{Scope, futex_wait, futex_wake};
use hmm::uapi::uffd::{Features, Userfaultfd};
use hmm::uapi::{Errno, Fd};
use rustix::time::Timespec;

use crate::books::{self, SharedBooks};
use crate::fork::{self, CHILD_END, PATIENCE};
use crate::mailbox::MAILBOX;
use crate::{
    announce, control, descriptors, devices, dmirror, files, inherit, lock_all, namespace, relocate, reserve,
    rights, thread_end, threads, withhold,
};

/// What the child says over its end.
pub(crate) const READY: u8 = b'R';
pub(crate) const USED: u8 = b'U';
pub(crate) const USELESS: u8 = b'X';

/// Until the child's agent has started.
static PROCFS: AtomicI32 = AtomicI32::new(-1);
static FILES: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

const STARTING: u32 = 0;
const STARTED: u32 = 1;
const FAILED: u32 = 2;
const IS_USELESS: u32 = 3;
/// How the agent's start stands.
static START: AtomicU32 = AtomicU32::new(STARTING);
static WHY: Mutex<&str> = Mutex::new("it does not come to it");

/// Between two tries to register.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// Why there is no agent in the child.
enum Failure {
    /// The copy of the engine is of no use.
    Useless,
    Because(&'static str),
}

impl From<&'static str> for Failure {
    fn from(why: &'static str) -> Self {
        Self::Because(why)
    }
}

/// Starts an agent, on the only thread.
pub(crate) fn start() {
    let end_fd = CHILD_END.load(Ordering::Relaxed);
    // Whatever comes of us: who ends with something unread is a failed connection to its peer, which hears nothing more.
    // SAFETY: the descriptor is open: this is the only thread.
    let inherited = receive_fd(unsafe { BorrowedFd::borrow_raw(end_fd) }).map(Procfs::from_fd);
    let nr_shared = if Runtime::was_busy() { None } else { devices::nr_shared() };
    let Some(nr_shared) = nr_shared else {
        say_useless(end_fd);
        end_useless();
    };
    // SAFETY: as above.
    let next = || receive_fd(unsafe { BorrowedFd::borrow_raw(end_fd) });
    let Some(files) = (0..nr_shared).map(|_| next()).collect::<Option<Vec<Fd>>>() else {
        fork::end("a forked process has no file of its own");
    };
    // As long as it is open here, we would not see that the parent is gone.
    fork::close_parent_end();
    match inherited.map_or_else(Procfs::open, Ok) {
        Ok(procfs) => start_with(&procfs, &files),
        Err(_) => fork::end("a forked process has no /proc"),
    }
}

/// Says so when everything is read that the parent has sent.
fn say_useless(end: RawFd) {
    let mut byte = [USELESS];
    // SAFETY: reads a byte; descriptors that come with it end here.
    while unsafe { libc::recv(end, byte.as_mut_ptr().cast(), 1, libc::MSG_DONTWAIT) } > 0 {}
    byte = [USELESS];
    // SAFETY: sends a byte.
    unsafe { libc::send(end, byte.as_ptr().cast(), 1, 0) };
}

fn end_useless() -> ! {
    // SAFETY: ends the process, of which nothing is needed.
    unsafe { libc::_exit(namespace::status_of_useless()) }
}

fn start_with(procfs: &Procfs, files: &[Fd]) {
    let Some(runtime) = control::runtime() else { return };
    PROCFS.store(procfs.as_fd().as_raw_fd(), Ordering::Relaxed);
    *FILES.lock().unwrap_or_else(PoisonError::into_inner) = files.iter().map(AsRawFd::as_raw_fd).collect();
    START.store(STARTING, Ordering::Relaxed);
    runtime.reset_threads();
    threads::reset();
    runtime.engine().notifiers().forget_all();
    announce::reset();
    relocate::reset();
    withhold::reset();
    lock_all::reset();
    rights::reset();
    MAILBOX.reset();
    let started = threads::spawn(false, main);
    while started.is_ok() && START.load(Ordering::Acquire) == STARTING {
        let _ = futex_wait(&START, Scope::Private, STARTING, Some(PATIENCE));
    }
    match START.load(Ordering::Acquire) {
        STARTED if started.is_ok() => {
            // Else the engine still knows what stays.
            if !runtime.engine().kernel().reports_forks() {
                thread_end::keep();
            }
        }
        IS_USELESS => end_useless(),
        _ => {
            let why = WHY.lock().unwrap_or_else(PoisonError::into_inner);
            fork::end(&format!("the agent of a forked process could not be started: {why}"))
        }
    }
}

/// The child's control thread.
fn main() {
    let _ = hmm::uapi::sys::set_thread_name(c"hmm-control");
    let outcome =
        control::runtime().ok_or(Failure::Because("no runtime")).and_then(|runtime: &'static Runtime| {
            inherit_engine(runtime)?;
            if dmirror::is_on() {
                dmirror::forget();
                dmirror::listen(runtime).map_err(|_| "no listeners")?;
            }
            control::spawn_workers(runtime).map_err(|_| "no threads")?;
            Ok(runtime)
        });
    let word = match outcome {
        Ok(_) => STARTED,
        Err(Failure::Useless) => IS_USELESS,
        Err(Failure::Because(why)) => {
            *WHY.lock().unwrap_or_else(PoisonError::into_inner) = why;
            FAILED
        }
    };
    START.store(word, Ordering::Release);
    futex_wake(&START, Scope::Private, 1);
    if let Ok(runtime) = outcome {
        control::look_after(runtime);
    }
}

/// Has the descriptors of the agent's, in this process, and what the engine's copy says of this process.
fn inherit_engine(runtime: &Runtime) -> Result<(), Failure> {
    // Out of the way of the numbers that the engine knows, and of everything else.
    // SAFETY: this thread's descriptor table is a copy of the program's, used by nobody else.
    let high = |fd: RawFd| match unsafe { libc::fcntl(fd, libc::F_DUPFD, 512) } {
        high if high < 0 => Err("no descriptors"),
        // SAFETY: it was made above.
        high => Ok(unsafe { Fd::from_raw_fd(high) }),
    };
    let (end, procfs) = (high(CHILD_END.load(Ordering::Relaxed))?, high(PROCFS.load(Ordering::Relaxed))?);
    let files = std::mem::take(&mut *FILES.lock().unwrap_or_else(PoisonError::into_inner));
    let files = files.into_iter().map(high).collect::<Result<Vec<Fd>, _>>()?;
    // SAFETY: as above.
    unsafe { hmm::uapi::sys::close_range(0, 511) }.map_err(|_| "close_range")?;
    let reports_forks = runtime.engine().kernel().reports_forks();
    let handed_over = receive_uffd(&end);
    let has_own = handed_over.is_some();
    let uffd = handed_over.map_or_else(|| open_own(reports_forks), Ok)?;
    descriptors::renew(runtime, uffd, Procfs::from_fd(procfs), files)?;

    control::set_exclude(runtime);
    // Where forks are not reported all is there, and is found anew.
    let inherited = if reports_forks { runtime.inherited(has_own) } else { Ok(Inherited::NOTHING) };
    let inherited = inherited.map_err(|_| "maps")?;
    if inherit::is_useless(&inherited) {
        say(&end, USELESS);
        return Err(Failure::Useless);
    }
    let (page, _) = control::setup().ok_or("no control page")?;
    let slot = reserve::take_over(&page, runtime.engine().kernel().procfs())?;
    SharedBooks::set_slot(slot);
    books::record_beginning(&page, slot);
    say(&end, USED);

    inherit::forget_wiped(runtime).map_err(|_| "smaps")?;
    runtime.forget_gone(&inherited);
    if reports_forks && !has_own {
        register_alone(runtime)?;
    } else if !reports_forks {
        runtime.register_anew().map_err(|_| "register")?;
        control::discover_all(runtime);
        if control::has_budget() {
            runtime.forget_unregistered();
        }
    }
    slot.set_state(SlotState::Managed);
    Ok(())
}

fn open_own(reports_forks: bool) -> Result<Userfaultfd, &'static str> {
    let more = if reports_forks { Features::EVENT_FORK } else { Features::empty() };
    files::open(more).map(|files| files.uffd).map_err(|_| "no userfaultfd")
}

/// The parent was killed before it could hand our userfaultfd over: takes our memory over without it.
fn register_alone(runtime: &Runtime) -> Result<(), &'static str> {
    let start = Instant::now();
    loop {
        match runtime.register_alone() {
            Ok(true) => return Ok(()),
            Ok(false) => return Err("a page was touched that only the parent had"),
            // It is about to be gone.
            Err(Errno::BUSY) if start.elapsed() < PATIENCE => _ = rustix::thread::nanosleep(&PAUSE),
            Err(_) => return Err("register"),
        }
    }
}

/// Tells the parent that we are ready, and gets its answer: the userfaultfd of our memory, if the kernel has made one. `None`
/// as well if the parent was killed.
fn receive_uffd(end: &Fd) -> Option<Userfaultfd> {
    rustix::io::write(end, &[READY]).ok()?;
    receive_fd(end).map(Userfaultfd::from_fd)
}

/// Waits for a descriptor. `None` if there is none, or nobody any more who could send one.
fn receive_fd(end: impl AsFd) -> Option<Fd> {
    handover::receive(end, &mut [0]).ok()?.1
}

/// Tells the parent, if it is still there.
fn say(end: &Fd, byte: u8) {
    let _ = rustix::net::send(end, &[byte], rustix::net::SendFlags::NOSIGNAL);
}
