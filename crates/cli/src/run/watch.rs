//! Watches the processes that have a slot, and settles the accounts of those that are gone.
//!
//! A new slot is found at the next look; from then on the process's pidfd wakes the supervisor at its death. A process
//! that came and went between two looks is found dead, and settled all the same.

use std::os::fd::{AsFd, BorrowedFd};

use hmm::control::{Control, ProcessId, Slot, SlotState};
use hmm_uapi::{Fd, sys};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::totals::Gauges;

const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// A process that was alive at the last look.
#[derive(Debug)]
struct Watched {
    process: ProcessId,
    slot: &'static Slot,
    pidfd: Fd,
}

/// All processes under supervision.
#[derive(Debug)]
pub(super) struct Watch {
    control: Control,
    watched: Vec<Watched>,
    peaks: Gauges,
    nr_unmanaged: u64,
}

impl Watch {
    pub(super) fn new(control: Control) -> Self {
        Self { control, watched: Vec::new(), peaks: Gauges::default(), nr_unmanaged: 0 }
    }

    /// Descriptors that become readable when there is something to settle.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.watched.iter().map(|watched| watched.pidfd.as_fd())
    }

    /// The highest gauges seen at any look.
    pub(super) const fn peaks(&self) -> &Gauges {
        &self.peaks
    }

    /// Processes that have ended without ever being managed.
    pub(super) const fn nr_unmanaged(&self) -> u64 {
        self.nr_unmanaged
    }

    /// Looks at all slots: finds new processes, and settles those that are gone.
    pub(super) fn look(&mut self) {
        // Before the gauges of the dead are cleared.
        self.peaks.raise_to(&Gauges::of(&self.control));
        self.settle_the_dead();
        self.find_new();
    }

    fn settle_the_dead(&mut self) {
        let mut fds: Vec<PollFd<'_>> =
            self.fds().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        if !poll(&mut fds, Some(&AT_ONCE)).is_ok_and(|nr_ready| nr_ready > 0) {
            return;
        }
        let dead: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut dead = dead.into_iter();
        for gone in self.watched.extract_if(.., |_| dead.next().unwrap_or(false)) {
            settle(self.control, gone.slot, gone.process, &mut self.nr_unmanaged);
        }
    }

    fn find_new(&mut self) {
        // What a parent had claimed for its child has been the child's since.
        self.watched.retain(|watched| watched.slot.owner() == Some(watched.process));
        for slot in self.control.slots() {
            let Some(process) = slot.owner() else { continue };
            // A process that forks has two.
            let is_known = |watched: &Watched| watched.process == process && std::ptr::eq(watched.slot, slot);
            if self.watched.iter().any(is_known) {
                continue;
            }
            // Asked in this order: if the pid is another process's by now, the start time tells.
            let pidfd = i32::try_from(process.pid()).ok().and_then(|pid| sys::pidfd_open(pid).ok());
            if !process.is_alive() {
                settle(self.control, slot, process, &mut self.nr_unmanaged);
            } else if let Some(pidfd) = pidfd {
                self.watched.push(Watched { process, slot, pidfd });
            }
        }
    }
}

fn settle(control: Control, slot: &Slot, process: ProcessId, nr_unmanaged: &mut u64) {
    let is_unmanaged = slot.owner() == Some(process) && slot.state() == SlotState::Unmanaged;
    *nr_unmanaged += u64::from(is_unmanaged);
    control.settle(slot, process);
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::sync::atomic::Ordering;

    use hmm::control::{OnFull, RunConfig};

    use super::*;

    fn control() -> Control {
        let config = RunConfig {
            ram_pages: 100,
            per_process: false,
            on_full: OnFull::Kill,
            devices: Vec::new(),
            dmirror: false,
            policy: hmm::PolicyName::default(),
        };
        Control::create(&config).unwrap().1
    }

    fn process_with_charge(control: Control, pages: u64) -> Child {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let slot = control.claim_slot(child.id()).unwrap();
        assert!(control.share(slot).try_charge(pages));
        slot.stats().away.store(7, Ordering::Relaxed);
        child
    }

    fn end(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn the_dead_are_settled_and_the_living_are_not() {
        let control = control();
        let mut watch = Watch::new(control);
        let (one, other) = (process_with_charge(control, 30), process_with_charge(control, 40));
        watch.look();
        assert_eq!((watch.fds().count(), control.charged()), (2, 70));
        end(one);
        watch.look();
        assert_eq!((watch.fds().count(), control.charged()), (1, 40));
        end(other);
        watch.look();
        assert_eq!((watch.fds().count(), control.charged()), (0, 0));
        assert_eq!(watch.peaks().away_pages, 14);
    }

    #[test]
    fn a_process_that_came_and_went_unseen_is_settled() {
        let control = control();
        let mut watch = Watch::new(control);
        let child = process_with_charge(control, 30);
        control.slots().next().unwrap().set_state(SlotState::Unmanaged);
        end(child);
        watch.look();
        assert_eq!((control.charged(), watch.nr_unmanaged()), (0, 1));
        assert_eq!(control.slots().next().unwrap().owner(), None);
    }

    #[test]
    fn a_zombie_counts_as_gone() {
        let control = control();
        let mut watch = Watch::new(control);
        let mut child = process_with_charge(control, 30);
        watch.look();
        child.kill().unwrap();
        // Its end, but not its exit status, has been waited for.
        let mut fds: Vec<PollFd<'_>> =
            watch.fds().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        poll(&mut fds, None).unwrap();
        watch.look();
        assert_eq!(control.charged(), 0);
        child.wait().unwrap();
    }
}
