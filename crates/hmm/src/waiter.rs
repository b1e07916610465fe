//! How a handler sleeps: until the kernel has a message, a helper is wanted, or the alarm goes.
//!
//! Each has an epoll of its own, and the kernel wakes one of those that sleep. While a handler follows the thread that
//! faults ([`place`](crate::place)) the others do not listen for messages: on the way back to its sleep it is overtaken by
//! that thread now and then, and then another one would be woken, on a CPU far away, only to find that there is nothing to do.
//! They look for themselves every few milliseconds, so nobody depends on the one that follows.

use std::mem::MaybeUninit;

use rustix::event::epoll;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::time::Timespec;

use crate::runtime::Runtime;

/// What woke a handler.
const MESSAGES: u64 = 0;
const HELP: u64 = 1;
const ALARM: u64 = 2;

/// How often one looks for messages that it does not listen for.
const GLANCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// What one handler sleeps on.
pub(crate) struct Waiter<'r> {
    runtime: &'r Runtime,
    epoll: OwnedFd,
    listens: bool,
}

impl<'r> Waiter<'r> {
    /// Listens for everything.
    ///
    /// # Errors
    /// What setting the epoll up says.
    pub(crate) fn new(runtime: &'r Runtime) -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let [alarm, help] = runtime.eventfds();
        epoll::add(&epoll, help, epoll::EventData::new_u64(HELP), exclusive())?;
        epoll::add(&epoll, alarm, epoll::EventData::new_u64(ALARM), epoll::EventFlags::IN)?;
        let mut waiter = Self { runtime, epoll, listens: false };
        waiter.listen()?;
        Ok(waiter)
    }

    fn listen(&mut self) -> Result<(), Errno> {
        let messages = epoll::EventData::new_u64(MESSAGES);
        epoll::add(&self.epoll, self.runtime.engine().kernel().uffd(), messages, exclusive())?;
        self.listens = true;
        Ok(())
    }

    /// Sleeps until there is something to do, or for so long. Who leaves messages to another sleeps for moments only.
    pub(crate) fn sleep(&mut self, leaves_messages: bool, at_most: Option<&Timespec>) {
        if leaves_messages == self.listens {
            if leaves_messages {
                self.listens = epoll::delete(&self.epoll, self.runtime.engine().kernel().uffd()).is_err();
            } else {
                // For want of memory it may fail: then it goes on looking for itself.
                let _ = self.listen();
            }
        }
        let at_most = if self.listens { at_most } else { Some(&GLANCE) };
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); 2];
        // EINTR is impossible with signals blocked, and harmless without.
        let woken = epoll::wait(&self.epoll, &mut events, at_most);
        if woken.is_ok_and(|(events, _)| events.iter().any(|event| event.data.u64() == HELP)) {
            let [_, help] = self.runtime.eventfds();
            let _ = rustix::io::read(help.as_fd(), &mut [0u8; 8]);
        }
    }
}

fn exclusive() -> epoll::EventFlags {
    epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE
}
