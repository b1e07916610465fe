//! Mapping a device: pages of zeroes, there from the start, which no driver can migrate.
//!
//! In the kernel each address gets a page of its own in a mapping of the special kind (`VM_MIXEDMAP`). Here it is a mapping
//! of a memory file with all of its pages: private ones are read-only until they are written to, as there. That it is
//! special is remembered by the file.
//!
//! What else is mapped is looked at by [`files`].

use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use hmm::uapi::Errno;
use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};

use super::calls::device_fd;
use super::files;
use crate::errno::failed;

/// Files whose mappings are special. When there are more, the oldest are forgotten.
const MAX_FILES: usize = 64;

/// Their inode numbers; 0 is none.
static FILES: [AtomicU64; MAX_FILES] = [const { AtomicU64::new(0) }; MAX_FILES];
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Whether a mapping of the file with this inode number, a memory file, is one of a device.
pub(super) fn is_special(inode: u64) -> bool {
    inode != 0 && FILES.iter().any(|file| file.load(Ordering::Relaxed) == inode)
}

/// Maps a device if the descriptor leads to one, or a file whose pages shall migrate; else `None`. The result is that of `mmap(2)`.
///
/// # Safety
/// As of `mmap(2)`.
pub(crate) unsafe fn map(
    addr: *mut c_void,
    len: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> Option<*mut c_void> {
    if flags & libc::MAP_ANONYMOUS != 0 {
        return None;
    }
    if device_fd(fd).is_none() {
        // SAFETY: the caller's promise.
        return unsafe { files::map(addr, len, prot, flags, fd, offset) };
    }
    let file = match file(len) {
        Ok(file) => file,
        Err(errno) => {
            let _: c_int = failed(errno);
            return Some(libc::MAP_FAILED);
        }
    };
    // SAFETY: the system call, with the caller's arguments but for the file.
    let result = unsafe { libc::syscall(libc::SYS_mmap, addr, len, prot, flags, file.as_raw_fd(), 0_i64) };
    let start: *mut c_void = std::ptr::with_exposed_provenance_mut(super::calls::address(result));
    if start != libc::MAP_FAILED {
        // Without the right to read nothing can be there yet, and nothing is.
        // SAFETY: the new mapping, of which pages are read.
        unsafe { libc::syscall(libc::SYS_madvise, start, len, libc::MADV_POPULATE_READ) };
    }
    Some(start)
}

fn file(len: usize) -> Result<OwnedFd, Errno> {
    let file = memfd_create(c"hmm_dmirror", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, len as u64)?;
    let place = usize::try_from(NEXT.fetch_add(1, Ordering::Relaxed)).unwrap_or(0) % MAX_FILES;
    FILES[place].store(fstat(&file)?.st_ino, Ordering::Relaxed);
    Ok(file)
}
