//! userfaultfd: faults of registered memory come to us, and we decide what the faulting thread finds.
//!
//! The protocol: [`Userfaultfd::open`], [`Userfaultfd::enable`] the features wanted, [`Userfaultfd::register`] ranges,
//! then [`Userfaultfd::read_events`] for ever and answer every fault with one of the resolving verbs
//! ([`copy`](Userfaultfd::copy), [`zero`](Userfaultfd::zero), [`move`](Userfaultfd::move),
//! [`write_protect`](Userfaultfd::write_protect), [`poison`](Userfaultfd::poison), [`wake`](Userfaultfd::wake)).
//!
//! While an event (anything but a fault) is unread, the resolving verbs stop with `EAGAIN`: read the events first.
//!
//! Dropping the [`Userfaultfd`] closes it: the kernel unregisters its ranges and wakes who waits, who then finds zeroes
//! where pages were away.

mod event;
mod features;
mod open;
mod resolve;

use std::os::fd::{AsFd, BorrowedFd};

use linux_raw_sys::general::{
    UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP, USERFAULTFD_IOC, uffdio_range, uffdio_register,
};
use linux_raw_sys::ioctl::{UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_WAKE};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::fd::Fd;
use crate::ioc;
use crate::range::AddrRange;

pub use event::{Event, EventBuffer, Events, FaultAccess, MAX_EVENTS};
pub use features::{EnableError, Features, supported_features};
pub use open::{Access, OpenError, open_node};
pub use resolve::{CopyMode, MoveMode, Outcome};

/// The letter of userfaultfd's ioctls.
const IOC_GROUP: u8 = 0xAA;
const _: () = assert!(IOC_GROUP as u32 == USERFAULTFD_IOC);

bitflags::bitflags! {
    /// Which faults of a range are ours.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Modes: u64 {
        /// Accesses to holes.
        const MISSING = UFFDIO_REGISTER_MODE_MISSING as u64;
        /// Writes to pages that were write-protected.
        const WRITE_PROTECT = UFFDIO_REGISTER_MODE_WP as u64;
    }
}

/// An open userfaultfd. It belongs to the address space that opened it, whichever process holds the descriptor.
#[derive(Debug)]
pub struct Userfaultfd {
    fd: Fd,
}

impl Userfaultfd {
    /// Takes over a descriptor that is a userfaultfd: one that another process handed on.
    pub const fn from_fd(fd: Fd) -> Self {
        Self { fd }
    }

    /// Gives the descriptor away.
    pub fn into_fd(self) -> Fd {
        self.fd
    }

    /// Chooses whether reading events waits for one. A new userfaultfd does not wait; one that does cannot be polled.
    ///
    /// # Errors
    /// What `fcntl(2)` says; none is expected.
    pub fn set_nonblocking(&self, nonblocking: bool) -> Result<(), Errno> {
        let flags = rustix::fs::fcntl_getfl(&self.fd)?;
        let flags = if nonblocking { flags | OFlags::NONBLOCK } else { flags - OFlags::NONBLOCK };
        rustix::fs::fcntl_setfl(&self.fd, flags)
    }

    /// Makes the range's faults ours. Registering a range again changes its modes.
    ///
    /// # Safety
    /// From now on the holder of this userfaultfd decides what an access to the range's holes finds, and when:
    /// 1. no Rust reference to the range lives whose owner does not expect its bytes to come from us, because
    ///    the safe resolving verbs write to holes of the range at any time;
    /// 2. nobody who has to answer the faults, nor anybody they wait for, touches the range (I6);
    /// 3. bytes that were taken out of the range are put back before anybody reads there, or the range is poisoned;
    ///    closing the descriptor or unregistering does not do that.
    ///
    /// # Errors
    /// `EBUSY`: another userfaultfd has the range. `EINVAL`: no mapping there, or one of a kind that cannot be
    /// registered this way (files; `[vdso]`). `EPERM`: a read-only mapping of a file. `ENOMEM`: the address space is
    /// gone, or it has too many mappings.
    pub unsafe fn register(&self, range: AddrRange, modes: Modes) -> Result<(), Errno> {
        let mut arg = uffdio_register { range: raw(range), mode: modes.bits(), ioctls: 0 };
        // SAFETY:
        // 1. the opcode takes a `uffdio_register`.
        // 2. what it does to the range's accesses is the caller's promise.
        unsafe { ioc::call(self, UFFDIO_REGISTER, &mut arg) }.map(drop)
    }

    /// Gives the range back to the kernel: holes are filled with zeroes again. Wakes who waits.
    ///
    /// # Errors
    /// `EINVAL`: no mapping there, one that could not be registered, or (since 6.15) another's registration.
    pub fn unregister(&self, range: AddrRange) -> Result<(), Errno> {
        self.range_call(UFFDIO_UNREGISTER, range)
    }

    /// Wakes who waits for a page of the range, so that it tries again.
    ///
    /// # Errors
    /// `EINVAL`: the range is empty, not page aligned or outside of the address space.
    pub fn wake(&self, range: AddrRange) -> Result<(), Errno> {
        self.range_call(UFFDIO_WAKE, range)
    }

    fn range_call(&self, opcode: u32, range: AddrRange) -> Result<(), Errno> {
        let mut arg = raw(range);
        // SAFETY:
        // 1. both callers' opcodes take a `uffdio_range`.
        // 2. they write no memory; that holes may read as zeroes is covered by the contract of `register`.
        unsafe { ioc::call(self, opcode, &mut arg) }.map(drop)
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

const fn raw(range: AddrRange) -> uffdio_range {
    uffdio_range { start: range.start, len: range.len() }
}
