//! What tests on the real kernel share.

use hmm::AddressSpace;
use hmm_soft::Soft;

pub(crate) const PAGE: usize = 4096;
const PATIENCE_SECONDS: u32 = 60;

pub(crate) fn space() -> AddressSpace {
    AddressSpace::builder().build().expect("an address space")
}

pub(crate) fn soft(space: &AddressSpace, nr_pages: usize) -> Soft {
    let builder = Soft::builder(space).expect("a builder");
    builder.memory(nr_pages * PAGE).build().expect("a device")
}

/// Runs a test, and has the kernel end the process if it does not come to its end: a thread of ours might have to wait for
/// the same as the test.
pub(crate) fn watched(test: impl FnOnce()) {
    // SAFETY: a system call without pointers. Tests that run at the same time begin the time anew.
    unsafe { libc::alarm(PATIENCE_SECONDS) };
    test();
}

/// New memory, all of it resident; its address. It lies between two pages that nobody may touch: a device takes what lies
/// beside, too, and that might be a sanitizer's own.
pub(crate) fn map(nr_pages: usize) -> u64 {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let len = (nr_pages + 2) * PAGE;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let place = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
    assert_ne!(place, libc::MAP_FAILED);
    let at = place.wrapping_byte_add(PAGE);
    // SAFETY: a part of it, which nobody knows of yet.
    assert_eq!(unsafe { libc::mprotect(at, nr_pages * PAGE, libc::PROT_READ | libc::PROT_WRITE) }, 0);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::madvise(at, nr_pages * PAGE, libc::MADV_POPULATE_WRITE) }, 0);
    at.expose_provenance() as u64
}

#[expect(clippy::cast_possible_truncation, reason = "addresses have 64 bits here")]
pub(crate) fn unmap(at: u64, nr_pages: usize) {
    // SAFETY: memory of the test's, that nobody holds references to.
    let result = unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(at as usize), nr_pages * PAGE) };
    assert_eq!(result, 0);
}
