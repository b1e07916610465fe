//! Duplicates: a page stays in system memory, and devices hold copies of it, as long as everybody only reads.
//!
//! ```text
//!     driver:  engine.write_protect(range)                 pages that can be are write-protected for the CPU now
//!       again: seq = notifier.read_begin()
//!              engine.range_fault(.., seq, ..)             Pfn::protected: its bytes do not change
//!              copies such pages, from their own addresses
//!              notifier.install(seq, entries)              Err(Collided) => free the copies, goto again
//!              (Who ignores its own changes does nothing of that while one of them is under way.)
//!
//!     CPU writes to such a page:                           the kernel holds the thread, and tells us
//!              invalidate                                  every driver drops its copy
//!              protection is lifted, the thread goes on
//! ```
//!
//! The kernel's page table is the only record of what is protected, and a driver's page table the only record of its
//! copies: the engine keeps no state for them, and a page has as many copies as there are devices that read it. All
//! that ends them is a change like others: it invalidates first (I2). A page that is evicted, migrates, is discarded or
//! moves loses its protection and its copies at once, without anything being copied back: the system's page has the bytes.
//!
//! # Why no write is missed (I3)
//!
//! - A page is protected on its way home from staging, by one call of the kernel that makes the page and its protection. It
//!   was taken out before, which the kernel refuses for a page that somebody has pinned to write to it without the page
//!   table: a read of `O_DIRECT` in flight, a registered buffer. Pinned later, it is written to first, as far as the
//!   kernel is concerned, and so told of. System calls that write to it are told of as threads are.
//! - A driver believes the protection only where the page's state says that it is the system's. A page that is being
//!   discarded is not, from when its drivers were told on; one that is touched again before the kernel has dropped it is not
//!   protected before drivers [settle](Engine::settle).
//! - A page that a fork shares is another process's, too: each has its own mapping of it, and its own protection.

use crate::addr::{PageRange, Vpn};
use crate::driver::{Select, SetupError};
use crate::engine::Engine;
use crate::fault::Outcome;
use crate::kernel::{Kernel, Stop};
use crate::notifier::{Cause, Change, Owner};

/// Pages around a write whose protection is lifted together, a power of two: 64 KiB.
const LIFT_PAGES: u64 = 16;

impl<K: Kernel> Engine<K> {
    /// Write-protects pages of a range that are in system memory, so that a driver may hold copies of them; pages in
    /// staging come home for it. What cannot be protected stays as it is: a range fault tells
    /// ([`Pfn::protected`](crate::mirror::Pfn)). It is a change of the range, also for who has asked for it. See the rules of
    /// [`driver`](crate::driver) for the calling thread.
    ///
    /// # Errors
    /// As [`migrate_setup`](Self::migrate_setup).
    pub fn write_protect(&self, range: PageRange, owner: Owner) -> Result<(), SetupError> {
        if self.discards.touch(range) {
            // What was touched again since may be what the kernel is about to drop: a copy would outlive it.
            return Ok(());
        }
        // Not as a migration of the driver's own: in between the CPU may write, so its own copies go, too.
        let change = Change { range, cause: Cause::Clear, owner: None };
        let mut migration = self.collect(Select::SYSTEM | Select::KEEP_EXCLUSIVE, owner, change)?;
        migration.come_home_protected();
        Ok(())
    }

    /// Serves a write to a page that is write-protected: drivers drop their copies, then the writer goes on.
    pub fn write_fault(&self, page: Vpn) -> Outcome {
        let extent = self.kernel.extent(page);
        let around = PageRange::new(Vpn(page.0 & !(LIFT_PAGES - 1)), LIFT_PAGES);
        let one = PageRange::new(page, 1);
        let range = if extent.contains(page) { around.intersect(extent) } else { one };
        let change = self.notifiers.invalidate(Change { range, cause: Cause::Clear, owner: None });
        let gate = self.gate();
        let block = self.table.block(page.block());
        let states = block.lock();
        let mut stop = self.kernel.unprotect(range);
        if stop == Some(Stop::Unsuited) {
            // What we take for one mapping is not.
            stop = self.kernel.unprotect(one);
        }
        drop(states);
        drop(gate);
        drop(change);
        match stop {
            None => Outcome::Done,
            Some(Stop::Unsuited) => {
                // Not registered any more, and so not protected.
                self.kernel.wake(one);
                Outcome::Done
            }
            Some(stop) => self.stopped(page, stop),
        }
    }
}
