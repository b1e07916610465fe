//! Memory that is set aside: charged, and used for nothing yet.
//!
//! For what becomes resident without a fault that could be held back. Whoever sets memory aside also uncharges it, or
//! hands the charge over to the process that comes to own the memory.

use std::sync::atomic::Ordering;

use crate::engine::Engine;
use crate::kernel::Kernel;
use crate::staging::Which;

impl<K: Kernel> Engine<K> {
    /// Sets up to so many pages aside, as far as memory is free. Returns how many.
    pub fn reserve(&self, pages: u64) -> u64 {
        let mut got = 0;
        loop {
            let free = (pages - got).min(self.kernel.ledger().free());
            // Somebody else may be faster.
            if free > 0 && self.try_charge(usize::try_from(free).unwrap_or(usize::MAX)) {
                got += free;
            }
            if got == pages {
                return got;
            }
            let Some(stock) = self.staging.take_surplus(Which::Most) else { return got };
            self.release(stock);
        }
    }

    /// Gives back what was set aside.
    pub fn unreserve(&self, pages: u64) {
        self.uncharge(usize::try_from(pages).unwrap_or(usize::MAX));
    }

    /// What was set aside is another process's now, which counts it from here on.
    pub fn hand_over(&self, pages: u64) {
        self.stats().charged.fetch_sub(pages, Ordering::Relaxed);
    }

    /// The other side of [`hand_over`](Self::hand_over): so many pages that the ledger has charged count for us.
    pub fn take_over(&self, pages: u64) {
        self.stats().charged.fetch_add(pages, Ordering::Relaxed);
    }
}
