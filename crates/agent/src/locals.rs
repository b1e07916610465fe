//! Where this library's thread-locals are described, for its own threads: a panic counts itself there before it is told.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use hmm::uapi::thread::Locals;

/// Looked for once, by the program's first thread: the dynamic linker's locks are the program's.
static OWN: OnceLock<Option<Locals>> = OnceLock::new();

/// Those of this library, if there is room for them.
pub(crate) fn own() -> Option<Locals> {
    *OWN.get_or_init(find)
}

fn find() -> Option<Locals> {
    let mut found: Option<Locals> = None;
    let place: *mut Option<Locals> = &raw mut found;
    // SAFETY: the function expects what it is given, which lives until the last call has returned.
    unsafe { libc::dl_iterate_phdr(Some(look), place.cast()) };
    found.filter(Locals::fit)
}

/// Whether a file is this library, which is described then.
///
/// # Safety
/// The file is loaded during the call, and `place` points to an `Option<Locals>`.
unsafe extern "C" fn look(file: *mut libc::dl_phdr_info, _: usize, place: *mut c_void) -> c_int {
    // SAFETY: the loader's description of a loaded file.
    let file = unsafe { file.read() };
    if file.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: so many headers the file has in memory.
    let headers = unsafe { std::slice::from_raw_parts(file.dlpi_phdr, usize::from(file.dlpi_phnum)) };
    let here = (find as *const ()).addr() as u64;
    let address = |header: &libc::Elf64_Phdr| file.dlpi_addr.wrapping_add(header.p_vaddr);
    let is_here =
        |header: &libc::Elf64_Phdr| here.checked_sub(address(header)).is_some_and(|at| at < header.p_memsz);
    if !headers.iter().any(|header| header.p_type == libc::PT_LOAD && is_here(header)) {
        return 0;
    }
    if let Some(header) = headers.iter().find(|header| header.p_type == libc::PT_TLS) {
        // SAFETY: as the caller has promised.
        unsafe { place.cast::<Option<Locals>>().write(locals(file.dlpi_tls_modid, address(header), header)) };
    }
    1
}

/// What the header says of thread-locals. `None`: something that libc would have to arrange.
fn locals(module: usize, address: u64, header: &libc::Elf64_Phdr) -> Option<Locals> {
    let size = |bytes: u64| usize::try_from(bytes).ok();
    let (filled, len, align) = (size(header.p_filesz)?, size(header.p_memsz)?, size(header.p_align)?.max(1));
    let image = std::ptr::with_exposed_provenance::<u8>(size(address)?);
    // SAFETY: the first values are read-only in this library, which is never unloaded.
    let image = unsafe { std::slice::from_raw_parts(image, filled) };
    image.as_ptr().addr().is_multiple_of(align).then_some(Locals { module, image, len, align })
}
