//! What the parent's control thread hears of a child ([`child`](crate::child)), and that it may hear nothing.
//!
//! A child that ends closes its end of the connection. But the thread that forks has that end, too, until it comes back from the
//! kernel; and there it may wait for a page, which it gets when the fork is over. So who waits for the child looks now and then.

use std::os::fd::AsFd;

use hmm::core::addr::PAGE_SIZE;
use hmm::handover;
use hmm::runtime::Runtime;
use hmm::uapi::uffd::Userfaultfd;
use hmm::uapi::{AddrRange, Fd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::child;
use crate::fork::{AGAIN, DONE};

/// How often who waits for a child looks whether there still is one.
pub(crate) const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// At once.
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Whether the child has ended, whose userfaultfd this is.
pub(crate) fn is_gone(child: &Userfaultfd) -> bool {
    // Of our own heap, which is at the same place there.
    let never_registered = hmm::heap::range().map(|heap| AddrRange::new(heap.start, PAGE_SIZE as u64));
    never_registered.is_some_and(|page| child.is_orphaned(page))
}

/// The child has said something, or is not there. Gives how the fork stands then.
pub(crate) fn finish(runtime: &Runtime, end: &Fd, child: Option<&Userfaultfd>) -> u32 {
    let mut said = hear(runtime, end, child);
    if said == Some(child::READY) {
        let _read_by_nobody = handover::send(end, &[0], child.map(AsFd::as_fd));
        // Its faults are its own from here on.
        said = hear(runtime, end, child);
    }
    if said == Some(child::USELESS) { AGAIN } else { DONE }
}

/// Waits for what the child has to say. `None` if it is gone, and has said nothing.
fn hear(runtime: &Runtime, end: &Fd, child: Option<&Userfaultfd>) -> Option<u8> {
    hear_until(end, &mut || match child {
        Some(child) => is_gone(child),
        // Of a fork that is not reported nobody else knows; its parent's thread gets the page and comes back.
        None => {
            runtime.serve_once(&mut |child| runtime.poison_child(&child));
            false
        }
    })
}

/// Waits for a byte; asks now and then whether it is over. Whoever is gone may have said something in between: that it is of no use,
/// and who does not hear that takes a child that nobody has ever seen for one that lives.
fn hear_until(end: &Fd, is_over: &mut dyn FnMut() -> bool) -> Option<u8> {
    let says = |patience| poll(&mut [PollFd::new(end, PollFlags::IN)], Some(patience)) != Ok(0);
    let mut patience = &NOW;
    while !says(patience) {
        if is_over() && !says(&NOW) {
            return None;
        }
        patience = &LOOK;
    }
    let mut byte = [0u8];
    let nr = rustix::io::retry_on_intr(|| rustix::io::read(end, &mut byte)).unwrap_or(0);
    (nr == 1).then_some(byte[0])
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_is_said_before_the_end_is_heard() {
        let pair = || UnixStream::pair().map(|(one, other)| (Fd::from(OwnedFd::from(one)), other));
        let (end, child) = pair().expect("two ends");
        let mut child = Some(child);
        let heard = hear_until(&end, &mut || {
            // Between the two looks.
            let ends = child.take();
            ends.is_some_and(|child| rustix::io::write(&child, &[child::USELESS]).is_ok())
        });
        assert_eq!(heard, Some(child::USELESS));
        let (end, other) = pair().expect("two ends");
        assert_eq!(hear_until(&end, &mut || true), None, "nothing, and nothing will be");
        drop(other);
        assert_eq!(hear_until(&end, &mut || false), None, "nobody");
    }
}
