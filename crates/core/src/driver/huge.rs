//! Huge pages in a driver's migration: one entry that stands for the whole block, with [`Select::COMPOUND`].
//!
//! Nothing is noted of a page that it is part of a huge one. In system memory the kernel knows it, and says so when the page
//! has been moved out; in staging its bay knows it; on a device a huge page *is* a block whose pages are in a large run
//! of frames ([`hmm_device::Device::alloc_large`]), in order. So whatever takes a part of it away (a touch of the CPU, an
//! unmapping, a mapping that moves) leaves small pages, and nobody has to be told.
//!
//! An entry of a huge page is followed by 511 entries that are skipped ([`Skip::Compound`]), as in Linux. It becomes 512
//! ordinary ones by [`Migration::split`]: when the device has no large run, when a transfer of it fails, or when a part of
//! it was overtaken.

use hmm_device::{Access, DevicePfn, LARGE_PAGES, Store};

use crate::addr::{BLOCK_PAGES, Bay, BlockId, SlotRun};
use crate::bits::PageSet;
use crate::driver::destination::{HOLE_PAGES, ZEROES};
use crate::driver::{Collected, Destination, Entry, Migration, Select, Skip, Source};
use crate::engine::Engine;
use crate::fetch::transfer_home;
use crate::kernel::Kernel;
use crate::registry::{DeviceId, Member};
use crate::staging::{Left, Which};
use crate::state::{Frame, PageState, Ticket};
use crate::table::States;

const _: () = assert!(LARGE_PAGES == BLOCK_PAGES, "a large run holds a block");

impl Entry {
    /// The entry of a huge page of which `source` was collected.
    const fn huge(id: BlockId, source: Source) -> Self {
        Self { compound: true, ..Self::new(id.page(0), source) }
    }

    /// What the entry of a huge page says of its page number `index`.
    pub(super) fn part(&self, index: usize) -> Self {
        let frame = |frame: Frame| Frame { pfn: frame.pfn.add(index), ..frame };
        Self {
            page: self.page.add(index as u64),
            compound: false,
            source: match self.source {
                Source::Private(first) => Source::Private(frame(first)),
                Source::Coherent(first) => Source::Coherent(frame(first)),
                same @ (Source::Hole | Source::System | Source::Skipped(_)) => same,
            },
            slot: self.slot.add(index),
            destination: match self.destination {
                Destination::Stay => Destination::Stay,
                Destination::Device(first) => Destination::Device(frame(first)),
                Destination::System(first) => Destination::System(first.add(index)),
            },
            ..*self
        }
    }
}

/// The frames of the large run that begins there.
fn large_run(first: DevicePfn) -> [DevicePfn; LARGE_PAGES] {
    std::array::from_fn(|number| first.add(number))
}

/// Makes the entry of a huge page, the first of the slice, and those behind it ordinary ones.
pub(super) fn split(entries: &mut [Entry]) {
    let Some(head) = entries.first().copied().filter(Entry::is_compound) else { return };
    for (index, entry) in entries.iter_mut().take(BLOCK_PAGES).enumerate() {
        *entry = head.part(index);
    }
}

impl<K: Kernel> Migration<'_, K, Collected> {
    /// Collects the whole block as one page, if it is one. `moved` was just taken out of the program.
    pub(super) fn collect_huge(
        &mut self,
        states: &mut States,
        id: BlockId,
        select: Select,
        moved: &PageSet,
    ) -> bool {
        let Some(source) = self.huge_source(states, id, select) else { return false };
        let mut head = Entry::huge(id, source);
        if let (Source::System, PageState::Staged { slot, .. }) = (source, states.get(0)) {
            head.slot = slot;
            if moved.is_empty() {
                self.engine.staging.lend_bay(slot.bay());
            }
        }
        for index in 0..BLOCK_PAGES {
            match states.get(index) {
                PageState::Staged { slot, copy } => {
                    // The copies of a huge page are small pages on a tier: they are not kept.
                    copy.inspect(|copy| self.engine.free_frame(*copy));
                    states.set(index, PageState::Storing { slot });
                }
                PageState::Device { frame } => {
                    states.set(index, PageState::Fetching { ticket: self.ticket, frame });
                }
                PageState::None
                | PageState::System { .. }
                | PageState::Fetching { .. }
                | PageState::Dropped { .. }
                | PageState::Storing { .. }
                | PageState::Coherent { .. }
                | PageState::Exclusive { .. }
                | PageState::Poisoned => {}
            }
        }
        self.push_huge(head);
        true
    }

    /// Collects a block that is in a large run.
    pub(super) fn take_large_run(&mut self, states: &mut States, id: BlockId, first: Frame) {
        for index in 0..BLOCK_PAGES {
            let frame = Frame { pfn: first.pfn.add(index), ..first };
            states.set(index, PageState::Fetching { ticket: self.ticket, frame });
        }
        let source = self.engine.source_of(first);
        self.push_huge(Entry::huge(id, source));
    }

    fn push_huge(&mut self, head: Entry) {
        self.entries.push(head);
        let rest = (1..BLOCK_PAGES as u64)
            .map(|index| Entry::new(head.page.add(index), Source::Skipped(Skip::Compound)));
        self.entries.extend(rest);
    }

    /// What the block is collected as, if it is one huge page that is wanted.
    fn huge_source(&self, states: &States, id: BlockId, select: Select) -> Option<Source> {
        let engine = self.engine;
        match states.get(0) {
            PageState::Staged { slot, .. } if select.contains(Select::SYSTEM) => {
                let is_in_order = |index| matches!(states.get(index), PageState::Staged { slot: at, .. } if at == slot.add(index));
                let is_huge = slot.index() == 0 && engine.staging.is_huge(slot.bay());
                (is_huge && (0..BLOCK_PAGES).all(is_in_order)).then_some(Source::System)
            }
            PageState::None if select.contains(Select::SYSTEM) => {
                let is_hole = (0..BLOCK_PAGES).all(|index| states.get(index) == PageState::None)
                    && engine.kernel.extent(id.page(0)) == id.pages()
                    && engine.kernel.present(id).is_empty();
                is_hole.then_some(Source::Hole)
            }
            // Those of a coherent device have just been unmapped.
            PageState::Device { frame } if select.contains(engine.select_of(frame)) => {
                let is_own = engine.registry.owner(frame.device) == Some(self.owner);
                states.large_run().filter(|_| is_own).map(|first| engine.source_of(first))
            }
            PageState::None
            | PageState::System { .. }
            | PageState::Fetching { .. }
            | PageState::Dropped { .. }
            | PageState::Staged { .. }
            | PageState::Storing { .. }
            | PageState::Device { .. }
            | PageState::Coherent { .. }
            | PageState::Exclusive { .. }
            | PageState::Poisoned => None,
        }
    }

    /// Makes a huge page's entry 512 entries of small pages, each of which can go its own way. Returns false if entry
    /// `index` is not a huge page's, or has a destination.
    pub fn split(&mut self, index: usize) -> bool {
        let can_be = self.entries.get(index).is_some_and(|entry| entry.compound && !entry.has_destination());
        if can_be {
            split(&mut self.entries[index..]);
        }
        can_be
    }

    /// Sends a huge page to a large run of a device of the driver's; as [`set_frame`](Self::set_frame).
    ///
    /// # Errors
    /// As of [`set_frame`](Self::set_frame).
    pub fn set_large_frame(
        &mut self,
        index: usize,
        device: DeviceId,
        first: DevicePfn,
    ) -> Result<(), super::RefusedDestination> {
        self.set_destination(index, device, first, true)
    }

    /// Stores a huge page to a large run. False: the device has none, or did not take it, and the entry is as before.
    pub(super) fn store_huge(&mut self, member: &Member, number: u8, index: usize) -> bool {
        let device = &*member.device;
        let head = self.entries[index];
        let is_wanted = matches!(head.source, Source::Hole | Source::System) && !head.has_destination();
        let Some(first) = is_wanted.then(|| device.alloc_large()).flatten() else { return false };
        let frames = large_run(first);
        let mut is_stored = false;
        if head.source == Source::Hole {
            is_stored = frames.chunks(HOLE_PAGES).all(|frames| {
                device.store(Store { frames, bytes: &ZEROES, access: Access::Stream }).stop.is_none()
            });
        } else {
            self.engine.kernel.with_slots(SlotRun { start: head.slot, len: BLOCK_PAGES }, &mut |bytes| {
                let transfer = device.store(Store { frames: &frames, bytes, access: Access::Stream });
                is_stored = transfer.stop.is_none();
            });
        }
        if !is_stored {
            device.free(&frames);
            return false;
        }
        // Else the device has handed out what is in use: whose it is keeps it.
        let is_ours = member.descriptors.begin_run(first, LARGE_PAGES);
        if is_ours {
            self.entries[index].destination = Destination::Device(Frame { device: number, pfn: first });
        }
        is_ours
    }

    /// Fetches a huge page into a bay. False: there is none to be had, or the device did not give it all; the entry is as
    /// before.
    pub(super) fn fetch_huge(&mut self, index: usize) -> bool {
        let (Source::Private(first) | Source::Coherent(first)) = self.entries[index].source else {
            return false;
        };
        let Some(device) = self.engine.registry.get(first.device) else { return false };
        let Some(bay) = self.engine.take_huge_bay() else { return false };
        let frames = large_run(first.pfn);
        let run = SlotRun { start: bay.slot(0), len: BLOCK_PAGES };
        let pass = self.engine.flights.of_driver();
        let transfer = transfer_home(&self.engine.kernel, &*device, &pass, &frames, run);
        if transfer.stop.is_none() {
            self.entries[index].destination = Destination::System(run.start);
        } else {
            self.engine.staging.put(run, Left::Memory);
        }
        transfer.stop.is_none()
    }
}

impl<K: Kernel> Engine<K> {
    /// Lends a bay with memory for a huge page that comes home: stock, which costs nothing, else a fresh one.
    pub(super) fn take_huge_bay(&self) -> Option<Bay> {
        if let Some(bay) = self.staging.take_huge_stock() {
            return Some(bay);
        }
        if !self.charge_for_copy(BLOCK_PAGES) {
            return None;
        }
        let bay = loop {
            if let Some(bay) = self.staging.take_empty() {
                break bay;
            }
            let Some(surplus) = self.staging.take_surplus(Which::Done) else {
                self.uncharge(BLOCK_PAGES);
                return None;
            };
            self.release(surplus);
        };
        let filled = self.kernel.fill_bay(bay);
        let is_full = filled.present.len() == BLOCK_PAGES;
        self.staging.set_huge(bay, filled.huge && is_full);
        if !is_full {
            let run = SlotRun { start: bay.slot(0), len: BLOCK_PAGES };
            if !filled.present.is_empty() {
                self.kernel.release(run);
            }
            self.staging.put(run, Left::Nothing);
            self.uncharge(BLOCK_PAGES);
        }
        is_full.then_some(bay)
    }

    /// Gives a huge page its new home. False: it has nowhere to go, or a part of it was overtaken, and nothing was done.
    pub(super) fn commit_huge(
        &self,
        states: &mut States,
        entry: &Entry,
        ticket: Ticket,
        present: &PageSet,
    ) -> bool {
        let is_whole = match (entry.destination, entry.source) {
            (Destination::Stay, _) => false,
            (_, Source::System) => {
                let is_ours = |index| matches!(states.get(index), PageState::Storing { slot } if slot == entry.slot.add(index));
                (0..BLOCK_PAGES).all(is_ours) && self.staging.is_owned(entry.slot.bay(), entry.page)
            }
            (_, Source::Hole) => {
                (0..BLOCK_PAGES).all(|index| states.get(index) == PageState::None)
                    && present.is_empty()
                    && self.kernel.extent(entry.page) == entry.page.block().pages()
            }
            (_, Source::Private(first) | Source::Coherent(first)) => (0..BLOCK_PAGES).all(|index| {
                let ours = Frame { pfn: first.pfn.add(index), ..first };
                matches!(states.get(index), PageState::Fetching { ticket: of, frame } if of == ticket && frame == ours)
            }),
            (_, Source::Skipped(_)) => false,
        };
        let Destination::Device(first) = entry.destination else { return is_whole };
        if !is_whole {
            return false;
        }
        match entry.source {
            Source::System => {
                self.add_away(BLOCK_PAGES);
                self.staging.put(SlotRun { start: entry.slot, len: BLOCK_PAGES }, Left::Memory);
            }
            Source::Hole => self.add_away(BLOCK_PAGES),
            Source::Private(old) | Source::Coherent(old) => {
                self.free_frames(old.device, &large_run(old.pfn));
            }
            Source::Skipped(_) => {}
        }
        for index in 0..BLOCK_PAGES {
            let frame = Frame { pfn: first.pfn.add(index), ..first };
            states.set(index, PageState::Fetching { ticket, frame });
        }
        true
    }
}
