//! Where a handler runs: on the CPU of the thread whose faults it answers.
//!
//! Waking a thread on another CPU takes several times as long as serving a fault, above all in a virtual machine, which
//! gives idle CPUs back (`hmm bench` prints both figures). A thread that faults sleeps until it is answered, so its own
//! CPU is awake, and free. As long as one thread has all the faults, and they are of no stream, one handler follows it.
//!
//! It goes back to where the scheduler likes when another thread faults, or when there is a stream: fetching ahead is work
//! for a CPU on which the program does not run.

use std::sync::atomic::{AtomicU32, Ordering};

use hmm_uapi::{sys, tasks};
use rustix::thread::CpuSet;

/// Faults of one thread in a row after which it is followed, and then looked where it is now.
const STREAK: u32 = 16;
/// Nobody follows.
const NOBODY: u32 = 0;

/// Which handler follows a thread: one at a time does.
#[derive(Debug, Default)]
pub(crate) struct Follower {
    /// Its number.
    who: AtomicU32,
    /// Numbers that were given.
    nr_places: AtomicU32,
}

impl Follower {
    /// Nobody follows: in the child of a fork the handlers of its parent are not.
    pub(crate) fn reset(&self) {
        self.who.store(NOBODY, Ordering::Relaxed);
    }
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

    /// Whether this handler follows a thread.
    pub(crate) fn follows(&self) -> bool {
        self.followed.is_some() && self.follower.who.load(Ordering::Relaxed) == self.number
    }

    /// Whether another one does, and messages are for that.
    pub(crate) fn leaves_messages(&self) -> bool {
        let who = self.follower.who.load(Ordering::Relaxed);
        who != NOBODY && who != self.number
    }

    /// A fault of a thread was served.
    pub(crate) fn served(&mut self, tid: u32, is_stray: bool) {
        if tid != self.tid || !is_stray || (self.followed.is_some() && !self.follows()) {
            self.leave();
            self.tid = tid;
        }
        self.streak += 1;
        if self.streak == STREAK {
            self.streak = 0;
            if let Some(cpu) = tasks::cpu_of(tid) {
                self.follow(cpu);
            }
        }
    }

    /// Goes to the thread's CPU. Whoever followed until now has none of its faults any more: it is relieved.
    fn follow(&mut self, cpu: usize) {
        let before = match &self.followed {
            Some(followed) if followed.cpu == cpu => return,
            Some(followed) => followed.before,
            None => match sys::affinity(None) {
                Ok(before) => before,
                Err(_) => return,
            },
        };
        self.follower.who.store(self.number, Ordering::Relaxed);
        self.followed = Some(Followed { cpu, before });
        if sys::pin_to(cpu).is_err() {
            self.leave();
        }
    }

    /// The handler follows nobody any more.
    pub(crate) fn leave(&mut self) {
        self.streak = 0;
        if let Some(followed) = self.followed.take() {
            // It fails if none of these CPUs may be used any more: then the kernel has chosen others.
            let _ = sys::set_affinity(None, &followed.before);
            let _ = self.follower.who.compare_exchange(self.number, NOBODY, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus() -> Vec<usize> {
        let now = sys::affinity(None).unwrap();
        (0..CpuSet::MAX_CPU).filter(|cpu| now.is_set(*cpu)).collect()
    }

    fn fault(place: &mut Place<'_>, tid: u32, times: u32) {
        (0..times).for_each(|_| place.served(tid, true));
    }

    #[test]
    fn a_handler_follows_one_thread_and_leaves_when_there_are_two() {
        let before = cpus();
        let follower = Follower::default();
        let mut place = Place::new(&follower);
        let tid = sys::gettid().unsigned_abs();
        fault(&mut place, tid, STREAK - 1);
        assert_eq!(cpus(), before, "not yet");
        fault(&mut place, tid, 1);
        assert_eq!(cpus().len(), 1);
        assert!(place.follows() && !place.leaves_messages());
        fault(&mut place, tid + 1, 1);
        assert!(!place.follows());
        assert_eq!(cpus(), before);
    }

    #[test]
    fn who_gets_the_faults_relieves_the_one_that_followed() {
        let before = cpus();
        let follower = Follower::default();
        let tid = sys::gettid().unsigned_abs();
        let mut first = Place::new(&follower);
        fault(&mut first, tid, STREAK);
        // Of its own threads each handler sees its own affinity: here both are this one.
        sys::set_affinity(None, &first.followed.as_ref().unwrap().before).unwrap();
        let mut second = Place::new(&follower);
        assert!(second.leaves_messages());
        fault(&mut second, tid, STREAK);
        assert!(second.follows() && !first.follows() && first.leaves_messages());
        fault(&mut first, tid, 1);
        assert!(first.followed.is_none() && second.follows(), "it has gone, and not taken the other one along");
        drop(second);
        assert_eq!(cpus(), before);
        assert!(!first.leaves_messages());
    }

    #[test]
    fn streams_and_threads_that_went_are_not_followed() {
        let before = cpus();
        let follower = Follower::default();
        let mut place = Place::new(&follower);
        fault(&mut place, u32::MAX, 2 * STREAK);
        assert_eq!(cpus(), before, "no such thread");
        let tid = sys::gettid().unsigned_abs();
        fault(&mut place, tid, STREAK);
        assert_eq!(cpus().len(), 1);
        place.served(tid, false);
        assert_eq!(cpus(), before);
    }
}
