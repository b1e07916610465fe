//! Nothing is lost or stale: the bytes of every page are those that the model has, wherever they are.

use hmm_core::Engine;
use hmm_core::state::PageState;
use hmm_model::Content;

use crate::kernel::SimKernel;
use crate::machine::Machine;
use crate::memory::{Bytes, Entry};

pub(crate) fn check(machine: &Machine, engine: &Engine<SimKernel>) {
    for (page, mapped) in machine.model.pages() {
        let Some(content) = &mapped.content else { continue };
        if let Some(Entry::Present { bytes, .. }) = machine.memory.entry(page) {
            compare(page, content, bytes, "mapped");
            continue;
        }
        match engine.state(Machine::vpn(page)) {
            PageState::Staged { slot, .. } | PageState::Exclusive { slot } => {
                let bytes =
                    machine.slots.page(slot).unwrap_or_else(|| panic!("page {page} is in an empty {slot:?}"));
                compare(page, content, bytes, "staged");
            }
            PageState::Device { frame } => {
                let device = &machine.devices[usize::from(frame.device)];
                let bytes =
                    device.bytes(frame.pfn).unwrap_or_else(|| panic!("page {page} is in an empty {frame:?}"));
                compare(page, content, bytes, "on a device");
            }
            // What a device did not bring in time: the kernel is told at the next touch.
            PageState::Poisoned => {
                assert!(machine.may_be_lost(content), "page {page} is poisoned, and no device failed");
            }
            // A hole; a ghost; a page whose poison the kernel has not taken yet.
            PageState::None | PageState::System { .. } | PageState::Coherent { .. } => {
                compare(page, content, &crate::memory::zeroes(), "a hole");
            }
            state @ (PageState::Fetching { .. } | PageState::Dropped { .. } | PageState::Storing { .. }) => {
                panic!("page {page} is {state:?}, and nobody works on it")
            }
        }
    }
}

fn compare(page: u32, content: &Content, bytes: &Bytes, place: &str) {
    if let Some(difference) = content.difference(bytes) {
        panic!("page {page}, {place}, holds wrong bytes: {difference:x?}");
    }
}
