//! Requests to files that the kernel carries out by itself (`io_submit(2)`), without threads for that in this process, as an
//! io_uring has.
//!
//! Only direct I/O is under way when [`submit`](Context::submit) returns; other requests are carried out by it. The context is the
//! address space's: the child of a fork has none (`EINVAL`), and may make one.

use std::os::fd::{AsRawFd, BorrowedFd};

use linux_raw_sys::general as raw;
use rustix::io::Errno;

use crate::sys::getpid;
use crate::syscall::syscall;

const READ: u16 = 0;
const WRITE: u16 = 1;

/// A request: `struct iocb` of `linux/aio_abi.h`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Request {
    data: u64,
    /// These two are swapped on machines of the other byte order, of which none is supported.
    key: u32,
    rw_flags: u32,
    opcode: u16,
    reqprio: i16,
    fildes: u32,
    buf: u64,
    nbytes: u64,
    offset: u64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

const _: () = assert!(size_of::<Request>() == 64, "as the kernel has it");

impl Request {
    fn new(
        number: u64,
        file: BorrowedFd<'_>,
        (place, len): (usize, usize),
        offset: u64,
        opcode: u16,
    ) -> Self {
        let fildes = file.as_raw_fd().unsigned_abs();
        Self {
            data: number,
            opcode,
            fildes,
            buf: place as u64,
            nbytes: len as u64,
            offset,
            ..Self::default()
        }
    }

    /// Reads from the file at `offset`. Its end has the number.
    pub fn read(number: u64, file: BorrowedFd<'_>, bytes: &mut [u8], offset: u64) -> Self {
        Self::new(number, file, (bytes.as_mut_ptr().expose_provenance(), bytes.len()), offset, READ)
    }

    /// Writes to the file at `offset`. Its end has the number.
    pub fn write(number: u64, file: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> Self {
        Self::new(number, file, (bytes.as_ptr().expose_provenance(), bytes.len()), offset, WRITE)
    }
}

/// A request that has ended: `struct io_event`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct End {
    data: u64,
    _request: u64,
    result: i64,
    _more: i64,
}

impl End {
    /// The number of the request.
    pub const fn number(&self) -> u64 {
        self.data
    }

    /// Bytes that were transferred.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn result(&self) -> Result<usize, Errno> {
        usize::try_from(self.result)
            .map_err(|_| Errno::from_raw_os_error(i32::try_from(-self.result).unwrap_or(0)))
    }
}

/// Where requests are under way.
#[derive(Debug)]
pub struct Context {
    id: usize,
    /// The process that made it.
    owner: i32,
}

impl Context {
    /// One with room for so many requests.
    ///
    /// # Errors
    /// `EAGAIN`: there would be more in the system than `/proc/sys/fs/aio-max-nr`. `ENOSYS`: a kernel without. `ENOMEM`.
    pub fn new(nr_requests: u32) -> Result<Self, Errno> {
        let mut id = 0usize;
        let place = std::ptr::from_mut(&mut id).expose_provenance();
        // SAFETY: writes a word to the place given.
        unsafe { syscall(raw::__NR_io_setup, [nr_requests as usize, place, 0, 0, 0]) }?;
        Ok(Self { id, owner: getpid() })
    }

    /// Whether it is this process's, and not that of a parent.
    pub fn is_ours(&self) -> bool {
        self.owner == getpid()
    }

    /// Gives requests to the kernel, and says how many it took, from the front.
    ///
    /// # Safety
    /// Each buffer is borrowed, and its file open, until the request has [ended](Self::wait), or none was taken.
    ///
    /// # Errors
    /// Why it did not take the first. `EINVAL`: also in the child of a fork.
    pub unsafe fn submit(&self, requests: &[Request]) -> Result<usize, Errno> {
        const MOST: usize = 64;
        let mut pointers = [std::ptr::null::<Request>(); MOST];
        let nr = requests.len().min(MOST);
        pointers.iter_mut().zip(requests).for_each(|(pointer, request)| *pointer = request);
        let place = pointers.as_ptr().expose_provenance();
        // SAFETY: the kernel copies the requests; their buffers are the caller's promise.
        unsafe { syscall(raw::__NR_io_submit, [self.id, nr, place, 0, 0]) }
    }

    /// Waits until a request has ended, and says how many have, of as many as there is room for.
    ///
    /// # Errors
    /// `EINTR`: a signal came. `EINVAL`: in the child of a fork.
    pub fn wait(&self, ends: &mut [End]) -> Result<usize, Errno> {
        let place = ends.as_mut_ptr().expose_provenance();
        // SAFETY: writes as many ends as there is room for; no time is given.
        unsafe { syscall(raw::__NR_io_getevents, [self.id, 1, ends.len(), place, 0]) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // The number of a parent's may be that of one of ours.
        if self.is_ours() {
            // SAFETY: waits for what is under way.
            let _ = unsafe { syscall(raw::__NR_io_destroy, [self.id, 0, 0, 0, 0]) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let name = std::env::temp_dir().join(format!("hmm-aio-{}", std::process::id()));
        let file =
            std::fs::File::options().read(true).write(true).create_new(true).open(&name).expect("a file");
        std::fs::remove_file(&name).expect("it is there");
        let context = Context::new(8).expect("a context");
        let wait_for = |nr: usize| {
            let mut seen = vec![];
            while seen.len() < nr {
                let mut ends = [End::default(); 8];
                let nr_ended = context.wait(&mut ends).expect("something is under way");
                seen.extend(ends[..nr_ended].iter().map(|end| (end.number(), end.result())));
            }
            seen.sort_by_key(|(number, _)| *number);
            seen
        };
        let (one, two) = ([1u8; 512], [2u8; 512]);
        let requests = [Request::write(5, file.as_fd(), &one, 0), Request::write(6, file.as_fd(), &two, 512)];
        // SAFETY: the buffers and the file are there until both have ended.
        assert_eq!(unsafe { context.submit(&requests) }, Ok(2));
        assert_eq!(wait_for(2), [(5, Ok(512)), (6, Ok(512))]);
        let mut back = [0u8; 1024];
        let requests = [Request::read(7, file.as_fd(), &mut back, 0)];
        // SAFETY: as above.
        assert_eq!(unsafe { context.submit(&requests) }, Ok(1));
        assert_eq!(wait_for(1), [(7, Ok(1024))]);
        assert_eq!((back[..512] == one, back[512..] == two), (true, true));
        let nowhere = [Request::read(8, std::io::stdin().as_fd(), &mut back, 0)];
        // SAFETY: as above. What standard input is does not matter.
        match unsafe { context.submit(&nowhere) } {
            Ok(nr) => assert_eq!((nr, wait_for(1).len()), (1, 1)),
            Err(why) => assert!(matches!(why, Errno::INVAL | Errno::BADF | Errno::SPIPE), "{why}"),
        }
    }

    /// By system calls alone: other threads of the tests may have held locks.
    #[test]
    fn the_child_of_a_fork_has_none_and_may_make_one() {
        let file = std::fs::File::open("/dev/zero").expect("it is there");
        let context = Context::new(8).expect("a context");
        // SAFETY: the child makes system calls on its own memory, and ends.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let mut bytes = [1u8; 512];
            let mut submitted = |context: &Context| {
                let request = [Request::read(1, file.as_fd(), &mut bytes, 0)];
                // SAFETY: the buffer is there until the process ends, which waits for it.
                unsafe { context.submit(&request) }
            };
            let is_refused = !context.is_ours() && submitted(&context) == Err(Errno::INVAL);
            let is_well =
                is_refused && Context::new(8).is_ok_and(|own| own.is_ours() && submitted(&own) == Ok(1));
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(!is_well)) };
        }
        let mut status = 0;
        // SAFETY: a child of ours.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert_eq!((status, context.is_ours()), (0, true));
    }
}
