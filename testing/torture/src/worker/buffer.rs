//! A buffer that hmm does not manage, which is a file and a pipe as well: so that the kernel copies from and to memory.

use std::ffi::c_int;

use super::place::{Errno, PAGE, Place, done, last_errno};

/// Pages of a buffer.
pub(crate) const BUFFER_PAGES: usize = 512;
/// What a pipe takes at once.
const PIPE: usize = 16 * PAGE;

/// A buffer of a thread's. A child of a fork has to make its own: the bytes are shared.
#[derive(Debug)]
pub(crate) struct Buffer {
    file: c_int,
    pipe: [c_int; 2],
    bytes: Place,
}

/// The ways for the kernel to copy bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// `pread(2)` and `pwrite(2)`.
    File,
    /// `read(2)` and `write(2)`.
    Pipe,
    /// `preadv(2)` and `pwritev(2)`, in three parts.
    Parts,
    /// `process_vm_readv(2)` and `process_vm_writev(2)`.
    Process,
}

impl Buffer {
    /// A buffer of zeroes.
    pub(crate) fn new() -> Result<Self, Errno> {
        let len = BUFFER_PAGES * PAGE;
        // SAFETY: a file of our own.
        let file = unsafe { libc::memfd_create(c"torture-io".as_ptr(), libc::MFD_CLOEXEC) };
        done(file)?;
        // SAFETY: as above.
        done(unsafe { libc::ftruncate(file, libc::off_t::try_from(len).unwrap_or(libc::off_t::MAX)) })?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, file, 0) };
        if start == libc::MAP_FAILED {
            return Err(last_errno());
        }
        let mut pipe = [0; 2];
        // SAFETY: there is room for two.
        done(unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) })?;
        Ok(Self { file, pipe, bytes: Place::new(start.cast(), len) })
    }

    /// Its first bytes.
    pub(crate) fn bytes(&self, len: usize) -> Place {
        self.bytes.part(0, len)
    }

    /// What goes at once.
    pub(crate) const fn most(way: Way) -> usize {
        match way {
            Way::Pipe => PIPE,
            Way::File | Way::Parts | Way::Process => BUFFER_PAGES * PAGE,
        }
    }

    /// Has the kernel write the first bytes to memory.
    pub(crate) fn to(&self, memory: Place, way: Way) -> Result<usize, Errno> {
        let (parts, bytes) = (in_parts(memory), self.bytes(memory.len()));
        match way {
            // SAFETY: nobody has references to the memory.
            Way::File => done(unsafe { libc::pread(self.file, memory.start().cast(), memory.len(), 0) }),
            // SAFETY: as above.
            Way::Parts => done(unsafe { libc::preadv(self.file, parts.as_ptr(), 3, 0) }),
            Way::Pipe => {
                // SAFETY: the buffer's own bytes.
                done(unsafe { libc::write(self.pipe[1], bytes.start().cast(), bytes.len()) })?;
                // SAFETY: nobody has references to the memory.
                let read = done(unsafe { libc::read(self.pipe[0], memory.start().cast(), memory.len()) });
                self.drain(read.unwrap_or(0) < memory.len());
                read
            }
            Way::Process => process_vm(bytes, memory, own_pid(), true),
        }
    }

    /// Has the kernel read memory into the first bytes.
    pub(crate) fn of(&self, memory: Place, way: Way) -> Result<usize, Errno> {
        let (parts, bytes) = (in_parts(memory), self.bytes(memory.len()));
        match way {
            // SAFETY: mapped or not, the kernel looks.
            Way::File => done(unsafe { libc::pwrite(self.file, memory.start().cast(), memory.len(), 0) }),
            // SAFETY: as above.
            Way::Parts => done(unsafe { libc::pwritev(self.file, parts.as_ptr(), 3, 0) }),
            Way::Pipe => {
                // SAFETY: as above.
                let sent = done(unsafe { libc::write(self.pipe[1], memory.start().cast(), memory.len()) })?;
                // SAFETY: the buffer's own bytes.
                done(unsafe { libc::read(self.pipe[0], bytes.start().cast(), sent) })
            }
            Way::Process => process_vm(bytes, memory, own_pid(), false),
        }
    }

    /// Reads another process's memory into the first bytes.
    pub(crate) fn of_process(&self, memory: Place, pid: c_int) -> Result<usize, Errno> {
        process_vm(self.bytes(memory.len()), memory, pid, false)
    }

    fn drain(&self, is_left: bool) {
        if is_left {
            // SAFETY: the buffer's own bytes.
            let _drained = unsafe { libc::read(self.pipe[0], self.bytes.start().cast(), PIPE) };
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        for fd in [self.file, self.pipe[0], self.pipe[1]] {
            // SAFETY: they are ours.
            unsafe { libc::close(fd) };
        }
        let _gone = self.bytes.unmap();
    }
}

fn own_pid() -> c_int {
    // SAFETY: never fails.
    unsafe { libc::getpid() }
}

fn in_parts(memory: Place) -> [libc::iovec; 3] {
    let third = memory.len() / 3;
    [(0, third), (third, third), (2 * third, memory.len() - 2 * third)].map(|(at, len)| {
        let part = memory.part(at, len);
        libc::iovec { iov_base: part.start().cast(), iov_len: part.len() }
    })
}

/// `process_vm_writev(2)` or `process_vm_readv(2)`.
fn process_vm(local: Place, remote: Place, pid: c_int, writes: bool) -> Result<usize, Errno> {
    let iovec = |place: Place| libc::iovec { iov_base: place.start().cast(), iov_len: place.len() };
    let (local, remote) = ([iovec(local)], [iovec(remote)]);
    let call = if writes { libc::process_vm_writev } else { libc::process_vm_readv };
    // SAFETY: nobody has references to either.
    done(unsafe { call(pid, local.as_ptr(), 1, remote.as_ptr(), 1, 0) })
}
