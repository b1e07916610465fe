//! Static data: the variables of the program and of its libraries, hmm's own among them.

use std::ffi::{c_int, c_void};

use hmm_uapi::AddrRange;

/// Whether a part of the range, which consists of pages, is of a file that the program was loaded from: what its header asks
/// for, and so also what lies behind the file's bytes because it is zero in the beginning, be it ever so long.
pub(crate) fn any_in(range: AddrRange) -> bool {
    let range = &raw const range;
    // SAFETY: the function expects what it is given, which lives until the last call has returned.
    unsafe { libc::dl_iterate_phdr(Some(is_of_file), range.cast_mut().cast()) != 0 }
}

/// Whether a part of the range is of one file; the walk ends where this is not zero.
///
/// # Safety
/// The file is loaded during the call, and `range` points to an [`AddrRange`].
unsafe extern "C" fn is_of_file(file: *mut libc::dl_phdr_info, _: usize, range: *mut c_void) -> c_int {
    // SAFETY: the loader's description of a loaded file.
    let file = unsafe { file.read() };
    // SAFETY: as the caller has promised.
    let range = unsafe { range.cast::<AddrRange>().read() };
    if file.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: so many headers the file has in memory.
    let headers = unsafe { std::slice::from_raw_parts(file.dlpi_phdr, usize::from(file.dlpi_phnum)) };
    let is_in = headers.iter().filter(|header| header.p_type == libc::PT_LOAD).any(|header| {
        let part = AddrRange::new(file.dlpi_addr.wrapping_add(header.p_vaddr), header.p_memsz);
        part.start < range.end && range.start < part.end
    });
    c_int::from(is_in)
}
