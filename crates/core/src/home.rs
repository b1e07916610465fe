//! Everything comes home: before an address space ends, because what is in staging or on devices then would be lost.

use crate::addr::PageRange;
use crate::engine::Engine;
use crate::fault::Outcome;
use crate::kernel::Kernel;
use crate::state::PageState;

impl<K: Kernel> Engine<K> {
    /// Serves faults that nobody had, of all pages of the range that are away. Returns how many still are: of pages that
    /// others work on, or whose mappings change just now, try again. The caller sees to it that nothing is evicted.
    pub fn bring_all_home(&self, range: PageRange) -> usize {
        let mut nr_away = 0;
        for (id, block, part) in self.table.used_blocks(range) {
            for index in part {
                let state = block.lock().get(index);
                if is_away(state) && self.fault(id.page(index)) != Outcome::Done {
                    nr_away += 1;
                }
            }
        }
        nr_away
    }
}

/// Whether the program would lose the page's bytes with the engine.
fn is_away(state: PageState) -> bool {
    match state {
        PageState::None
        | PageState::System { .. }
        // Its memory is mapped, and stays.
        | PageState::Coherent { .. }
        | PageState::Dropped { .. }
        | PageState::Poisoned => false,
        PageState::Fetching { .. }
        | PageState::Staged { .. }
        | PageState::Storing { .. }
        | PageState::Device { .. }
        | PageState::Exclusive { .. } => true,
    }
}
