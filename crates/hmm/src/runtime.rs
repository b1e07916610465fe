//! What the threads do: answer faults, reclaim ahead of need.
//!
//! Handlers wait for the userfaultfd's messages (`waiter`), and one of them at a time is woken. One reads
//! messages while it holds the engine's event guard, applies events, lets the guard go, and serves the faults. With
//! nothing to serve it fetches ahead. The reclaimer sleeps on a futex that handlers wake when memory runs low.
//!
//! Nothing here allocates, logs, or touches thread-local storage after the start (I6).

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hmm_core::addr::{PageRange, Vpn};
use hmm_core::kernel::Kernel;
use hmm_core::{Engine, Outcome, Reclaimed};
use hmm_uapi::AddrRange;
use hmm_uapi::sys::{Scope, futex_wait, futex_wake};
use hmm_uapi::uffd::{EventBuffer, FaultAccess, MAX_EVENTS};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::time::Timespec;

use crate::adopt::{Found, discover, fill_unknown, for_parts_outside};
use crate::clock::Clock;
use crate::control::OnFull;
use crate::in_thread::Faults;
use crate::mm::Mm;
use crate::place::{Follower, Place, Turn};
use crate::waiter::Waiter;
use crate::waits::Waits;

/// Faults that one handler retries at the same time; more are put off.
const MAX_PENDING: usize = 64;
/// Handlers where every device's calls return by themselves.
const NR_HANDLERS: usize = 2;
/// How often one that sleeps looks after calls of devices that may not return.
const WATCH_TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
/// Pause between retries.
pub(crate) const RETRY_PAUSE_NS: i64 = 50_000;
/// How often the reclaimer looks without being asked: other processes may share the budget.
const RECLAIM_TICK: Duration = Duration::from_millis(20);

/// What a process does when no device takes another page.
pub trait Policy: Send + Sync + std::fmt::Debug {
    /// What the user asked for.
    fn on_full(&self) -> OnFull;
    /// The devices are full and the program must end: say why, and end it. Called on a handler thread.
    fn end(&self);
    /// The kernel refuses what pages come home by, for good: say why, and end the program.
    fn forbidden(&self, _errno: Errno) {}
    /// Frees what those who shared the budget and are gone had charged. Says whether there were any.
    fn settle_the_dead(&self) -> bool {
        false
    }
    /// Frees some of what was set aside for a child of a fork, if it can be spared. Says whether there was any.
    fn spare(&self) -> bool {
        false
    }
}

/// The engine with what its threads share.
#[derive(Debug)]
pub struct Runtime {
    engine: Engine<Mm>,
    pub(crate) policy: Box<dyn Policy>,
    /// Ranges that are never managed.
    exclude: Mutex<Vec<AddrRange>>,
    /// Readable while handlers shall look up from their work.
    alarm: OwnedFd,
    stopping: AtomicBool,
    /// Who serves faults.
    pub(crate) faults: Faults,
    /// What waits is measured by it, what was done by the system's.
    pub(crate) clock: Clock,
    pub(crate) follower: Follower,
    /// Readable while a handler that sleeps shall help with read-ahead.
    help: OwnedFd,
    /// Pages that there was no memory for.
    pub(crate) waits: Waits,
    /// Handlers that sleep.
    pub(crate) sleeping: AtomicU32,
    /// Counts requests for reclaim; the reclaimer sleeps on it.
    kicks: AtomicU32,
    pub(crate) reclaiming: AtomicBool,
    /// Threads in [`serve`](Runtime::serve) and [`reclaim`](Runtime::reclaim), and how many of them stand still.
    pub(crate) running: AtomicU32,
    pub(crate) parked: AtomicU32,
    /// 1 while they shall; they sleep on it.
    pub(crate) freezing: AtomicU32,
    /// What they do before they go on, and how many still have to.
    pub(crate) errand: Mutex<Option<fn()>>,
    pub(crate) nr_errands: AtomicU32,
}

/// A fault as it was read.
#[derive(Clone, Copy)]
pub(crate) struct Touch {
    pub(crate) page: Vpn,
    pub(crate) access: FaultAccess,
    /// The thread, as its process numbers it.
    pub(crate) tid: u32,
}

impl Touch {
    /// What an array of them begins with.
    pub(crate) const NONE: Self = Self { page: Vpn(0), access: FaultAccess::Write, tid: 0 };
}

/// A fault that has to be tried again.
#[derive(Clone, Copy)]
pub(crate) struct Pending {
    touch: Touch,
    since: Instant,
}

impl Pending {
    pub(crate) fn new(touch: Touch) -> Self {
        Self { touch, since: Instant::now() }
    }
}

/// What an attempt to serve a fault came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// The page is there, or poisoned.
    Served,
    /// Somebody else is bringing it.
    Parked,
    /// It has to be tried again.
    Again,
}

/// The faults that a handler has to try again.
pub(crate) struct Retries {
    pages: [MaybeUninit<Pending>; MAX_PENDING],
    len: usize,
}

impl Retries {
    pub(crate) const fn new() -> Self {
        Self { pages: [const { MaybeUninit::uninit() }; MAX_PENDING], len: 0 }
    }

    fn push(&mut self, pending: Pending) -> bool {
        let room = self.len < MAX_PENDING;
        if room {
            self.pages[self.len].write(pending);
            self.len += 1;
        }
        room
    }

    fn pop(&mut self) -> Option<Pending> {
        self.len = self.len.checked_sub(1)?;
        // SAFETY: entries below `len` have been written.
        Some(unsafe { self.pages[self.len].assume_init() })
    }
}

impl Runtime {
    /// A runtime without threads.
    ///
    /// # Errors
    /// What making an eventfd says.
    pub fn new(engine: Engine<Mm>, policy: Box<dyn Policy>) -> Result<Self, Errno> {
        let exclude = Mutex::new(engine.kernel().own_ranges().to_vec());
        Ok(Self {
            engine,
            policy,
            exclude,
            alarm: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            help: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            waits: Waits::new(),
            faults: Faults::default(),
            clock: Clock::default(),
            follower: Follower::default(),
            sleeping: AtomicU32::new(0),
            stopping: AtomicBool::new(false),
            kicks: AtomicU32::new(0),
            reclaiming: AtomicBool::new(false),
            running: AtomicU32::new(0),
            parked: AtomicU32::new(0),
            freezing: AtomicU32::new(0),
            errand: Mutex::new(None),
            nr_errands: AtomicU32::new(0),
        })
    }

    /// Threads that are to be in [`serve`](Self::serve): one more than devices can hold up.
    pub fn nr_handlers(&self) -> usize {
        NR_HANDLERS.max(self.engine.max_flights() + 1)
    }

    /// Threads that have begun their work.
    pub(crate) fn nr_running(&self) -> usize {
        self.running.load(Ordering::SeqCst) as usize
    }

    /// The time, without what of it this process was stopped.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// The engine.
    pub fn engine(&self) -> &Engine<Mm> {
        &self.engine
    }

    /// Takes over memory of the program that touches the range and is not managed yet.
    pub fn discover(&self, within: AddrRange) -> Found {
        // The lock also makes one look at a time: two would register the same range.
        let exclude = self.exclude.lock().unwrap_or_else(PoisonError::into_inner);
        discover(&self.engine, within, &exclude)
    }

    /// As [`discover`](Self::discover), but takes no more of a mapping than is inside of the range.
    pub(crate) fn take_part(&self, within: AddrRange) -> Found {
        let _one_look_at_a_time = self.exclude.lock().unwrap_or_else(PoisonError::into_inner);
        crate::adopt::take_part(&self.engine, within)
    }

    /// Whether a part of the range is never managed.
    pub(crate) fn is_excluded(&self, range: AddrRange) -> bool {
        let exclude = self.exclude.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = exclude.iter().copied().chain(crate::heap::range_if_used());
        ours.into_iter().any(|ours| ours.start < range.end && range.start < ours.end)
    }

    /// The next part of a mapping, from an address on, that is not ours.
    pub fn next_of_program(&self, from: u64) -> Option<AddrRange> {
        let exclude: Vec<_> = self.excluded().into_iter().chain(crate::heap::range_if_used()).collect();
        let mut at = from;
        while let Ok(Some(vma)) = self.engine.kernel().maps().next_vma(at) {
            let mut first = None;
            let rest = AddrRange { start: vma.start.max(at), end: vma.end };
            for_parts_outside(rest, &exclude, &mut |part| _ = first.get_or_insert(part));
            if first.is_some() {
                return first;
            }
            at = vma.end;
        }
        None
    }

    /// What is never managed.
    pub(crate) fn excluded(&self) -> Vec<AddrRange> {
        self.exclude.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says what is never managed, besides staging.
    pub fn set_exclude(&self, ranges: &[AddrRange]) {
        let mut exclude = self.exclude.lock().unwrap_or_else(PoisonError::into_inner);
        if exclude.len() != ranges.len() + self.engine.kernel().own_ranges().len() {
            *exclude = ranges.iter().copied().chain(self.engine.kernel().own_ranges()).collect();
        }
    }

    /// Makes [`serve`](Self::serve) and [`reclaim`](Self::reclaim) return.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.alarm();
        self.kick();
    }

    /// Wakes every handler, until the alarm is over.
    pub(crate) fn alarm(&self) {
        // An eventfd takes the first write.
        let _ = rustix::io::write(&self.alarm, &1u64.to_ne_bytes());
    }

    pub(crate) fn end_alarm(&self) {
        let _ = rustix::io::read(&self.alarm, &mut [0u8; 8]);
    }

    /// Has the faults that could not be served in nobody's hands: they come again.
    pub(crate) fn let_go(&self, retries: &mut Retries) {
        while let Some(pending) = retries.pop() {
            self.put_off(pending.touch.page);
        }
    }

    /// Leaves the thread that faults on the page asleep.
    pub(crate) fn put_off(&self, page: Vpn) {
        self.engine.kernel().put_off(PageRange::new(page, 1));
    }

    /// The eventfds that wake handlers: a child of a fork needs its own under the same numbers.
    pub fn eventfds(&self) -> [std::os::fd::BorrowedFd<'_>; 2] {
        use std::os::fd::AsFd;
        [self.alarm.as_fd(), self.help.as_fd()]
    }

    /// Answers faults until [`stop`](Self::stop).
    ///
    /// # Errors
    /// What setting the epoll up says.
    pub fn serve(&self) -> Result<(), Errno> {
        let mut waiter = Waiter::new(self)?;
        self.running.fetch_add(1, Ordering::SeqCst);
        // A call of a device that does not return must not hold up more than what needs it: no other fault is in such a thread's
        // hands.
        let may_be_held_up = self.engine.max_flights() > 0;
        let mut buffer = if may_be_held_up { EventBuffer::for_one() } else { EventBuffer::new() };
        let mut faults = [Touch::NONE; MAX_EVENTS];
        let mut retries = Retries::new();
        let mut place = Place::new(&self.follower);
        while !self.stopping.load(Ordering::Relaxed) {
            if may_be_held_up {
                self.engine.watch(self.clock.now());
            }
            if self.is_frozen() {
                // A child of a fork begins without followers. The others are awake.
                let _ = place.leave();
                // Who stands still has no fault in hand: the thread that waits may hold what the forking one needs.
                self.let_go(&mut retries);
                self.park_if_frozen();
            }
            place.attend();
            let nr_faults = self.read(&mut buffer, &mut faults, &mut |child| self.poison_child(&child));
            let now = Instant::now();
            for touch in &faults[..nr_faults] {
                self.serve_fault(Pending { touch: *touch, since: now }, &mut retries);
                self.take_turns(&mut place, touch.tid);
            }
            self.kick_if_low();
            if may_be_held_up {
                self.let_go(&mut retries);
            }
            if retries.len > 0 || self.engine.kernel().put_off.any() {
                if nr_faults == 0 {
                    self.retry(&mut retries);
                } else {
                    self.engine.kernel().wake_put_off(false);
                }
            } else if self.engine.wants_read_ahead() {
                self.call_for_help();
                if nr_faults == 0 {
                    self.engine.read_ahead();
                }
            } else if nr_faults == 0 || !place.follows() {
                let leaves_messages = !may_be_held_up && place.leaves_messages();
                self.sleeping.fetch_add(1, Ordering::Relaxed);
                waiter.sleep(leaves_messages, may_be_held_up.then_some(&WATCH_TICK));
                self.sleeping.fetch_sub(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// A fault of a thread was served: this handler follows it, or another one.
    fn take_turns(&self, place: &mut Place<'_>, tid: u32) {
        match place.served(tid, self.engine.is_stray()) {
            Turn::Same => {}
            Turn::Changed => self.call_for_help(),
            Turn::HandedOver => {
                self.call_for_help();
                place.hold();
            }
        }
    }

    /// Has another handler look up, if one sleeps: there is read-ahead to share, or who listens for messages has changed.
    pub(crate) fn call_for_help(&self) {
        if self.sleeping.load(Ordering::Relaxed) > 0 {
            let _ = rustix::io::write(&self.help, &1u64.to_ne_bytes());
        }
    }

    fn bring(&self, touch: Touch) -> Outcome {
        match touch.access {
            FaultAccess::Read => self.engine.read_fault_with(touch.page, &|| self.call_for_help()),
            FaultAccess::WriteProtect => self.engine.write_fault(touch.page),
            FaultAccess::Write | FaultAccess::Minor => {
                self.engine.fault_with(touch.page, &|| self.call_for_help())
            }
        }
    }

    pub(crate) fn serve_fault(&self, pending: Pending, retries: &mut Retries) {
        if self.attempt(pending) == Attempt::Again && !retries.push(pending) {
            self.put_off(pending.touch.page);
        }
    }

    /// Tries to serve a fault, by whichever thread.
    pub(crate) fn attempt(&self, pending: Pending) -> Attempt {
        let page = pending.touch.page;
        let mut outcome = self.bring(pending.touch);
        if outcome == Outcome::Retry && self.is_frozen() && self.engine.is_short() && self.policy.spare() {
            outcome = self.bring(pending.touch);
        }
        match outcome {
            Outcome::Done => {
                let took = u64::try_from(pending.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
                self.engine.kernel().stats().latency.record(took);
                self.waits.end(page);
                return Attempt::Served;
            }
            Outcome::Parked => return Attempt::Parked,
            Outcome::Unmanaged => {
                // The program has changed the mapping without a word: look at it again.
                let found = self.discover(AddrRange::new(page.addr(), 1));
                if found == Found::default() {
                    fill_unknown(&self.engine, page);
                }
            }
            Outcome::Full => self.make_room(),
            Outcome::Retry if self.engine.is_short() => self.starve(page),
            Outcome::Retry => {}
        }
        if let Some(errno) = crate::forbidden::seen() {
            self.policy.forbidden(errno);
        }
        Attempt::Again
    }

    /// Has every fault tried once more, after a pause: those that were put off come again.
    fn retry(&self, retries: &mut Retries) {
        pause(RETRY_PAUSE_NS);
        self.engine.kernel().wake_put_off(true);
        let mut again = Retries::new();
        while let Some(pending) = retries.pop() {
            self.serve_fault(pending, &mut again);
        }
        *retries = again;
    }

    pub(crate) fn kick_if_low(&self) {
        if !self.reclaiming.load(Ordering::Relaxed) && self.engine.wants_reclaim(false) {
            self.kick();
        }
    }

    /// Wakes the reclaimer.
    pub fn kick(&self) {
        self.kicks.fetch_add(1, Ordering::Release);
        futex_wake(&self.kicks, Scope::Private, 1);
    }

    /// Keeps memory free until [`stop`](Self::stop).
    pub fn reclaim(&self) {
        self.running.fetch_add(1, Ordering::SeqCst);
        let mut seen = self.kicks.load(Ordering::Acquire);
        while !self.stopping.load(Ordering::Relaxed) {
            self.park_if_frozen();
            let _ = self.clock.now();
            self.reclaiming.store(true, Ordering::Relaxed);
            self.engine.try_stuck();
            self.reclaim_until_high();
            self.engine.share(&|| !self.is_interrupted());
            self.engine.trim_idle();
            self.reclaiming.store(false, Ordering::Relaxed);
            while !self.is_interrupted() && !self.engine.wants_reclaim(false) && self.engine.demote() {}
            // Returns at once if somebody asked meanwhile.
            let _ = futex_wait(&self.kicks, Scope::Private, seen, Some(RECLAIM_TICK));
            seen = self.kicks.load(Ordering::Acquire);
        }
    }

    /// Whether the reclaimer is wanted elsewhere.
    fn is_interrupted(&self) -> bool {
        self.stopping.load(Ordering::Relaxed) || self.is_frozen()
    }

    fn reclaim_until_high(&self) {
        let mut going = false;
        self.engine.take_back();
        while (self.engine.wants_reclaim(going) || self.engine.is_overdrawn()) && !self.is_interrupted() {
            going = true;
            match self.engine.reclaim() {
                Reclaimed::Progress => {
                    self.engine.take_back();
                    // As much moves down as is stored, or what leaves now would soon go by the first tier.
                    self.engine.demote();
                }
                // Whoever needs memory will notice, and do what is to be done.
                Reclaimed::Nothing | Reclaimed::Full => return,
            }
        }
    }
}

pub(crate) fn pause(nanoseconds: i64) {
    let _ = rustix::thread::nanosleep(&Timespec { tv_sec: 0, tv_nsec: nanoseconds });
}
