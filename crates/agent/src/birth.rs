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

/// Waits for what the child has to say. `None` if it is gone.
fn hear(runtime: &Runtime, end: &Fd, child: Option<&Userfaultfd>) -> Option<u8> {
    while poll(&mut [PollFd::new(end, PollFlags::IN)], Some(&LOOK)) == Ok(0) {
        match child {
            Some(child) if is_gone(child) => return None,
            Some(_) => {}
            // Of a fork that is not reported nobody else knows; its parent's thread gets the page and comes back.
            None => runtime.serve_once(&mut |child| runtime.poison_child(&child)),
        }
    }
    let mut byte = [0u8];
    let nr = rustix::io::retry_on_intr(|| rustix::io::read(end, &mut byte)).unwrap_or(0);
    (nr == 1).then_some(byte[0])
}
