//! Where a handler runs: on the CPU of the thread whose faults it answers.
//!
//! Waking a thread on another CPU takes several times as long as serving a fault, above all in a virtual machine, which
//! gives idle CPUs back (`hmm bench` prints both figures). A thread that faults sleeps until it is answered, so its own
//! CPU is awake, and free. As long as one thread has all the faults, and they are of no stream, one handler follows it.
//!
//! It goes back to where the scheduler likes when another thread faults, or when there is a stream: fetching ahead is work
//! for a CPU on which the program does not run.
//!
//! A handler that finds the thread on another CPU does not go there itself. The scheduler wakes a thread where it was lately, if
//! that CPU is idle (`recent_used_cpu` in the kernel's `select_idle_sibling`); so the CPU that the handler has just left would be
//! where the thread is woken next, and they would run after each other. Instead it hands the thread over to the other handler,
//! and stays awake where it is until that one has woken the thread once.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hmm_uapi::{sys, tasks};
use rustix::thread::CpuSet;

/// Faults of one thread in a row after which it is followed, and then looked where it is now.
const STREAK: u32 = 16;
/// The longest that a handler stays awake for another one.
const HOLD: Duration = Duration::from_micros(500);
/// Nobody follows.
const NOBODY: u32 = 0;

/// Which handler follows a thread, and which thread: one at a time does.
#[derive(Debug, Default)]
pub(crate) struct Follower {
    /// The handler's number.
    who: AtomicU32,
    tid: AtomicU32,
    cpu: AtomicUsize,
    /// Whether the handler has woken the thread there.
    has_woken: AtomicBool,
    /// Numbers that were given, from 1 on.
    nr_places: AtomicU32,
}

impl Follower {
    /// Nobody follows: in the child of a fork the handlers of its parent are not.
    pub(crate) fn reset(&self) {
        self.who.store(NOBODY, Ordering::Relaxed);
        self.nr_places.store(0, Ordering::Relaxed);
    }
}

/// What a fault has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the other handlers sleep, and have to be told"]
pub(crate) enum Turn {
    /// Nothing.
    Same,
    /// A handler follows from now on, or none does.
    Changed,
    /// Another handler has to follow; this one [holds](Place::hold) its CPU.
    HandedOver,
}

/// Where one handler runs.
pub(crate) struct Place<'f> {
    follower: &'f Follower,
    number: u32,
    /// The thread that faulted last, and how often in a row it did.
    tid: u32,
    streak: u32,
    followed: Option<Followed>,
}

struct Followed {
    cpu: usize,
    /// Where the handler may run when it follows nobody.
    before: CpuSet,
}

impl<'f> Place<'f> {
    /// Where the scheduler likes.
    pub(crate) fn new(follower: &'f Follower) -> Self {
        let number = follower.nr_places.fetch_add(1, Ordering::Relaxed) + 1;
        Self { follower, number, tid: 0, streak: 0, followed: None }
    }

    fn is_follower(&self) -> bool {
        self.follower.who.load(Ordering::Acquire) == self.number
    }

    /// Whether another handler follows, and messages are for that.
    pub(crate) fn leaves_messages(&self) -> bool {
        let who = self.follower.who.load(Ordering::Relaxed);
        who != NOBODY && who != self.number
    }

    /// Whether this handler follows a thread, which may overtake it as soon as it is woken: then there is another message before
    /// the handler is asleep.
    pub(crate) const fn follows(&self) -> bool {
        self.followed.is_some()
    }

    /// Before messages are read: takes over what another one has handed over.
    pub(crate) fn attend(&mut self) {
        if self.followed.is_none() && self.is_follower() {
            self.tid = self.follower.tid.load(Ordering::Relaxed);
            self.follow(self.follower.cpu.load(Ordering::Relaxed));
        }
    }

    /// A fault of a thread was served.
    pub(crate) fn served(&mut self, tid: u32, is_stray: bool) -> Turn {
        let mut turn = Turn::Same;
        if tid != self.tid || !is_stray || (self.followed.is_some() && !self.is_follower()) {
            turn = self.leave();
            self.tid = tid;
        }
        if self.followed.is_some() && !self.follower.has_woken.load(Ordering::Relaxed) {
            self.follower.has_woken.store(true, Ordering::Release);
        }
        self.streak += 1;
        if self.streak < STREAK {
            return turn;
        }
        self.streak = 0;
        match tasks::cpu_of(tid) {
            Some(cpu) => self.look(cpu),
            None => turn,
        }
    }

    /// The thread runs on that CPU.
    fn look(&mut self, cpu: usize) -> Turn {
        if self.followed.as_ref().is_some_and(|followed| followed.cpu == cpu) {
            return Turn::Same;
        }
        let has_partner = self.follower.nr_places.load(Ordering::Relaxed) == 2;
        if cpu == sys::current_cpu() || !has_partner {
            self.follower.has_woken.store(true, Ordering::Relaxed);
            self.follower.who.store(self.number, Ordering::Release);
            self.follow(cpu);
            return Turn::Changed;
        }
        self.unpin();
        self.follower.tid.store(self.tid, Ordering::Relaxed);
        self.follower.cpu.store(cpu, Ordering::Relaxed);
        self.follower.has_woken.store(false, Ordering::Relaxed);
        // The other of the two.
        self.follower.who.store(3 - self.number, Ordering::Release);
        Turn::HandedOver
    }

    /// Stays awake until the other handler has woken the thread.
    pub(crate) fn hold(&self) {
        let start = Instant::now();
        while !self.follower.has_woken.load(Ordering::Acquire) && start.elapsed() < HOLD {
            std::hint::spin_loop();
        }
    }

    fn follow(&mut self, cpu: usize) {
        let before = match &self.followed {
            Some(followed) => followed.before,
            None => match sys::affinity(None) {
                Ok(before) => before,
                Err(_) => return self.give_up(),
            },
        };
        self.streak = 0;
        self.followed = Some(Followed { cpu, before });
        if sys::pin_to(cpu).is_err() {
            self.unpin();
            self.give_up();
        }
    }

    fn unpin(&mut self) {
        if let Some(followed) = self.followed.take() {
            // It fails if none of these CPUs may be used any more: then the kernel has chosen others.
            let _ = sys::set_affinity(None, &followed.before);
        }
    }

    /// Nobody follows, unless it is another one.
    fn give_up(&self) {
        let who = &self.follower.who;
        let _ = who.compare_exchange(self.number, NOBODY, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The handler follows nobody any more.
    pub(crate) fn leave(&mut self) -> Turn {
        self.streak = 0;
        if self.followed.is_none() && !self.is_follower() {
            return Turn::Same;
        }
        self.unpin();
        self.give_up();
        Turn::Changed
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let _ = self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus() -> Vec<usize> {
        let now = sys::affinity(None).unwrap();
        (0..CpuSet::MAX_CPU).filter(|cpu| now.is_set(*cpu)).collect()
    }

    fn fault(place: &mut Place<'_>, tid: u32, times: u32) -> Turn {
        (0..times).map(|_| place.served(tid, true)).last().unwrap()
    }

    fn this_thread() -> u32 {
        sys::gettid().unsigned_abs()
    }

    #[test]
    fn a_handler_follows_one_thread_and_leaves_when_there_are_two() {
        let before = cpus();
        let follower = Follower::default();
        let mut place = Place::new(&follower);
        assert_eq!(fault(&mut place, this_thread(), STREAK - 1), Turn::Same);
        assert_eq!(cpus(), before, "not yet");
        assert_eq!(fault(&mut place, this_thread(), 1), Turn::Changed);
        assert_eq!(cpus().len(), 1);
        assert!(place.is_follower() && !place.leaves_messages());
        assert_eq!(fault(&mut place, this_thread() + 1, 1), Turn::Changed);
        assert!(!place.is_follower());
        assert_eq!(cpus(), before);
    }

    #[test]
    fn streams_and_threads_that_went_are_not_followed() {
        let before = cpus();
        let follower = Follower::default();
        let mut place = Place::new(&follower);
        assert_eq!(fault(&mut place, u32::MAX, 2 * STREAK), Turn::Same);
        assert_eq!(cpus(), before, "no such thread");
        let _ = fault(&mut place, this_thread(), STREAK);
        assert_eq!(cpus().len(), 1);
        assert_eq!(place.served(this_thread(), false), Turn::Changed);
        assert_eq!(cpus(), before);
    }

    #[test]
    fn a_thread_on_another_cpu_is_handed_over_until_it_was_woken_there() {
        let all = cpus();
        let Some(other) = all.iter().copied().find(|cpu| *cpu != sys::current_cpu()) else {
            return eprintln!("SKIPPED: one CPU");
        };
        let before = sys::affinity(None).unwrap();
        let follower = Follower::default();
        let (mut first, mut second) = (Place::new(&follower), Place::new(&follower));
        first.tid = this_thread();
        assert_eq!(first.look(other), Turn::HandedOver);
        assert!(first.leaves_messages() && !second.leaves_messages());
        assert_eq!(cpus(), all, "the first stays where it is");
        let start = Instant::now();
        first.hold();
        assert!(start.elapsed() >= HOLD, "nobody has woken the thread");

        second.attend();
        assert_eq!(cpus(), [other]);
        assert_eq!(second.served(this_thread(), true), Turn::Same);
        assert!(follower.has_woken.load(Ordering::Relaxed));
        // The first glances at messages, finds a fault of another thread, and does not end what is not its own.
        assert_eq!(first.served(this_thread() + 1, true), Turn::Same);
        assert!(second.is_follower());
        drop(second);
        assert!(!first.leaves_messages());
        assert_eq!(cpus(), all);
        sys::set_affinity(None, &before).unwrap();
    }
}
