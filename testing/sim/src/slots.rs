//! Staging memory: slots, what is in them, and who has borrowed their bytes.

use std::collections::BTreeSet;

use hmm_core::Config;
use hmm_core::addr::{BLOCK_PAGES, Bay, Slot, SlotRun};
use hmm_core::bits::PageSet;
use hmm_core::kernel::BayScan;

use crate::memory::Bytes;

/// Who works on a slot's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Lent {
    #[default]
    No,
    /// So many readers.
    Read(u32),
    Write,
}

#[derive(Clone, Debug, Default)]
struct State {
    page: Option<Bytes>,
    /// The page was the program's: somebody may still read it, by another reference than an address.
    foreign: bool,
    /// Somebody else has read the slot while it was empty.
    stray: bool,
    lent: Lent,
}

/// All slots. Every misuse is the engine's mistake, and panics.
#[derive(Debug)]
pub(crate) struct Slots {
    slots: Vec<State>,
    /// Whether memory that was the program's may be written.
    reuses_memory: bool,
    nr_present: usize,
    /// Bays that received a whole huge page and have not given any of it back.
    huge: BTreeSet<u32>,
}

impl Slots {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            slots: vec![State::default(); config.nr_bays as usize * BLOCK_PAGES],
            reuses_memory: config.reuses_memory,
            nr_present: 0,
            huge: BTreeSet::new(),
        }
    }

    fn state(&mut self, slot: Slot) -> &mut State {
        self.slots.get_mut(slot.0 as usize).unwrap_or_else(|| panic!("{slot:?} is behind the last bay"))
    }

    pub(crate) fn page(&self, slot: Slot) -> Option<&Bytes> {
        self.slots.get(slot.0 as usize)?.page.as_ref()
    }

    /// A device changes the page that it has to itself.
    pub(crate) fn page_mut(&mut self, slot: Slot) -> &mut Bytes {
        let state = self.state(slot);
        assert_eq!(state.lent, Lent::No, "{slot:?} is exclusive to a device and in use");
        state.page.as_mut().unwrap_or_else(|| panic!("{slot:?} is exclusive to a device and empty"))
    }

    /// How many hold a page.
    pub(crate) const fn nr_present(&self) -> usize {
        self.nr_present
    }

    /// A page comes from the program.
    pub(crate) fn fill(&mut self, slot: Slot, page: Bytes) {
        self.populate(slot, page);
        self.state(slot).foreign = !self.reuses_memory;
    }

    /// Fresh memory comes to the slot.
    pub(crate) fn populate(&mut self, slot: Slot, page: Bytes) {
        let state = self.state(slot);
        assert_eq!(state.lent, Lent::No, "a page is moved to {slot:?} while its bytes are in use");
        // What should not be there is dropped, in time.
        assert!(state.page.is_none() || state.stray, "a page is moved to {slot:?}, which holds another");
        (state.page, state.foreign, state.stray) = (Some(page), false, false);
        self.nr_present += 1;
    }

    /// A page goes to the program.
    pub(crate) fn take(&mut self, slot: Slot) -> Option<Bytes> {
        let state = self.state(slot);
        assert_eq!(state.lent, Lent::No, "{slot:?} is moved away while its bytes are in use");
        assert!(!state.stray, "{slot:?} is moved away, and is nobody's");
        let page = state.page.take();
        self.nr_present -= usize::from(page.is_some());
        self.split(slot.bay());
        page
    }

    /// Somebody reads our memory: where there is none, the kernel makes zeroes.
    pub(crate) fn peek(&mut self, slot: Slot) {
        let state = self.state(slot);
        if state.page.is_none() {
            (state.page, state.stray) = (Some(crate::memory::zeroes()), true);
        }
    }

    /// How many there are.
    pub(crate) const fn nr_slots(&self) -> usize {
        self.slots.len()
    }

    /// A copy of a page goes to the program.
    pub(crate) fn copy(&mut self, slot: Slot) -> Option<Bytes> {
        let state = self.state(slot);
        assert_ne!(state.lent, Lent::Write, "{slot:?} is copied while it is being written");
        state.page.clone()
    }

    pub(crate) fn release(&mut self, run: SlotRun) {
        for slot in slots_of(run) {
            let state = self.state(slot);
            assert_eq!(state.lent, Lent::No, "{slot:?} is released while its bytes are in use");
            let page = state.page.take();
            let was_stray = std::mem::take(&mut state.stray);
            self.nr_present -= usize::from(page.is_some() && !was_stray);
        }
        self.split(run.start.bay());
    }

    pub(crate) fn scan(&self, bay: Bay) -> BayScan {
        let mut present = PageSet::EMPTY;
        for index in 0..BLOCK_PAGES {
            if self.page(bay.slot(index)).is_some() {
                present.insert(index);
            }
        }
        BayScan { present, huge: self.huge.contains(&bay.0) }
    }

    pub(crate) fn set_huge(&mut self, bay: Bay) {
        self.huge.insert(bay.0);
    }

    fn split(&mut self, bay: Bay) {
        self.huge.remove(&bay.0);
    }

    /// The bytes of a run, for reading until [`end_read`](Self::end_read).
    pub(crate) fn begin_read(&mut self, run: SlotRun) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(run.len * hmm_model::PAGE_SIZE);
        for slot in slots_of(run) {
            let state = self.state(slot);
            state.lent = match state.lent {
                Lent::No => Lent::Read(1),
                Lent::Read(readers) => Lent::Read(readers + 1),
                Lent::Write => panic!("{slot:?} is read while it is being written"),
            };
            let page = state.page.as_ref().unwrap_or_else(|| panic!("{slot:?} is read and holds no page"));
            bytes.extend_from_slice(&page[..]);
        }
        bytes
    }

    pub(crate) fn end_read(&mut self, run: SlotRun) {
        for slot in slots_of(run) {
            let state = self.state(slot);
            state.lent = match state.lent {
                Lent::Read(1) => Lent::No,
                Lent::Read(readers) => Lent::Read(readers - 1),
                Lent::No | Lent::Write => panic!("{slot:?} was not lent for reading"),
            };
        }
    }

    /// The bytes of a run, for writing until [`end_write`](Self::end_write). Empty slots get a page.
    pub(crate) fn begin_write(&mut self, run: SlotRun) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(run.len * hmm_model::PAGE_SIZE);
        for slot in slots_of(run) {
            let state = self.state(slot);
            assert_eq!(state.lent, Lent::No, "{slot:?} is written while its bytes are in use");
            state.lent = Lent::Write;
            let was_empty = state.page.is_none() || std::mem::take(&mut state.stray);
            assert!(was_empty || !state.foreign, "{slot:?} is written, and was the program's");
            state.foreign = false;
            let page = state.page.get_or_insert_with(crate::memory::zeroes);
            bytes.extend_from_slice(&page[..]);
            self.nr_present += usize::from(was_empty);
        }
        bytes
    }

    pub(crate) fn end_write(&mut self, run: SlotRun, bytes: &[u8]) {
        let (pages, _) = bytes.as_chunks();
        for (slot, bytes) in slots_of(run).zip(pages) {
            let state = self.state(slot);
            assert_eq!(state.lent, Lent::Write, "{slot:?} was not lent for writing");
            *state = State { page: Some(Bytes::new(*bytes)), ..State::default() };
        }
    }
}

fn slots_of(run: SlotRun) -> impl Iterator<Item = Slot> {
    assert!(run.start.index() + run.len <= BLOCK_PAGES, "{run:?} leaves its bay");
    (0..run.len).map(move |index| run.start.add(index))
}
