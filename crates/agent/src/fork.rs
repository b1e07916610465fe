//! Forks: the child is managed, too, from its first page.
//!
//! ```text
//!  program's thread            control thread                     child
//!  fork(): a, b = socketpair
//!          ask --------------> takes b, sets memory aside for the child (`reserve`), freezes the engine
//!          <------------ ready
//!          clone ------------> reads the fork: child's uffd
//!          |                   answers the child's faults <------ libc's part of fork
//!          |                                                      starts an agent of its own
//!          |                   sends the uffd over b <----------- says so over a
//!          |                                        <----------- has a use for it (`child`)
//!          <------------  done, thaws
//! ```
//!
//! The engine, the compressed pages and staging come along in the child's copy of our memory; the userfaultfd that the
//! kernel made for the child is handed over, so that there is no moment at which a page that is away could be touched
//! and read as zeroes. Descriptors get the numbers that they have in the parent: nothing of the engine has to change.
//!
//! While a fork is under way the control thread does what it does otherwise, too: a thread that waits for it may hold one of
//! libc's locks, which the forking thread needs.
//!
//! What is in a file both sides read; for what it stores the child has a file of its own. The descriptors lie ready before it is
//! made.
//!
//! The kernel reports forks only to those who may trace (`CAP_SYS_PTRACE`). For others a fork is refused (`EAGAIN`) while
//! pages are away and do not all fit into the budget; else they come home before, and the child registers its memory anew.

use std::ffi::c_int;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

use hmm::control::{Control, VerdictKind};
use hmm::core::kernel::Kernel;
use hmm::core::notifier::Cause;
use hmm::handover;
use hmm::runtime::Runtime;
use hmm::uapi::sys::{Scope, futex_wait, futex_wake};
use hmm::uapi::uffd::{EventBuffer, Userfaultfd};
use hmm::uapi::{Errno, Fd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::announce::{Open, is_watched};
use crate::errno::failed;
use crate::inherit::NR_REPEATED;
use crate::mailbox::MAILBOX;
use crate::next::Next;
use crate::refusal::{self, Refusal};
use crate::{MANAGED, birth, books, child, control, devices, dmirror, fail, homecoming, namespace, reserve};

/// How a fork stands, for the thread that forks.
const IDLE: u32 = 0;
const ASKED: u32 = 1;
const READY: u32 = 2;
/// The child has its own agent, or there is no child.
pub(crate) const DONE: u32 = 3;
/// The child's copy was of no use, and the child has gone: fork again.
pub(crate) const AGAIN: u32 = 4;
/// The engine could not be brought to rest.
const REFUSED: u32 = 5;

static STATE: AtomicU32 = AtomicU32::new(IDLE);
/// Held by the thread that forks.
static FORKING: AtomicBool = AtomicBool::new(false);
/// That thread, from when the engine is at rest.
static ARRANGED_BY: AtomicI32 = AtomicI32::new(0);
pub(crate) static CHILD_END: AtomicI32 = AtomicI32::new(-1);
static PARENT_END: AtomicI32 = AtomicI32::new(-1);

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at who waits for the control thread while it waits for the fork.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
/// Looks at mappings, as long as they are changing, and the pause in between.
const MAX_LOOKS: usize = 100;
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000 };
/// Copies of the engine that may turn out useless before the fork is given up.
const MAX_TRIES: usize = 16;
/// How long nobody works on the engine after each piece of work while a fork is awaited for the second time; and that is
/// doubled for each further time, up to so often.
const REST: Duration = Duration::from_micros(100);
const MAX_DOUBLED: u32 = 7;

type Fork = extern "C" fn() -> libc::pid_t;

// SAFETY: the type is that of fork(2).
static FORK: Next<Fork> = unsafe { Next::new(c"fork", refuse) };
// SAFETY: the type is that of _Fork(3).
static BARE_FORK: Next<Fork> = unsafe { Next::new(c"_Fork", refuse) };

/// Called once, on the program's main thread.
pub(crate) fn install() {
    // SAFETY: the three functions do what such handlers may, on the thread that forks.
    unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(in_child)) };
}

/// See `fork(2)`.
#[expect(unreachable_pub, reason = "called through the dynamic symbol table")]
#[unsafe(no_mangle)]
pub extern "C" fn fork() -> libc::pid_t {
    arranged(|| FORK.get()())
}

/// See `_Fork(3)`: a fork without the handlers that libc runs, ours among them.
#[expect(unreachable_pub, reason = "called through the dynamic symbol table")]
#[unsafe(no_mangle)]
pub extern "C" fn _Fork() -> libc::pid_t {
    arranged(|| {
        let pid = BARE_FORK.get()();
        if pid == 0 {
            in_child()
        } else {
            parent()
        }
        pid
    })
}

/// Forks with the engine at rest, again if the copy was of no use. Here there is a way back, which there is not in
/// `prepare`.
fn arranged(fork: impl Fn() -> libc::pid_t) -> libc::pid_t {
    for nr_repeated in 0..MAX_TRIES {
        if MANAGED.load(Ordering::Acquire) && !arrange(nr_repeated) {
            return refuse();
        }
        let pid = fork();
        if pid <= 0 || STATE.load(Ordering::Acquire) != AGAIN {
            return pid;
        }
        let mut status = 0;
        // SAFETY: waits for a child that was never seen by the program.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        books::own_slot().stats().fork_again.fetch_add(1, Ordering::Relaxed);
        if !namespace::renew_after(status) {
            break;
        }
    }
    Refusal::Useless.note();
    refuse()
}

/// What a fork gives that cannot be.
extern "C" fn refuse() -> libc::pid_t {
    failed(Errno::AGAIN)
}

fn any_absent(runtime: &Runtime) -> bool {
    let mut any = false;
    runtime.engine().for_each_absent(&mut |_| any = true);
    any
}

fn wait_while(state: u32) -> u32 {
    loop {
        let now = STATE.load(Ordering::Acquire);
        if now != state {
            return now;
        }
        let _ = futex_wait(&STATE, Scope::Private, state, Some(PATIENCE));
    }
}

fn set_state(state: u32) {
    STATE.store(state, Ordering::Release);
    futex_wake(&STATE, Scope::Private, u32::MAX);
}

/// Has the engine brought to rest for a fork by this thread. False when that cannot be; then nothing has changed.
fn arrange(nr_repeated: usize) -> bool {
    while FORKING.swap(true, Ordering::Acquire) {
        std::thread::yield_now();
    }
    NR_REPEATED.store(nr_repeated, Ordering::Relaxed);
    let mut ends: [c_int; 2] = [-1; 2];
    // SAFETY: writes two descriptors.
    let made = unsafe {
        libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, ends.as_mut_ptr())
    };
    if made == 0 {
        CHILD_END.store(ends[0], Ordering::Relaxed);
        PARENT_END.store(ends[1], Ordering::Relaxed);
        set_state(ASKED);
        MAILBOX.poke();
        if wait_while(ASKED) == READY {
            ARRANGED_BY.store(hmm::uapi::sys::gettid(), Ordering::Relaxed);
            return true;
        }
        close_ends();
    } else {
        Refusal::NoPlace.note();
    }
    FORKING.store(false, Ordering::Release);
    false
}

/// Before libc takes its locks, on the thread that forks.
extern "C" fn prepare() {
    if !MANAGED.load(Ordering::Acquire) || ARRANGED_BY.load(Ordering::Relaxed) == hmm::uapi::sys::gettid() {
        return;
    }
    // A fork that is none of ours (`libc_forks`): there is no way back from here.
    if !arrange(0) {
        end(refusal::last());
    }
}

/// After the fork, in the parent; also when there is no child.
extern "C" fn parent() {
    if !MANAGED.load(Ordering::Acquire) {
        return;
    }
    close_ends();
    ARRANGED_BY.store(0, Ordering::Relaxed);
    // The control thread finds the other end closed if there is no child.
    wait_while(READY);
    FORKING.store(false, Ordering::Release);
}

/// After the fork, in the child, on its only thread.
extern "C" fn in_child() {
    if !MANAGED.load(Ordering::Acquire) {
        return;
    }
    child::start();
    close_end(&CHILD_END);
    ARRANGED_BY.store(0, Ordering::Relaxed);
    STATE.store(IDLE, Ordering::Release);
    FORKING.store(false, Ordering::Release);
}

/// In the child.
pub(crate) fn close_parent_end() {
    close_end(&PARENT_END);
}

fn close_ends() {
    close_end(&CHILD_END);
    close_end(&PARENT_END);
}

fn close_end(end: &AtomicI32) {
    // SAFETY: the descriptor was made by `prepare`, and is used by nobody any more.
    unsafe { libc::close(end.swap(-1, Ordering::Relaxed)) };
}

/// Ends the process, which cannot go on without an agent.
pub(crate) fn end(text: &str) -> ! {
    match control::setup() {
        Some((page, _)) => fail(page, VerdictKind::AgentFailed, text),
        // SAFETY: ends the process; cannot happen, because who comes here was set up.
        None => unsafe { libc::_exit(125) },
    }
}

/// The control thread's side: arranges a fork if one was asked for.
pub(crate) fn serve_request(runtime: &'static Runtime, open: &mut Open) {
    if STATE.load(Ordering::Acquire) != ASKED {
        return;
    }
    let end = hmm::uapi::sys::pidfd_open(hmm::uapi::sys::getpid())
        .and_then(|pidfd| hmm::uapi::sys::pidfd_getfd(pidfd, PARENT_END.load(Ordering::Relaxed)));
    let (Ok(end), Some((page, _))) = (end, control::setup()) else {
        Refusal::NoPlace.note();
        return set_state(REFUSED);
    };
    let prepared = if reserve::begin(&page, runtime) {
        prepare_engine(runtime, &page, &end)
    } else {
        Err(Refusal::NoPlace)
    };
    if let Err(why) = prepared {
        why.note();
        reserve::end(&page);
        return set_state(REFUSED);
    }
    // Pages that may be written to now will be shared, and a write will make a copy.
    let shared = runtime.announce_all(Cause::ProtectPage);
    runtime.engine().share_frames();
    dmirror::share_frames();
    lend(runtime);
    set_state(READY);
    let next = attend(runtime, &page, &end, open);
    withhold_all(runtime);
    drop(end);
    drop(shared);
    // If there is no child that took it over.
    reserve::end(&page);
    leave(runtime);
    set_state(next);
}

/// Has the engine work again, after a fork or instead of it.
fn leave(runtime: &Runtime) {
    devices::end_sharing();
    runtime.engine().have_all_stay(false);
    thaw(runtime);
}

/// Looks at the mappings, again if they were changing, while the engine is at rest.
fn until_calm(runtime: &Runtime, look: &mut dyn FnMut()) {
    for _ in 0..MAX_LOOKS {
        look();
        if !runtime.engine().kernel().uffd().is_changing() {
            return;
        }
        runtime.serve_once(&mut |child| runtime.poison_child(&child));
        // Who has changed them gets to run.
        let _ = rustix::thread::nanosleep(&PAUSE);
    }
}

/// Lets the child have managed memory, where nobody hears of forks.
fn lend(runtime: &Runtime) {
    let mm = runtime.engine().kernel();
    if !mm.reports_forks() {
        until_calm(runtime, &mut || mm.lend());
    }
}

/// Keeps it from children that are not arranged again.
fn withhold_all(runtime: &Runtime) {
    let mm = runtime.engine().kernel();
    if !mm.reports_forks() {
        let mut withheld = vec![];
        until_calm(runtime, &mut || withheld.append(&mut mm.withhold_all()));
        mm.lend_others(&withheld);
    }
}

/// Sends the child what it needs, for devices of its own among it, if it can have what is in the parent's; while the engine is at
/// rest. It lies there until the child reads it, also if we are killed.
fn provide(runtime: &Runtime, end: &Fd) -> Result<(), Refusal> {
    let procfs = runtime.engine().kernel().procfs();
    let shared = devices::begin_sharing(procfs).or_else(|| {
        // What is home as well need not be there.
        runtime.engine().drop_copies(usize::MAX);
        devices::begin_sharing(procfs)
    });
    let files = shared.ok_or(Refusal::Away)?;
    let mut fds = std::iter::once(procfs.as_fd()).chain(files.iter().map(Fd::as_fd));
    let are_sent = fds.all(|fd| handover::send(end, &[0], Some(fd)).is_ok());
    are_sent.then_some(()).ok_or(Refusal::NoPlace)
}

/// Brings the engine to rest.
fn freeze(runtime: &Runtime) -> Result<(), Refusal> {
    if !runtime.freeze() {
        return Err(Refusal::Restless);
    }
    // Others who are short of memory do not wait for ours.
    runtime.engine().kernel().share().stand_still(true);
    Ok(())
}

fn thaw(runtime: &Runtime) {
    runtime.engine().kernel().share().stand_still(false);
    runtime.thaw();
}

/// Sets memory aside for the child, brings the engine to rest, and sends what the child needs. When that cannot be it works as
/// before.
fn prepare_engine(runtime: &Runtime, page: &Control, end: &Fd) -> Result<(), Refusal> {
    if !runtime.engine().kernel().reports_forks() {
        homecoming::bring_all_home(runtime.engine(), &mut || _ = control::answer(runtime));
        freeze(runtime)?;
        // What nobody knows of is not lent.
        until_calm(runtime, &mut || control::discover_all(runtime));
        // Until the fork: what was away then would be zeroes to the child.
        runtime.engine().have_all_stay(true);
        // What was not known to be gone before, or has left since.
        homecoming::bring_all_home(runtime.engine(), &mut || {
            control::answer(runtime);
            runtime.serve_once(&mut |child| runtime.poison_child(&child));
        });
        let provided = if any_absent(runtime) { Err(Refusal::Away) } else { provide(runtime, end) };
        match provided {
            Ok(()) => _ = reserve::try_fill(page, runtime),
            Err(_) => leave(runtime),
        }
        return provided;
    }
    homecoming::empty_unshareable(runtime.engine(), &mut || _ = control::answer(runtime));
    let on_full = page.config().on_full;
    let answer = || {
        control::answer(runtime);
    };
    // Nearly all of it while the others work, the rest when they stand still.
    if !reserve::fill(page, runtime, on_full, &mut &answer) {
        return Err(Refusal::NoRoom);
    }
    freeze(runtime)?;
    let serve = || {
        answer();
        runtime.serve_once(&mut |child| runtime.poison_child(&child));
    };
    // So that a child knows what it has.
    until_calm(runtime, &mut || {
        answer();
        control::discover_all(runtime);
    });
    // In this order: what leaves for the child may go to a file.
    let provided = if reserve::fill(page, runtime, on_full, &mut &serve) {
        provide(runtime, end)
    } else {
        Err(Refusal::NoRoom)
    };
    if provided.is_err() {
        leave(runtime);
    }
    provided
}

/// While a fork is awaited: a copy that is made while somebody works on the engine is of no use. If that was so before, there is time
/// in which nobody does.
fn rest() {
    let nr_repeated = u32::try_from(NR_REPEATED.load(Ordering::Relaxed)).unwrap_or(0);
    if let Some(nr_doubled) = nr_repeated.checked_sub(1) {
        let time = REST * (1 << nr_doubled.min(MAX_DOUBLED));
        let _ = rustix::thread::nanosleep(&Timespec { tv_sec: 0, tv_nsec: i64::from(time.subsec_nanos()) });
    }
}

/// Serves the parent until the fork, and the child until it can do without us.
fn attend(runtime: &'static Runtime, page: &Control, end: &Fd, open: &mut Open) -> u32 {
    let mut child: Option<Userfaultfd> = None;
    let mut buffer = EventBuffer::new();
    let mut bytes = [0u8; 4096];
    loop {
        if child.is_none() {
            rest();
        }
        let uffd = child.as_ref().unwrap_or(runtime.engine().kernel().uffd());
        let mut fds = [PollFd::new(end, PollFlags::IN), PollFd::new(uffd, PollFlags::IN)];
        // Until the child is there, others may wait for us while they hold what the forking thread needs: who maps memory,
        // and who announces a change.
        let timeout = if child.is_none() || is_watched() { &LOOK } else { &birth::LOOK };
        let polled = poll(&mut fds, Some(timeout));
        runtime.while_busy(|| open.serve(runtime));
        let Ok(nr_ready) = polled else { continue };
        if nr_ready == 0 {
            match &child {
                // It may have said something since.
                Some(gone) if birth::is_gone(gone) => return birth::finish(runtime, end, child.as_ref()),
                Some(_) => {}
                None => runtime.while_busy(|| {
                    control::answer(runtime);
                    reserve::try_fill(page, runtime);
                    runtime.engine().kernel().wake_put_off(true);
                }),
            }
            continue;
        }
        let (from_child, fault) = (fds[0].revents(), fds[1].revents());
        if !from_child.is_empty() {
            return birth::finish(runtime, end, child.as_ref());
        }
        match &child {
            Some(child) if fault.contains(PollFlags::IN) => {
                runtime.serve_child(child, &mut buffer, &mut bytes)
            }
            Some(_) if !fault.is_empty() => return birth::finish(runtime, end, child.as_ref()),
            Some(_) => {}
            None => runtime.while_busy(|| {
                runtime.serve_frozen(&mut |uffd| child = Some(uffd));
                if child.is_none() {
                    reserve::try_fill(page, runtime);
                }
            }),
        }
    }
}
