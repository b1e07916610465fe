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

/// New memory, all of it resident; its address.
pub(crate) fn map(nr_pages: usize) -> u64 {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let at = unsafe {
        libc::mmap(std::ptr::null_mut(), nr_pages * PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    };
    assert_ne!(at, libc::MAP_FAILED);
    at.expose_provenance() as u64
}

#[expect(clippy::cast_possible_truncation, reason = "addresses have 64 bits here")]
pub(crate) fn unmap(at: u64, nr_pages: usize) {
    // SAFETY: memory of the test's, that nobody holds references to.
    let result = unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(at as usize), nr_pages * PAGE) };
    assert_eq!(result, 0);
}
