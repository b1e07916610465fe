//! Swap areas: what they begin with, and how they are switched on and off.

use crate::data::PAGE_BYTES;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Before any other swap there is: `SWAP_FLAG_PREFER` with priority 100.
const SWAP_FLAGS: libc::c_int = 0x8000 | 100;

pub(super) const LABEL: &[u8; 16] = b"hmm-bench-swap\0\0";
const VERSION_OFFSET: usize = 1024;
const LAST_PAGE_OFFSET: usize = 1028;
pub(super) const LABEL_OFFSET: usize = 1052;
const MAGIC: &[u8; 10] = b"SWAPSPACE2";

/// First page of a swap area, as mkswap(8) would write it (Linux: `union swap_header`).
pub(super) fn header(nr_pages: u64) -> [u8; PAGE_BYTES] {
    let mut header = [0; PAGE_BYTES];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(VERSION_OFFSET, &1_u32.to_ne_bytes());
    let last_page = u32::try_from(nr_pages - 1).unwrap_or(u32::MAX);
    put(LAST_PAGE_OFFSET, &last_page.to_ne_bytes());
    put(LABEL_OFFSET, LABEL);
    put(PAGE_BYTES - MAGIC.len(), MAGIC);
    header
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Swaps there from now on.
pub(super) fn on(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: the path ends with a zero byte and outlives the call.
    let failed = unsafe { libc::swapon(path.as_ptr(), SWAP_FLAGS) };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Brings home what is there, and swaps there no more. One that is not in use is none the worse for it.
pub(super) fn off(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: the path ends with a zero byte and outlives the call.
    let failed = unsafe { libc::swapoff(path.as_ptr()) };
    let error = io::Error::last_os_error();
    // EINVAL: it is not in use as swap.
    if failed == 0 || error.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(error) }
}
