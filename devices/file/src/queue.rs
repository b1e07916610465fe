//! How several requests are given to the kernel at once: by an io_uring, or by `io_submit`, which has no threads of its own in
//! this process. A lane has one to itself.

use hmm_uapi::aio::{Context, End, Request as AioRequest};
use io_uring::{IoUring, opcode, squeue, types};
use rustix::fd::AsRawFd;
use rustix::io::Errno;

use crate::transfer::{BATCH, Buffer, Request, Requests};

/// Bytes of what was compressed that are read by one request: what it has brought is made use of while others are under way.
const READ_BYTES: usize = 96 << 10;

/// See the module.
pub(crate) enum Queue {
    Uring {
        ring: Box<IoUring>,
        /// The kernel refused to take requests, which it must not; some may be left in the queue, and must stay there.
        broken: bool,
    },
    /// Made when it is first needed, and anew in the child of a fork: of all contexts in the system there are not many.
    Aio(Option<Context>),
    /// There is none: requests are made one after the other, as they are awaited.
    None,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Uring { .. } => "Uring",
            Self::Aio(_) => "Aio",
            Self::None => "None",
        })
    }
}

impl Queue {
    /// By io_uring, if the kernel has one for us.
    pub(crate) fn uring() -> Self {
        let ring = u32::try_from(BATCH).ok().and_then(|entries| IoUring::new(entries).ok());
        ring.map_or(Self::None, |ring| Self::Uring { ring: Box::new(ring), broken: false })
    }

    /// Bytes that a read should have at most, as far as its parts can be used alone.
    pub(crate) const fn read_bytes(&self) -> usize {
        match self {
            Self::Uring { .. } | Self::Aio(_) => READ_BYTES,
            Self::None => usize::MAX,
        }
    }

    /// Gives requests to the kernel. Those that it takes [are out](Request::is_out); their number is returned.
    ///
    /// # Safety
    /// All of their buffers stay borrowed, and their files open, until as many have been [reaped](Self::reap).
    pub(crate) unsafe fn submit(&mut self, requests: &mut Requests<'_>) -> usize {
        let nr_taken = match self {
            Self::Uring { broken: true, .. } | Self::None => 0,
            Self::Uring { ring, broken } => {
                // SAFETY: the caller's promise.
                let nr_pushed = unsafe { push(ring, requests) };
                while !*broken && !ring.submission().is_empty() {
                    *broken = submit(ring, 0).is_err();
                }
                nr_pushed - ring.submission().len()
            }
            Self::Aio(context) => {
                if context.as_ref().is_none_or(|context| !context.is_ours()) {
                    *context = u32::try_from(BATCH).ok().and_then(|entries| Context::new(entries).ok());
                }
                // There is no room in the system, or the kernel does not allow it.
                let Some(context) = context else {
                    *self = Self::None;
                    return 0;
                };
                let mut entries = [AioRequest::default(); BATCH];
                let nr_entries = requests.len();
                for (number, (entry, request)) in (0..).zip(entries.iter_mut().zip(requests.iter_mut())) {
                    *entry = match &mut request.buffer {
                        Buffer::Read(bytes) => AioRequest::read(number, request.file, bytes, request.offset),
                        Buffer::Write(bytes) => {
                            AioRequest::write(number, request.file, bytes, request.offset)
                        }
                    };
                }
                // SAFETY: the caller's promise.
                unsafe { context.submit(&entries[..nr_entries]) }.unwrap_or(0)
            }
        };
        requests.iter_mut().take(nr_taken).for_each(|request| request.is_out = true);
        nr_taken
    }

    /// Waits until a request that is out has ended, and returns how many have: at least one, if any is out.
    pub(crate) fn reap(&mut self, requests: &mut Requests<'_>) -> usize {
        match self {
            Self::Uring { ring, broken } => {
                if *broken || submit(ring, 1).is_err() {
                    // What the kernel has taken it ends without us.
                    std::thread::yield_now();
                }
                let ended = ring.completion().map(|end| (end.user_data(), result(end.result())));
                ended.map(|(number, moved)| requests.ended(number, moved)).count()
            }
            Self::Aio(None) => 0,
            Self::Aio(Some(context)) => {
                let mut ends = [End::default(); BATCH];
                // Interrupted, if not more.
                let nr_ended = context.wait(&mut ends).unwrap_or(0);
                ends[..nr_ended].iter().for_each(|end| requests.ended(end.number(), end.result()));
                nr_ended
            }
            Self::None => 0,
        }
    }
}

/// Puts requests into the ring, and returns how many.
///
/// # Safety
/// As of [`Queue::submit`].
unsafe fn push(ring: &mut IoUring, requests: &mut Requests<'_>) -> usize {
    let mut queue = ring.submission();
    for (index, request) in requests.iter_mut().enumerate() {
        let entry = entry(request).user_data(index as u64);
        // SAFETY: the caller's promise. Where the kernel takes none, `broken` keeps the queue from being submitted ever again.
        let pushed = unsafe { queue.push(&entry) };
        if pushed.is_err() {
            // There is room for a batch, and the queue is empty between calls: what does not fit is not tried.
            return index;
        }
    }
    requests.len()
}

/// Has the kernel take what is in the ring, and waits for as many to end.
fn submit(ring: &IoUring, nr_ended: usize) -> Result<(), Errno> {
    loop {
        match ring.submit_and_wait(nr_ended) {
            Ok(_) => return Ok(()),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::INTR | Errno::AGAIN | Errno::BUSY) => {}
                why => return Err(why.unwrap_or(Errno::IO)),
            },
        }
    }
}

fn result(result: i32) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| Errno::from_raw_os_error(result.saturating_neg()))
}

fn entry(request: &mut Request<'_>) -> squeue::Entry {
    let fd = types::Fd(request.file.as_raw_fd());
    let len = u32::try_from(request.buffer.len()).unwrap_or(0);
    match &mut request.buffer {
        Buffer::Read(bytes) => opcode::Read::new(fd, bytes.as_mut_ptr(), len).offset(request.offset).build(),
        Buffer::Write(bytes) => opcode::Write::new(fd, bytes.as_ptr(), len).offset(request.offset).build(),
    }
}
