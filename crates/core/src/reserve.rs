//! Memory that is set aside: charged, and used for nothing yet.
//!
//! For what becomes resident without a fault that could be held back. It is charged to a share of its own, which whoever
//! comes to own the memory takes over as it is.

use crate::engine::Engine;
use crate::kernel::Kernel;
use crate::ledger::Share;
use crate::staging::Which;

impl<K: Kernel> Engine<K> {
    /// Sets up to so many pages aside in `share`, as far as memory is free. Returns how many.
    pub fn set_aside(&self, share: Share<'_>, pages: u64) -> u64 {
        let mut got = 0;
        loop {
            let free = (pages - got).min(self.kernel.ledger().free());
            // Somebody else may be faster.
            if free > 0 && share.try_charge(free) {
                got += free;
            }
            if got == pages {
                return got;
            }
            let Some(stock) = self.staging.take_surplus(Which::Most) else { return got };
            self.release(stock);
        }
    }
}
