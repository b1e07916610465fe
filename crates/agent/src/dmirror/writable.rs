//! Mappings that may only be read, made writable for the time of a migration.
//!
//! The kernel moves pages out of writable mappings only. So a read-only one is made writable, and back again. Meanwhile a
//! write of the program's that should have raised SIGSEGV would succeed: there is no better way, and no program that is
//! right does so. What it does to the mapping itself waits ([`Still`]).

use hmm::core::addr::PageRange;
use hmm::runtime::Runtime;
use hmm::uapi::maps::{Perms, Vma};

use crate::announce::Still;

/// Times that a change of the program's is waited for, by giving the CPU away.
const MAX_WAITS: usize = 10_000;

/// A range inside one mapping that was made writable, until this is dropped.
pub(super) struct Writable {
    runtime: &'static Runtime,
    range: PageRange,
    perms: Perms,
    /// Given up when the protection is what it was.
    _still: Still,
}

impl Writable {
    /// Makes the range writable if it is memory that can be managed and may only be read, and nobody is changing it.
    pub(super) fn make(runtime: &'static Runtime, range: PageRange) -> Option<Self> {
        let still = (0..MAX_WAITS).find_map(|_| {
            let still = Still::hold(range);
            if still.is_none() {
                std::thread::yield_now();
            }
            still
        })?;
        let vma = vma(runtime, range).filter(hmm::adopt::is_manageable)?;
        let is_read_only = vma.perms.contains(Perms::READ) && !vma.perms.contains(Perms::WRITE);
        if !is_read_only {
            return None;
        }
        let this = Self { runtime, range, perms: vma.perms, _still: still };
        this.protect(vma.perms | Perms::WRITE).then_some(this)
    }

    /// Whether the program may write to the range now.
    pub(super) fn is_now(runtime: &Runtime, range: PageRange) -> bool {
        vma(runtime, range).is_some_and(|vma| vma.perms.contains(Perms::WRITE))
    }

    fn protect(&self, perms: Perms) -> bool {
        let (start, end) = (self.range.start.addr(), self.range.end.addr());
        let _ = self.runtime;
        // SAFETY: more access than before breaks nothing, and what was there before is given back.
        unsafe { hmm::uapi::sys::mprotect(hmm::uapi::AddrRange { start, end }, perms) }.is_ok()
    }
}

impl Drop for Writable {
    fn drop(&mut self) {
        // If the program has changed the mapping by a system call of its own meanwhile, its own protection counts.
        if vma(self.runtime, self.range).is_some_and(|vma| vma.perms == self.perms | Perms::WRITE) {
            self.protect(self.perms);
        }
    }
}

fn vma(runtime: &Runtime, range: PageRange) -> Option<Vma> {
    let vma = runtime.engine().kernel().maps().next_vma(range.start.addr()).ok()??;
    (vma.start <= range.start.addr() && range.end.addr() <= vma.end).then_some(vma)
}
