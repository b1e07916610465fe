//! Another process's memory, or this one's, copied by the kernel: an address that cannot be used is an error and not a
//! signal. Protections are respected as if the process itself accessed its memory.

use linux_raw_sys::general as raw;
use rustix::io::Errno;

use crate::sys::{IoVec, gettid};
use crate::syscall::syscall;

/// Copies memory of the process (or thread) `pid` at `addr`. All of `to` is filled if it succeeds.
///
/// # Errors
/// `EFAULT`: not all of it can be read. `ESRCH`: no such process. `EPERM`: it may not be looked into; Yama's
/// `ptrace_scope` plays a part in that.
pub fn read(pid: i32, addr: u64, to: &mut [u8]) -> Result<(), Errno> {
    let (start, len) = (to.as_mut_ptr().expose_provenance(), to.len());
    for_all(addr, len, |addr, done| {
        let local = IoVec::new(start + done, len - done);
        let remote = IoVec::new(addr, len - done);
        // SAFETY: the call writes to the rest of `to`, which is ours to write; what it reads it checks.
        unsafe { transfer(raw::__NR_process_vm_readv, pid, &local, &remote) }
    })
}

/// Copies memory of this process at `addr`, as [`read`] does, but by accesses as the CPU's. What `read` does to a page that is
/// shared with a child of a fork makes the kernel copy it.
///
/// # Errors
/// `EFAULT`: not all of it can be read.
pub fn read_own(addr: u64, to: &mut [u8]) -> Result<(), Errno> {
    let (start, len) = (to.as_mut_ptr().expose_provenance(), to.len());
    for_all(addr, len, |addr, done| {
        let local = IoVec::new(addr, len - done);
        let remote = IoVec::new(start + done, len - done);
        // SAFETY: the call writes to the rest of `to`, which is ours to write; what it reads it checks.
        unsafe { transfer(raw::__NR_process_vm_writev, gettid(), &local, &remote) }
    })
}

/// Copies `from` to the memory of the process (or thread) `pid` at `addr`. All of it if it succeeds.
///
/// # Safety
/// If the process is this one: the bytes there may change without breaking anybody's references.
///
/// # Errors
/// As for [`read`]; `EFAULT`: not all of it can be written.
pub unsafe fn write(pid: i32, addr: u64, from: &[u8]) -> Result<(), Errno> {
    let (start, len) = (from.as_ptr().expose_provenance(), from.len());
    for_all(addr, len, |addr, done| {
        let local = IoVec::new(start + done, len - done);
        let remote = IoVec::new(addr, len - done);
        // SAFETY: the call reads the rest of `from`; what it writes to is the caller's promise.
        unsafe { transfer(raw::__NR_process_vm_writev, pid, &local, &remote) }
    })
}

/// Goes on where a transfer stopped, until everything is done or nothing more can be.
fn for_all(
    addr: u64,
    len: usize,
    mut transfer: impl FnMut(usize, usize) -> Result<usize, Errno>,
) -> Result<(), Errno> {
    let addr = usize::try_from(addr).map_err(|_| Errno::FAULT)?;
    let mut done = 0;
    while done < len {
        match transfer(addr.checked_add(done).ok_or(Errno::FAULT)?, done)? {
            0 => return Err(Errno::FAULT),
            more => done += more,
        }
    }
    Ok(())
}

/// # Safety
/// `local` is memory that the call may read or write, and what it does to the process is sound.
unsafe fn transfer(nr: u32, pid: i32, local: &IoVec, remote: &IoVec) -> Result<usize, Errno> {
    let pid = usize::try_from(pid).map_err(|_| Errno::SRCH)?;
    let (local, remote) = (std::ptr::from_ref(local), std::ptr::from_ref(remote));
    // SAFETY: the call reads one struct of `iovec`'s layout from each; the rest is the caller's promise.
    unsafe { syscall(nr, [pid, local.expose_provenance(), 1, remote.expose_provenance(), 1]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mapping;

    #[test]
    fn bytes_come_and_go_and_wrong_addresses_are_errors() {
        let mapping = Mapping::anonymous(3 * 4096).expect("memory");
        let (start, pid) = (mapping.range().start, gettid());
        mapping.protect(2 * 4096, 4096).expect("it is ours");
        // SAFETY: nobody refers to the mapping.
        assert_eq!(unsafe { write(pid, start + 4000, &[7; 200]) }, Ok(()));
        let mut bytes = [0; 200];
        assert_eq!(read_own(start + 4000, &mut bytes), Ok(()));
        assert_eq!(bytes, [7; 200]);
        assert_eq!(read_own(start + 2 * 4096 - 100, &mut bytes), Err(Errno::FAULT), "its end cannot be read");
        bytes.fill(0);
        assert_eq!(read(pid, start + 4000, &mut bytes), Ok(()));
        assert_eq!(bytes, [7; 200]);
        assert_eq!(read(pid, start + 8100, &mut bytes), Err(Errno::FAULT), "the last bytes are protected");
        // SAFETY: as above.
        assert_eq!(unsafe { write(pid, start + 8100, &bytes) }, Err(Errno::FAULT));
        assert_eq!(read(pid, 0, &mut bytes), Err(Errno::FAULT));
        assert_eq!(read(pid, u64::MAX - 10, &mut bytes), Err(Errno::FAULT));
        assert_eq!(read(i32::MAX, start, &mut bytes), Err(Errno::SRCH));
    }
}
