//! Memory that is set aside: charged, and used for nothing yet.
//!
//! For what becomes resident without a fault that could be held back. It is charged to a share of its own, which whoever
//! comes to own the memory takes over as it is.

use crate::engine::Engine;
use crate::kernel::Kernel;
use crate::ledger::Share;
use crate::staging::{Left, Surplus, Which};

impl<K: Kernel> Engine<K> {
    /// Sets up to so many pages aside in `share`, as far as memory is free. Returns how many.
    pub fn set_aside(&self, share: Share<'_>, pages: u64) -> u64 {
        let mut got = 0;
        loop {
            let free = (pages - got).min(share.free());
            // Somebody else may be faster.
            if free > 0 && share.try_charge(free) {
                got += free;
            }
            if got == pages {
                return got;
            }
            let Some(stock) = self.staging.take_surplus(Which::Most) else { return got };
            got += self.hand_over(stock, share, pages - got);
        }
    }

    /// Gives memory back to the system, and what was charged for it to that share, up to so many pages. It is never free in
    /// between: others, who are as short of memory, would take it, and who sets aside would take out all that it has for them.
    fn hand_over(&self, surplus: Surplus, share: Share<'_>, at_most: u64) -> u64 {
        let handed = at_most.min(surplus.nr_pages as u64);
        self.kernel.release(surplus.run);
        self.staging.put(surplus.run, Left::Nothing);
        // For a moment it is charged twice.
        share.charge_shared(handed);
        self.uncharge(surplus.nr_pages);
        handed
    }
}
