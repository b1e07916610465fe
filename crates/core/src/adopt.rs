//! Memory that was there before us.

use std::sync::atomic::Ordering;

use crate::addr::{BlockId, PageRange};
use crate::bits::PageSet;
use crate::engine::Engine;
use crate::kernel::Kernel;
use crate::state::PageState;
use crate::table::covers;

impl<K: Kernel> Engine<K> {
    /// Takes over the pages of a newly registered range that are resident. `present` says for each block which are; it
    /// is asked under the block's lock, so what it finds does not change before it is noted. Charges them whatever the
    /// budget says: they are there. Returns how many there were.
    pub fn adopt(&self, range: PageRange, present: &mut dyn FnMut(BlockId) -> PageSet) -> u64 {
        let mut adopted = 0;
        for (id, part) in range.blocks().take_while(|(id, _)| covers(id.page(0))) {
            let _gate = self.gate();
            let resident = present(id);
            if resident.is_empty() {
                continue;
            }
            let mut states = self.table.block(id).lock();
            // Asked again under the lock: without it a fault may have been served in between.
            let resident = present(id);
            let mut found = PageSet::EMPTY;
            for index in part.filter(|index| resident.contains(*index)) {
                match states.get(index) {
                    PageState::None => found.insert(index),
                    PageState::Dropped { ticket, frame } => {
                        self.leave_orphan(ticket, frame);
                        found.insert(index);
                    }
                    PageState::System { .. }
                    | PageState::Fetching { .. }
                    | PageState::Staged { .. }
                    | PageState::Storing { .. }
                    | PageState::Device { .. }
                    | PageState::Coherent { .. }
                    | PageState::Exclusive { .. }
                    | PageState::Poisoned => {}
                }
            }
            self.charge_found(found.len());
            found.runs().flatten().for_each(|index| states.set(index, PageState::System { copy: None }));
            self.note_resident(id, &mut states);
            adopted += found.len() as u64;
        }
        self.stats().pgadopt.fetch_add(adopted, Ordering::Relaxed);
        adopted
    }
}
