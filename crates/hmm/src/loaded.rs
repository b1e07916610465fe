//! The files that the program was loaded from, as the dynamic linker describes them.

use std::ffi::{c_int, c_void};

use hmm_uapi::AddrRange;

/// One of them: the program, or a library.
#[derive(Clone, Copy, Debug)]
pub struct Loaded<'a> {
    base: u64,
    headers: &'a [libc::Elf64_Phdr],
    /// Its number among those that have thread-locals; 0: it has none.
    pub module: usize,
}

impl<'a> Loaded<'a> {
    /// Where its parts of a kind (`PT_LOAD`, ..) are, each with its header.
    pub fn parts(self, kind: u32) -> impl Iterator<Item = (AddrRange, &'a libc::Elf64_Phdr)> {
        let at = move |header: &libc::Elf64_Phdr| {
            AddrRange::new(self.base.wrapping_add(header.p_vaddr), header.p_memsz)
        };
        let is_wanted = move |header: &&libc::Elf64_Phdr| header.p_type == kind;
        self.headers.iter().filter(is_wanted).map(move |header| (at(header), header))
    }
}

/// Looks at all files until one is what is looked for; tells whether there was one. Holds the dynamic linker's lock meanwhile.
pub fn any(mut is_it: impl FnMut(Loaded<'_>) -> bool) -> bool {
    let mut is_it: &mut dyn FnMut(Loaded<'_>) -> bool = &mut is_it;
    let place: *mut &mut dyn FnMut(Loaded<'_>) -> bool = &raw mut is_it;
    // SAFETY: the function expects what it is given, which lives until the last call has returned.
    unsafe { libc::dl_iterate_phdr(Some(look), place.cast()) != 0 }
}

/// The walk ends where this is not zero.
///
/// # Safety
/// The file is loaded during the call, and `is_it` points to what [`any`] makes, which nobody else uses meanwhile.
unsafe extern "C" fn look(file: *mut libc::dl_phdr_info, _: usize, is_it: *mut c_void) -> c_int {
    // SAFETY: the loader's description of a loaded file.
    let file = unsafe { file.read() };
    // SAFETY: as the caller has promised.
    let is_it = unsafe { &mut *is_it.cast::<&mut dyn FnMut(Loaded<'_>) -> bool>() };
    if file.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: so many headers the file has in memory.
    let headers = unsafe { std::slice::from_raw_parts(file.dlpi_phdr, usize::from(file.dlpi_phnum)) };
    c_int::from(is_it(Loaded { base: file.dlpi_addr, headers, module: file.dlpi_tls_modid }))
}
