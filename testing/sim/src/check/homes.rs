//! Every page has one home (I1): what the states say, the page table, the slots and the frames are the same thing, and
//! no slot and no frame belongs to nobody or to two pages.

use std::collections::{BTreeMap, BTreeSet};

use hmm_core::Engine;
use hmm_core::addr::Slot;
use hmm_core::state::{Frame, PageState};
use hmm_device::DevicePfn;

use crate::driver;
use crate::kernel::SimKernel;
use crate::machine::Machine;
use crate::memory::Entry;
use crate::shared::Shared;

/// What the states of all pages amount to.
#[derive(Debug, Default)]
pub(crate) struct Census {
    pub(crate) nr_system: u64,
    pub(crate) nr_staged: u64,
    pub(crate) nr_away: u64,
    slots: BTreeMap<Slot, u32>,
    frames: BTreeMap<(u8, DevicePfn), u32>,
    /// Frames whose pages are in the program.
    mapped: BTreeSet<(u8, DevicePfn)>,
    /// Frames that drivers refer to, of pages that may be gone.
    held: BTreeSet<(u8, DevicePfn)>,
}

impl Census {
    fn own_slot(&mut self, page: u32, slot: Slot) {
        if let Some(other) = self.slots.insert(slot, page) {
            panic!("pages {other} and {page} are both in {slot:?}");
        }
    }

    fn own_frame(&mut self, page: u32, frame: Frame) {
        if let Some(other) = self.frames.insert((frame.device, frame.pfn), page) {
            panic!("pages {other} and {page} are both in {frame:?}");
        }
    }
}

/// Compares every page's state with where the page is, and counts.
pub(crate) fn census(shared: &Shared, machine: &Machine, engine: &Engine<SimKernel>) -> Census {
    let mut census = Census { held: driver::held(shared), ..Census::default() };
    for page in machine.arena().all().pages() {
        let state = engine.state(Machine::vpn(page));
        let entry = machine.memory.entry(page);
        match (state, entry) {
            (PageState::None, None) => {}
            (PageState::None, Some(Entry::Present { .. })) => {
                let known = machine.memory.is_managed(page) && !machine.strangers.contains(&page);
                assert!(!known, "page {page} is mapped, and the engine does not know");
            }
            (PageState::System { copy }, Some(Entry::Present { .. }) | None) => {
                let is_there = entry.is_some() || machine.ghosts.contains(&page);
                assert!(is_there, "page {page} is not mapped, and the engine says it is: {state:?}");
                census.nr_system += 1;
                copy.inspect(|frame| census.own_frame(page, *frame));
            }
            (PageState::Staged { slot, copy }, None) => {
                census.nr_staged += 1;
                census.own_slot(page, slot);
                copy.inspect(|frame| census.own_frame(page, *frame));
            }
            (PageState::Exclusive { slot }, None) => {
                census.nr_staged += 1;
                census.own_slot(page, slot);
            }
            (PageState::Device { frame }, None) => {
                census.nr_away += 1;
                census.own_frame(page, frame);
            }
            (PageState::Coherent { frame, .. }, Some(Entry::Present { .. }) | None) => {
                let is_there = entry.is_some() || machine.ghosts.contains(&page);
                assert!(is_there, "page {page} is not mapped, and the engine says it is: {state:?}");
                census.nr_away += 1;
                census.own_frame(page, frame);
                census.mapped.insert((frame.device, frame.pfn));
            }
            // What a device did not bring in time the kernel is told of at the next touch.
            (PageState::Poisoned, Some(Entry::Poisoned) | None) => {}
            (state, entry) => panic!("page {page} is {state:?} and its entry is {entry:?}"),
        }
        let managed = machine.memory.is_managed(page);
        assert!(managed || state == PageState::None, "page {page} is not managed, and {state:?}");
    }
    check_slots(machine, engine, &census);
    check_frames(machine, &census);
    census
}

fn check_slots(machine: &Machine, engine: &Engine<SimKernel>, census: &Census) {
    for (slot, page) in &census.slots {
        assert!(machine.slots.page(*slot).is_some(), "page {page} is in {slot:?}, which is empty");
    }
    let in_use = census.nr_staged + engine.nr_stock();
    let present = machine.slots.nr_present() as u64;
    assert_eq!(present, in_use, "slots with memory, and slots that are staged or in stock");
}

fn check_frames(machine: &Machine, census: &Census) {
    for (device, number) in machine.devices.iter().zip(0_u8..) {
        for (pfn, bytes) in device.used() {
            let owner = census.frames.get(&(number, pfn));
            if owner.is_none() && census.held.contains(&(number, pfn)) {
                continue;
            }
            assert!(owner.is_some(), "{pfn:?} of device {number} is in use and nobody's");
            let is_mapped = census.mapped.contains(&(number, pfn));
            assert_ne!(
                bytes.is_some(),
                is_mapped,
                "{pfn:?} of device {number} is page {owner:?}'s, mapped or not"
            );
        }
    }
    let nr_used: usize = machine.devices.iter().map(|device| device.used().count()).sum();
    let nr_held = census.held.iter().filter(|frame| !census.frames.contains_key(frame)).count();
    assert_eq!(nr_used, census.frames.len() + nr_held, "frames in use, and frames that somebody has");
}

/// All pages were given up: every state is `None`, no frame is in use, and there is only stock in the slots.
pub(crate) fn check_nothing_kept(machine: &Machine, engine: &Engine<SimKernel>) {
    for page in machine.arena().all().pages() {
        let state = engine.state(Machine::vpn(page));
        assert_eq!(state, PageState::None, "page {page} was given up");
    }
    check_slots(machine, engine, &Census::default());
    check_frames(machine, &Census::default());
}
