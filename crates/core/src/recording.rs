//! Telling the kernel door what happens, if it wants to know.

use crate::addr::{PageRange, Slot, Vpn};
use crate::engine::Engine;
use crate::kernel::Kernel;
use crate::trace::{Event, What};

impl<K: Kernel> Engine<K> {
    /// Something happened to the pages of a range, or to the one that was touched and those around it.
    #[inline]
    pub(crate) fn record(&self, what: What, page: Vpn, range: PageRange, detail: u8) {
        if self.kernel.is_traced() {
            self.record_event(what, page, range, detail);
        }
    }

    /// The same, of pages that are in neighbouring slots.
    #[inline]
    pub(crate) fn record_slots(&self, what: What, first: Slot, nr_pages: usize, detail: u8) {
        if self.kernel.is_traced() && nr_pages > 0 {
            let page = self.staging.owner(first);
            self.record_event(what, page, PageRange::new(page, nr_pages as u64), detail);
        }
    }

    #[cold]
    fn record_event(&self, what: What, page: Vpn, range: PageRange, detail: u8) {
        let nr_pages = u32::try_from(range.nr_pages()).unwrap_or(u32::MAX);
        let before = u16::try_from(page.0.saturating_sub(range.start.0)).unwrap_or(u16::MAX);
        self.kernel.record(Event { what, page, nr_pages, before, detail });
    }
}
