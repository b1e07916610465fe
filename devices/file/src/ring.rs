//! All requests of a batch at once, by io_uring.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::io::Errno;

use crate::transfer::{BATCH, Buffer, Request, Requests};

/// Threads that are in the kernel at the same time.
const NR_RINGS: usize = 4;

/// Rings for several threads.
pub(crate) struct Rings([Mutex<Ring>; NR_RINGS]);

struct Ring {
    ring: IoUring,
    /// The kernel refused to take requests, which it must not; some may be left in the queue, and must stay there.
    broken: bool,
}

impl std::fmt::Debug for Rings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rings").finish_non_exhaustive()
    }
}

impl Rings {
    /// `None` where the kernel has none for us.
    pub(crate) fn new() -> Option<Self> {
        let ring = || {
            let ring = IoUring::new(u32::try_from(BATCH).ok()?).ok()?;
            Some(Mutex::new(Ring { ring, broken: false }))
        };
        Some(Self([ring()?, ring()?, ring()?, ring()?]))
    }

    /// Tries each request once.
    pub(crate) fn try_all(&self, file: BorrowedFd<'_>, requests: &mut Requests<'_>) {
        self.one().try_all(file, requests);
    }

    /// A ring that nobody uses, or the first.
    fn one(&self) -> MutexGuard<'_, Ring> {
        for ring in &self.0 {
            match ring.try_lock() {
                Ok(ring) => return ring,
                Err(TryLockError::Poisoned(ring)) => return ring.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        self.0[0].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    /// Returns when the kernel is done with the buffers of all requests. Those of a broken ring are not tried.
    fn try_all(&mut self, file: BorrowedFd<'_>, requests: &mut Requests<'_>) {
        if self.broken {
            return;
        }
        let mut left = self.push(file, requests);
        while left > 0 {
            if self.broken {
                // What the kernel has taken it ends without us.
                std::thread::yield_now();
            } else if let Err(error) = self.ring.submit_and_wait(1)
                && !matches!(Errno::from_io_error(&error), Some(Errno::INTR | Errno::AGAIN | Errno::BUSY))
            {
                self.broken = true;
                left -= self.ring.submission().len();
            }
            left -= self.reap(requests);
        }
    }

    /// Puts them into the queue, and returns how many.
    fn push(&mut self, file: BorrowedFd<'_>, requests: &mut Requests<'_>) -> usize {
        let mut queue = self.ring.submission();
        for (index, request) in requests.iter_mut().enumerate() {
            let entry = entry(file, request).user_data(index as u64);
            // SAFETY: the buffer is borrowed for as long as `requests` is, and `try_all` does not return before the
            // kernel has ended every request that it took; the file is open as long. Where it took none, `broken` keeps
            // the queue from being submitted ever again.
            let pushed = unsafe { queue.push(&entry) };
            if pushed.is_err() {
                // The queue has room for a batch, and is empty between calls: what does not fit is not tried.
                return index;
            }
        }
        requests.len()
    }

    /// Takes what is done, and returns how many.
    fn reap(&mut self, requests: &mut Requests<'_>) -> usize {
        let mut nr_done = 0;
        for done in self.ring.completion() {
            let result = done.result();
            let moved =
                usize::try_from(result).map_err(|_| Errno::from_raw_os_error(result.saturating_neg()));
            if let Some(request) =
                usize::try_from(done.user_data()).ok().and_then(|index| requests.get(index))
            {
                request.note(moved);
            }
            nr_done += 1;
        }
        nr_done
    }
}

fn entry(file: BorrowedFd<'_>, request: &mut Request<'_>) -> squeue::Entry {
    let fd = types::Fd(file.as_raw_fd());
    let len = u32::try_from(request.buffer.len()).unwrap_or(0);
    match &mut request.buffer {
        Buffer::Read(bytes) => opcode::Read::new(fd, bytes.as_mut_ptr(), len).offset(request.offset).build(),
        Buffer::Write(bytes) => opcode::Write::new(fd, bytes.as_ptr(), len).offset(request.offset).build(),
    }
}
