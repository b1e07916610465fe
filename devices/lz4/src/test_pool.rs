//! A pool whose memory a test can look into.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::pool::{Mapped, PoolMemory};

/// The pool.
#[derive(Debug)]
pub(crate) struct ProbedPool(Arc<Mapped>);

/// The test's view of it. It keeps the memory alive.
#[derive(Debug)]
pub(crate) struct Probe(Arc<Mapped>);

impl ProbedPool {
    pub(crate) fn new(len_bytes: usize) -> (Self, Probe) {
        let memory = Arc::new(Mapped::new(len_bytes).unwrap());
        (Self(Arc::clone(&memory)), Probe(memory))
    }
}

// SAFETY: as for the memory inside. The probe changes bytes only while the device is idle (contract of `flip`).
unsafe impl PoolMemory for ProbedPool {
    fn base(&self) -> NonNull<u8> {
        self.0.base()
    }

    fn len_bytes(&self) -> usize {
        self.0.len_bytes()
    }

    fn release(&self, offset: usize, len: usize) {
        self.0.release(offset, len);
    }
}

impl Probe {
    /// What the system says is resident, in bytes.
    pub(crate) fn resident_bytes(&self) -> usize {
        let first_page = self.0.base().addr().get() as u64 / 4096;
        let mut entries = vec![0; self.0.len_bytes() / 4096 * 8];
        File::open("/proc/self/pagemap").unwrap().read_exact_at(&mut entries, first_page * 8).unwrap();
        entries.chunks_exact(8).filter(|entry| entry[7] & 0x80 != 0).count() * 4096
    }

    /// Changes a byte behind the device's back, if it is in use; says whether. No call to the device may be running.
    pub(crate) fn flip(&self, offset: usize) -> bool {
        assert!(offset < self.0.len_bytes());
        // SAFETY: inside the memory, which lives as long as `self`.
        let byte = unsafe { self.0.base().add(offset) };
        // SAFETY: readable and writable, and nobody else uses it now (caller).
        let old = unsafe { byte.read() };
        if old != 0 {
            // SAFETY: as above.
            unsafe { byte.write(old ^ 0x5A) };
        }
        old != 0
    }
}
