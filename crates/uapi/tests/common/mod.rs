//! What the tests of this crate share. Every access to managed memory is made by a second thread and waited for with a
//! limit, so that a mistake is a failed test and not one that hangs.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]
#![allow(dead_code, reason = "no test uses all of it")]
#![allow(clippy::allow_attributes, reason = "what is unused differs from test to test")]

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hmm_uapi::uffd::{Access, Event, EventBuffer, Features, Modes};
use hmm_uapi::{AddrRange, Mapping, Userfaultfd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Bytes in a page.
pub(crate) const PAGE: usize = 4096;
/// Bytes in a huge page.
pub(crate) const HUGE: usize = 2 << 20;
/// Longer than anything here takes on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// Long enough to see that somebody waits.
pub(crate) const MOMENT: Duration = Duration::from_millis(50);

/// Forks and events concern the whole process: the tests of one binary that takes this run one after the other.
pub(crate) fn one_at_a_time() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An enabled userfaultfd, or `None`, after saying why the test is skipped.
pub(crate) fn userfaultfd(features: Features) -> Option<Userfaultfd> {
    let uffd = match Userfaultfd::open(Access::Full) {
        Ok(uffd) => uffd,
        Err(why) => {
            eprintln!("SKIPPED: {why}");
            return None;
        }
    };
    match uffd.enable(features) {
        Ok(_) => Some(uffd),
        Err(why) => {
            eprintln!("SKIPPED: {why}");
            None
        }
    }
}

/// Memory whose faults come to a userfaultfd.
pub(crate) struct Managed {
    pub(crate) uffd: Userfaultfd,
    pub(crate) program: Mapping,
}

impl Managed {
    /// `nr_pages` of registered holes.
    pub(crate) fn new(features: Features, modes: Modes, nr_pages: usize) -> Option<Self> {
        let uffd = userfaultfd(features)?;
        let program = Mapping::anonymous(nr_pages * PAGE).unwrap();
        register(&uffd, program.range(), modes);
        Some(Self { uffd, program })
    }

    /// Address of a page.
    pub(crate) fn page(&self, index: usize) -> u64 {
        self.program.range().start + (index * PAGE) as u64
    }

    /// Address range of pages.
    pub(crate) fn pages(&self, first: usize, nr_pages: usize) -> AddrRange {
        AddrRange::new(self.page(first), (nr_pages * PAGE) as u64)
    }
}

pub(crate) fn register(uffd: &Userfaultfd, range: AddrRange, modes: Modes) {
    // SAFETY: nobody has references to the test's mappings, and the tests answer the faults.
    unsafe { uffd.register(range, modes) }.unwrap();
}

/// Memory with one byte value a page: `first`, `first + 1`, ...
pub(crate) fn filled(nr_pages: usize, first: u8) -> Mapping {
    let memory = Mapping::anonymous(nr_pages * PAGE).unwrap();
    fill(&memory, first);
    memory
}

pub(crate) fn fill(memory: &Mapping, first: u8) {
    for index in 0..memory.len() / PAGE {
        let value = first.wrapping_add(u8::try_from(index % 256).unwrap());
        // SAFETY: inside of the mapping, which nobody else uses.
        unsafe { place(memory, index).write_bytes(value, PAGE) };
    }
}

fn place(memory: &Mapping, page: usize) -> *mut u8 {
    assert!((page + 1) * PAGE <= memory.len());
    memory.as_ptr().wrapping_add(page * PAGE)
}

/// The first byte of a page that is not managed.
pub(crate) fn peek(memory: &Mapping, page: usize) -> u8 {
    // SAFETY: inside of the mapping, as was asserted.
    unsafe { place(memory, page).read_volatile() }
}

/// Writes to the first byte of a page whose faults nobody has to answer.
pub(crate) fn poke(memory: &Mapping, page: usize, value: u8) {
    // SAFETY: inside of the mapping, as was asserted.
    unsafe { place(memory, page).write_volatile(value) }
}

/// What another thread does.
pub(crate) struct Pending<T> {
    result: Receiver<T>,
}

impl<T> Pending<T> {
    /// Its result, which has to come within [`LIMIT`].
    pub(crate) fn get(self) -> T {
        self.result.recv_timeout(LIMIT).expect("the other thread hangs or has died")
    }

    /// Whether it is still at it after a moment.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.result.recv_timeout(MOMENT), Err(RecvTimeoutError::Timeout))
    }
}

/// Runs something on another thread.
pub(crate) fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Pending<T> {
    let (sender, result) = channel();
    std::thread::spawn(move || {
        let _ = sender.send(work());
    });
    Pending { result }
}

/// A byte that threads read and write at the same time: one waits in the middle of its access.
fn shared(addr: u64) -> &'static AtomicU8 {
    let place = std::ptr::with_exposed_provenance_mut(usize::try_from(addr).unwrap());
    // SAFETY: the tests give addresses of mappings that outlive the access, and access them in no other way meanwhile.
    unsafe { AtomicU8::from_ptr(place) }
}

/// Reads a byte on another thread.
pub(crate) fn read(addr: u64) -> Pending<u8> {
    elsewhere(move || shared(addr).load(Ordering::Relaxed))
}

/// Writes a byte on another thread.
pub(crate) fn write(addr: u64, value: u8) -> Pending<()> {
    elsewhere(move || shared(addr).store(value, Ordering::Relaxed))
}

/// Waits until there are messages, and leaves them unread.
pub(crate) fn await_events(uffd: &Userfaultfd) {
    let limit = Timespec { tv_sec: LIMIT.as_secs().try_into().unwrap(), tv_nsec: 0 };
    let nr_ready = poll(&mut [PollFd::new(uffd, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(nr_ready, 1, "the kernel has nothing to tell");
}

/// Waits until there are messages, and gives them.
pub(crate) fn events(uffd: &Userfaultfd) -> Vec<Event> {
    await_events(uffd);
    uffd.read_events(&mut EventBuffer::new()).unwrap().collect()
}

/// Waits for one message.
pub(crate) fn event(uffd: &Userfaultfd) -> Event {
    let mut events = events(uffd);
    assert_eq!(events.len(), 1, "{events:?}");
    events.remove(0)
}

/// Runs `child` in a forked process. It must not allocate: another thread may have held the allocator's lock.
///
/// The fork goes around libc, whose own holds the locks of `malloc` while the kernel waits for a fork event to be read:
/// who reads it with code that allocates, as tests do, would wait for ever.
pub(crate) fn in_child(child: impl FnOnce() -> u8) -> Child {
    // SAFETY: a plain fork: the new process has a copy of the stack. It makes system calls and touches memory only.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    parent_or_child(pid.try_into().unwrap(), child)
}

/// As [`in_child`], by libc's fork, which leaves the child an allocator that works.
pub(crate) fn in_allocating_child(child: impl FnOnce() -> u8) -> Child {
    // SAFETY: the child leaves by `_exit`.
    let pid = unsafe { libc::fork() };
    parent_or_child(pid, child)
}

fn parent_or_child(pid: i32, child: impl FnOnce() -> u8) -> Child {
    assert!(pid >= 0);
    if pid == 0 {
        let code = child();
        // SAFETY: ends the child, skipping what the parent has registered for its exit.
        unsafe { libc::_exit(i32::from(code)) }
    }
    Child { pid }
}

/// A child process. How it ended is told once.
pub(crate) struct Child {
    pid: i32,
}

impl Child {
    /// How it ended: `Ok` with its exit code, or `Err` with the signal that killed it.
    pub(crate) fn end(self) -> Result<i32, i32> {
        let start = Instant::now();
        let mut status = 0;
        loop {
            // SAFETY: a plain system call on a child of ours.
            let pid = unsafe { libc::waitpid(self.pid, &raw mut status, libc::WNOHANG) };
            if pid == self.pid {
                break;
            }
            if start.elapsed() > LIMIT {
                // SAFETY: the child is ours and was not waited for.
                unsafe { libc::kill(self.pid, libc::SIGKILL) };
                panic!("the child hangs");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        if libc::WIFEXITED(status) { Ok(libc::WEXITSTATUS(status)) } else { Err(libc::WTERMSIG(status)) }
    }
}
