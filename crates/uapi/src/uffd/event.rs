//! What the kernel tells: faults, and changes of the registered mappings.

use std::mem::MaybeUninit;
use std::os::fd::FromRawFd;

use linux_raw_sys::general as raw;
use rustix::io::Errno;

use super::Userfaultfd;
use crate::fd::Fd;
use crate::range::AddrRange;

/// Messages that one read takes at most.
pub const MAX_EVENTS: usize = 64;

/// Bytes in a `struct uffd_msg`.
const MSG_BYTES: usize = size_of::<raw::uffd_msg>();
const _: () = assert!(MSG_BYTES == 32, "the message is parsed by its documented offsets");

/// What the faulting thread tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultAccess {
    /// A read of a hole.
    Read,
    /// A write to a hole.
    Write,
    /// A write to a protected page.
    WriteProtect,
    /// An access to a page of shared memory that is there but not mapped.
    Minor,
}

/// A message of the kernel. For all but [`Fault`](Event::Fault) the caller of the system call waits until the message
/// was read.
#[derive(Debug)]
pub enum Event {
    /// A thread waits for a page.
    Fault {
        /// The page's address; the exact one with [`Features::EXACT_ADDRESS`](super::Features::EXACT_ADDRESS).
        addr: u64,
        /// What it tried.
        access: FaultAccess,
        /// The thread, as its own process numbers it; 0 without [`Features::THREAD_ID`](super::Features::THREAD_ID).
        tid: u32,
    },
    /// The process forked; the child's registered ranges are served by this userfaultfd.
    ///
    /// Who forks by libc holds the locks of `malloc` until this message was read: a reader that allocates from the
    /// program's `malloc` hangs the program.
    Fork {
        /// The child's.
        uffd: Userfaultfd,
    },
    /// A range was moved by mremap. Its registration came along.
    Remap {
        /// Where it was.
        from: u64,
        /// Where it is.
        to: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// The range's pages are about to be dropped by madvise; it stays mapped and registered.
    Remove(AddrRange),
    /// The range is no longer mapped.
    Unmap(AddrRange),
}

/// Room for the messages of one read.
pub struct EventBuffer {
    bytes: [MaybeUninit<u8>; MAX_EVENTS * MSG_BYTES],
    used_bytes: usize,
}

impl EventBuffer {
    /// Room for [`MAX_EVENTS`].
    pub const fn new() -> Self {
        Self { bytes: [MaybeUninit::uninit(); _], used_bytes: MAX_EVENTS * MSG_BYTES }
    }

    /// Room for one.
    pub const fn for_one() -> Self {
        Self { bytes: [MaybeUninit::uninit(); _], used_bytes: MSG_BYTES }
    }
}

impl Default for EventBuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for EventBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventBuffer").finish_non_exhaustive()
    }
}

/// The messages of one read, in order. Descriptors of forks that nobody took are closed on drop.
#[derive(Debug)]
pub struct Events<'b> {
    rest: std::slice::Iter<'b, [u8; MSG_BYTES]>,
}

impl Userfaultfd {
    /// Reads what the kernel has to tell, as many messages as there is room for. Never gives none.
    ///
    /// # Errors
    /// `EAGAIN`: nothing to tell (only when reading does not wait). `EINVAL`: not enabled yet. `EINTR`: a signal came.
    pub fn read_events<'b>(&self, buffer: &'b mut EventBuffer) -> Result<Events<'b>, Errno> {
        let (read, _) = rustix::io::read(self, &mut buffer.bytes[..buffer.used_bytes])?;
        let (messages, _) = read.as_chunks::<MSG_BYTES>();
        Ok(Events { rest: messages.iter() })
    }
}

impl Iterator for Events<'_> {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.rest.find_map(parse)
    }
}

impl Drop for Events<'_> {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}

/// Reads one message; `None` for a kind that no feature known here enables.
fn parse(message: &[u8; MSG_BYTES]) -> Option<Event> {
    let [_, first, second, third] = *message.as_chunks::<8>().0 else { return None };
    let [_, _, first_half, _, _, _, third_half, _] = *message.as_chunks::<4>().0 else { return None };
    let [first, second, third] = [first, second, third].map(u64::from_ne_bytes);
    match u32::from(message[0]) {
        raw::UFFD_EVENT_PAGEFAULT => {
            Some(Event::Fault { addr: second, access: access(first), tid: u32::from_ne_bytes(third_half) })
        }
        raw::UFFD_EVENT_FORK => {
            let fd = i32::from_ne_bytes(first_half);
            // SAFETY: the kernel made this descriptor for the reader of the message, and a message is parsed once.
            Some(Event::Fork { uffd: Userfaultfd::from_fd(unsafe { Fd::from_raw_fd(fd) }) })
        }
        raw::UFFD_EVENT_REMAP => Some(Event::Remap { from: first, to: second, len: third }),
        raw::UFFD_EVENT_REMOVE => Some(Event::Remove(AddrRange { start: first, end: second })),
        raw::UFFD_EVENT_UNMAP => Some(Event::Unmap(AddrRange { start: first, end: second })),
        _ => None,
    }
}

const fn access(flags: u64) -> FaultAccess {
    // A write-protect or minor fault may carry the write flag as well: it says less.
    if flags & raw::UFFD_PAGEFAULT_FLAG_WP as u64 != 0 {
        FaultAccess::WriteProtect
    } else if flags & raw::UFFD_PAGEFAULT_FLAG_MINOR as u64 != 0 {
        FaultAccess::Minor
    } else if flags & raw::UFFD_PAGEFAULT_FLAG_WRITE as u64 != 0 {
        FaultAccess::Write
    } else {
        FaultAccess::Read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u32, words: [u64; 3]) -> [u8; MSG_BYTES] {
        let mut message = [0; MSG_BYTES];
        message[0] = u8::try_from(kind).unwrap();
        for (place, word) in message[8..].chunks_mut(8).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        message
    }

    #[test]
    fn the_most_telling_flag_decides() {
        let [write, wp, minor] =
            [raw::UFFD_PAGEFAULT_FLAG_WRITE, raw::UFFD_PAGEFAULT_FLAG_WP, raw::UFFD_PAGEFAULT_FLAG_MINOR]
                .map(u64::from);
        assert_eq!(access(0), FaultAccess::Read);
        assert_eq!(access(write), FaultAccess::Write);
        assert_eq!(access(write | wp), FaultAccess::WriteProtect);
        assert_eq!(access(write | minor), FaultAccess::Minor);
    }

    #[test]
    fn messages_of_unknown_kinds_are_skipped() {
        let unknown = message(99, [1, 2, 3]);
        let unmap = message(raw::UFFD_EVENT_UNMAP, [0x1000, 0x3000, 0]);
        let messages = [unknown, unmap];
        let mut events = Events { rest: messages.iter() };
        assert!(matches!(events.next(), Some(Event::Unmap(AddrRange { start: 0x1000, end: 0x3000 }))));
        assert!(events.next().is_none());
    }
}
