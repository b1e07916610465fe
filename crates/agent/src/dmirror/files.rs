//! Private mappings of files, whose pages shall migrate.
//!
//! In the kernel a page of such a mapping becomes anonymous when it is written to, and migrates then as any other. A
//! userfaultfd takes no such mapping of a file on a disk, and later nothing can take its place without a moment in which a
//! thread's write is lost. So the place is taken from the start: who maps a file privately and for writing gets anonymous
//! memory that the file has been read into. Whether he would see later changes of the file is unspecified (`mmap(2)`); here
//! he does not.

use std::ffi::{c_int, c_void};
use std::os::fd::BorrowedFd;

use rustix::fs::FileType;

/// Larger mappings are the kernel's, and do not migrate: reading them would take too long.
const MAX_BYTES: usize = 256 << 20;
/// `f_type` of files of huge pages, which are read and mapped in other units.
const HUGETLBFS: i64 = 0x9584_58f6;

/// Maps a file if it is to be mapped in this way; else, or if something is wrong, `None`: then the kernel shall say so.
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
    const WRITABLE: c_int = libc::PROT_READ | libc::PROT_WRITE;
    const OTHERS: c_int = libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE;
    let is_private = flags & libc::MAP_TYPE == libc::MAP_PRIVATE && flags & OTHERS == 0;
    if !is_private || prot != WRITABLE || fd < 0 || len > MAX_BYTES {
        return None;
    }
    // SAFETY: not -1. If the program closes it meanwhile, system calls say so.
    if !is_whole(unsafe { BorrowedFd::borrow_raw(fd) }, len, offset) {
        return None;
    }
    let flags = flags & !libc::MAP_POPULATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, where nothing is.
    let result = unsafe { libc::syscall(libc::SYS_mmap, addr, len, prot, flags, -1, 0_i64) };
    if result == -1 {
        return None;
    }
    let start = super::calls::address(result);
    crate::interpose::tell(start, len);
    if read(fd, start, len, offset) {
        return Some(std::ptr::with_exposed_provenance_mut(start));
    }
    // SAFETY: the mapping from above, which nobody has seen.
    unsafe { libc::syscall(libc::SYS_munmap, start, len) };
    None
}

/// Whether it is a file that has a byte for each page of the mapping: behind its end there is SIGBUS.
fn is_whole(file: BorrowedFd<'_>, len: usize, offset: i64) -> bool {
    let (Ok(status), Ok(system)) = (rustix::fs::fstat(file), rustix::fs::fstatfs(file)) else { return false };
    let page = hmm::core::addr::PAGE_SIZE as u64;
    let (Ok(size), Ok(offset)) = (u64::try_from(status.st_size), u64::try_from(offset)) else { return false };
    let end = offset.checked_add(len as u64);
    FileType::from_raw_mode(status.st_mode) == FileType::RegularFile
        && system.f_type != HUGETLBFS
        && len > 0
        && offset.is_multiple_of(page)
        && end.is_some_and(|end| end <= size.next_multiple_of(page))
}

/// Reads the file into the mapping, up to its end.
fn read(fd: c_int, start: usize, len: usize, offset: i64) -> bool {
    let mut done = 0;
    while done < len {
        let at = offset.saturating_add(i64::try_from(done).unwrap_or(i64::MAX));
        // SAFETY: the kernel writes to a mapping that is there and that nobody has seen.
        let more = unsafe { libc::syscall(libc::SYS_pread64, fd, start + done, len - done, at) };
        match usize::try_from(more) {
            Ok(0) => return true,
            Ok(more) => done += more,
            Err(_) => return false,
        }
    }
    true
}
