//! Where this library's thread-locals are described, for its own threads: a panic counts itself there before it is told.

use std::sync::OnceLock;

use hmm::loaded;
use hmm::uapi::AddrRange;
use hmm::uapi::thread::Locals;

/// Looked for once, by the program's first thread: the dynamic linker's locks are the program's.
static OWN: OnceLock<Option<Locals>> = OnceLock::new();

/// Those of this library, if there is room for them.
pub(crate) fn own() -> Option<Locals> {
    *OWN.get_or_init(find)
}

fn find() -> Option<Locals> {
    let here = (find as *const ()).addr() as u64;
    let mut found = None;
    loaded::any(|file| {
        let is_here = file.parts(libc::PT_LOAD).any(|(part, _)| part.contains(here));
        if is_here {
            let mut parts = file.parts(libc::PT_TLS);
            found = parts.next().and_then(|(part, header)| locals(file.module, part, header));
        }
        is_here
    });
    found.filter(Locals::fit)
}

/// What the header says of thread-locals. `None`: something that libc would have to arrange.
fn locals(module: usize, part: AddrRange, header: &libc::Elf64_Phdr) -> Option<Locals> {
    let size = |bytes: u64| usize::try_from(bytes).ok();
    let (filled, len, align) = (size(header.p_filesz)?, size(header.p_memsz)?, size(header.p_align)?.max(1));
    let image = std::ptr::with_exposed_provenance::<u8>(size(part.start)?);
    // SAFETY: the first values are read-only in this library, which is never unloaded.
    let image = unsafe { std::slice::from_raw_parts(image, filled) };
    image.as_ptr().addr().is_multiple_of(align).then_some(Locals { module, image, len, align })
}
