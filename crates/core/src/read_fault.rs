//! Reads of holes in an address space that is only mirrored: they get the zero page, as they would without us.

use std::sync::atomic::Ordering;

use crate::addr::Vpn;
use crate::engine::Engine;
use crate::fault::Outcome;
use crate::kernel::Kernel;
use crate::state::PageState;
use crate::table::covers;

impl<K: Kernel> Engine<K> {
    /// Serves a fault at `page` that was a read. As [`fault`](Self::fault), but for holes where
    /// [`Config::zero_page`](crate::Config::zero_page) is set.
    pub fn read_fault(&self, page: Vpn) -> Outcome {
        self.read_fault_with(page, &|| {})
    }

    /// The same, with `help` as of [`fault_with`](Self::fault_with).
    pub fn read_fault_with(&self, page: Vpn, help: &dyn Fn()) -> Outcome {
        if self.config.zero_page && covers(page) && self.map_zero_page(page) {
            Outcome::Done
        } else {
            self.fault_with(page, help)
        }
    }

    /// Whether the page was a hole, and could be given the zero page.
    fn map_zero_page(&self, page: Vpn) -> bool {
        let _gate = self.gate();
        let mut states = self.table.block(page.block()).lock();
        if states.get(page.index()) != PageState::None
            || self.kernel.extent(page).is_empty()
            || !self.try_charge(1)
        {
            return false;
        }
        let mapped = self.kernel.zero_page_home(page).stop.is_none();
        if mapped {
            states.set(page.index(), PageState::System { copy: None });
            self.note_resident(page.block(), &mut states);
            self.stats().pgzero.fetch_add(1, Ordering::Relaxed);
        } else {
            self.uncharge(1);
        }
        mapped
    }
}
