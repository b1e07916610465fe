//! Where a handler runs: on the CPU of the thread whose faults it answers.
//!
//! Waking a thread on another CPU takes several times as long as serving a fault, above all in a virtual machine, which
//! gives idle CPUs back (`hmm bench` prints both figures). A thread that faults sleeps until it is answered, so its own
//! CPU is awake, and free. As long as one thread has all the faults, and they are of no stream, one handler follows it.
//!
//! It goes back to where the scheduler likes when another thread faults, or when there is a stream: fetching ahead is work
//! for a CPU on which the program does not run.

use std::sync::atomic::{AtomicBool, Ordering};

use hmm_uapi::{sys, tasks};
use rustix::thread::CpuSet;

/// Faults of one thread in a row after which it is followed, and then looked where it is now.
const STREAK: u32 = 32;

/// Whether a handler follows a thread: one at a time does.
#[derive(Debug, Default)]
pub(crate) struct Follower(AtomicBool);

/// Where one handler runs.
pub(crate) struct Place<'f> {
    follower: &'f Follower,
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
    pub(crate) const fn new(follower: &'f Follower) -> Self {
        Self { follower, tid: 0, streak: 0, followed: None }
    }

    /// A fault of a thread was served.
    pub(crate) fn served(&mut self, tid: u32, is_stray: bool) {
        if tid != self.tid || !is_stray {
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

    fn follow(&mut self, cpu: usize) {
        let before = match &self.followed {
            Some(followed) if followed.cpu == cpu => return,
            Some(followed) => followed.before,
            None if self.follower.0.swap(true, Ordering::Acquire) => return,
            None => match sys::affinity(None) {
                Ok(before) => before,
                Err(_) => return self.follower.0.store(false, Ordering::Release),
            },
        };
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
            self.follower.0.store(false, Ordering::Release);
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
        let mut other = Place::new(&follower);
        fault(&mut other, tid, STREAK);
        assert!(other.followed.is_none(), "one at a time");
        fault(&mut place, tid + 1, 1);
        assert_eq!(cpus(), before);
        fault(&mut other, tid, STREAK);
        assert_eq!(cpus().len(), 1, "the next may");
        drop(other);
        assert_eq!(cpus(), before);
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
