//! `pages`, `finalize`, and dropping at any stage: every page that was collected ends here, and every frame and slot that
//! was lent for it.

use std::marker::PhantomData;

use hmm_device::DevicePfn;

use crate::addr::{BLOCK_PAGES, BlockId, PageRange, Slot, SlotRun};
use crate::bits::PageSet;
use crate::driver::huge::split;
use crate::driver::{Collected, Committed, Destination, Entry, Migration, Source};
use crate::engine::Engine;
use crate::kernel::{Kernel, Stop};
use crate::notifier::{Cause, Change};
use crate::staging::Left;
use crate::state::{Frame, PageState, Ticket};
use crate::table::States;

/// What is left to do for a page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Settled {
    Done,
    /// Its bytes are in that slot, and go back to the program.
    Home(Slot),
    /// It is not where it was.
    Elsewhere,
}

/// Frames of one device whose pages have left, to be freed together.
struct Gone {
    device: u8,
    frames: [DevicePfn; BLOCK_PAGES],
    len: usize,
}

impl Default for Gone {
    fn default() -> Self {
        Self { device: 0, frames: [DevicePfn::default(); BLOCK_PAGES], len: 0 }
    }
}

impl Gone {
    const fn add(&mut self, frame: Frame) {
        self.device = frame.device;
        self.frames[self.len] = frame.pfn;
        self.len += 1;
    }
}

impl<'e, K: Kernel> Migration<'e, K, Collected> {
    /// Makes the destinations the pages' homes, as far as nobody overtook the migration: see
    /// [`Entry::is_migrated`]. Faults on those wait until [`finalize`](Migration::finalize). All copying is done by now.
    pub fn pages(mut self) -> Migration<'e, K, Committed> {
        let engine = self.engine;
        let fills_hole = |entry: &Entry| entry.source == Source::Hole && entry.has_destination();
        // Since setup somebody may have read that there is nothing.
        let change = self.entries.iter().any(fills_hole).then(|| {
            let change = Change { range: self.range, cause: Cause::Migrate, owner: Some(self.owner) };
            engine.notifiers.invalidate(change)
        });
        let gate = engine.gate();
        let ticket = self.ticket;
        for chunk in self.entries.chunk_by_mut(same_block) {
            let id = chunk[0].page.block();
            let mut states = engine.table.block(id).lock();
            let present = if chunk.iter().any(fills_hole) { engine.filled(id) } else { PageSet::EMPTY };
            if chunk[0].compound {
                chunk[0].migrated = engine.commit_huge(&mut states, &chunk[0], ticket, &present);
                if chunk[0].migrated || !chunk[0].has_destination() {
                    continue;
                }
                // A part of it was overtaken: the rest goes.
                split(chunk);
            }
            let mut stock = SlotRun { start: Slot(0), len: 0 };
            for entry in chunk {
                entry.migrated = engine.commit_page(&mut states, entry, ticket, &present, &mut stock);
            }
            engine.staging.put(stock, Left::Memory);
        }
        drop(gate);
        drop(change);
        Migration {
            engine,
            range: self.range,
            owner: self.owner,
            ticket,
            entries: std::mem::take(&mut self.entries),
            devices: std::mem::take(&mut self.devices),
            stage: PhantomData,
        }
    }
}

impl<K: Kernel> Migration<'_, K, Committed> {
    /// Ends the migration: everybody may use the pages. Returns how many migrated.
    pub fn finalize(self) -> usize {
        self.nr_migrated()
    }
}

impl<K: Kernel, Stage> Drop for Migration<'_, K, Stage> {
    fn drop(&mut self) {
        if self.entries.is_empty() {
            return;
        }
        let engine = self.engine;
        let gate = engine.gate();
        for chunk in self.entries.chunk_by_mut(same_block) {
            engine.settle_block(chunk, self.ticket);
        }
        engine.end_moved(self.ticket);
        drop(gate);
    }
}

fn same_block(a: &Entry, b: &Entry) -> bool {
    a.page.block() == b.page.block()
}

impl<K: Kernel> Engine<K> {
    /// Which pages of the block are no holes. All, while that cannot be told: a page that was mapped unknown to us may be on
    /// its way to another place, and a frame of zeroes would be its home there.
    fn filled(&self, id: BlockId) -> PageSet {
        let present = self.kernel.present(id);
        if self.kernel.is_changing() { PageSet::FULL } else { present }
    }

    /// Gives one page its new home. False: it was overtaken, or has nowhere to go.
    fn commit_page(
        &self,
        states: &mut States,
        entry: &Entry,
        ticket: Ticket,
        present: &PageSet,
        stock: &mut SlotRun,
    ) -> bool {
        let index = entry.page.index();
        let frame = match (entry.destination, entry.source) {
            (Destination::Device(frame), _) => frame,
            // It goes home when the migration is finalized; until then its frame keeps its bytes.
            (Destination::System(_), Source::Private(old) | Source::Coherent(old)) => {
                return is_fetching(states, index, ticket, old);
            }
            (Destination::Stay | Destination::System(_), _) => return false,
        };
        let is_ours = match entry.source {
            Source::System => {
                matches!(states.get(index), PageState::Storing { slot } if slot == entry.slot)
                    && self.staging.owner(entry.slot) == entry.page
            }
            Source::Hole => {
                states.get(index) == PageState::None
                    && !present.contains(index)
                    && self.kernel.extent(entry.page).contains(entry.page)
            }
            Source::Private(old) | Source::Coherent(old) => is_fetching(states, index, ticket, old),
            Source::Skipped(_) => false,
        };
        if !is_ours {
            return false;
        }
        match entry.source {
            Source::System => {
                self.add_away(1);
                entry.copy.inspect(|copy| self.free_frame(*copy));
                // Slots side by side are given back together.
                if stock.len > 0 && (entry.slot != stock.start.add(stock.len) || entry.slot.index() == 0) {
                    self.staging.put(*stock, Left::Memory);
                    stock.len = 0;
                }
                *stock = SlotRun {
                    start: if stock.len == 0 { entry.slot } else { stock.start },
                    len: stock.len + 1,
                };
            }
            Source::Hole => self.add_away(1),
            Source::Private(old) | Source::Coherent(old) => self.free_frame(old),
            Source::Skipped(_) => {}
        }
        states.set(index, PageState::Fetching { ticket, frame });
        true
    }

    /// Ends the hold on pages of one block. The caller holds the gate. Nothing is allocated: with the block locked, memory
    /// that could be away must not be touched.
    fn settle_block(&self, chunk: &mut [Entry], ticket: Ticket) {
        let id = chunk[0].page.block();
        let mut states = self.table.block(id).lock();
        split(chunk);
        // Neighbours that are in neighbouring slots go home together.
        let (mut first, mut end, mut slot) = (0, 0, Slot(0));
        let mut gone = Gone::default();
        for number in 0..chunk.len() {
            let settled = self.settle_page(&mut states, &chunk[number], ticket, &mut gone);
            chunk[number].elsewhere = settled == Settled::Elsewhere;
            let Settled::Home(at) = settled else { continue };
            let offset = number - first;
            let follows = number == end
                && offset < BLOCK_PAGES - slot.index()
                && at == slot.add(offset)
                && chunk[number].page == chunk[first].page.add(offset as u64);
            if !follows {
                self.bring_home(&mut states, &chunk[first..end], slot);
                (first, slot) = (number, at);
            }
            end = number + 1;
        }
        self.bring_home(&mut states, &chunk[first..end], slot);
        self.forget_gone(&mut gone);
        let mut ours = PageSet::EMPTY;
        let ended = chunk.iter().filter(|entry| self.may_be_mapped(entry));
        ended.for_each(|entry| ours.insert(entry.page.index()));
        // What cannot be mapped now is when it is touched.
        let not_mapped = self.map_frames(&mut states, id, &ours);
        self.note_resident(id, &mut states);
        drop(states);
        if not_mapped == Some(Stop::Exists) {
            ours.runs().flatten().for_each(|index| self.replaced_frame(id.page(index)));
        }
        // Whoever waits for one of the pages looks again.
        for run in chunk.chunk_by(|a, b| waits(a) && waits(b) && b.page.0 == a.page.0 + 1) {
            if waits(&run[0]) {
                self.kernel.wake(PageRange::new(run[0].page, run.len() as u64));
            }
        }
        chunk.iter().filter(|entry| entry.elsewhere).for_each(|entry| self.settle_elsewhere(entry));
    }

    /// Whether the page may be in a coherent frame now that its migration ends.
    fn may_be_mapped(&self, entry: &Entry) -> bool {
        match (entry.source, entry.destination) {
            (Source::Coherent(_), _) => true,
            (_, Destination::Device(frame)) => self.registry.is_coherent(frame.device),
            (_, Destination::Stay | Destination::System(_)) => false,
        }
    }

    /// Ends the hold on one page. What goes from a slot to the program is `Storing` still.
    fn settle_page(&self, states: &mut States, entry: &Entry, ticket: Ticket, gone: &mut Gone) -> Settled {
        let index = entry.page.index();
        let destination = entry.destination;
        match entry.source {
            Source::Skipped(_) => {}
            Source::System if !entry.migrated => {
                self.give_back(destination);
                if !matches!(states.get(index), PageState::Storing { slot } if slot == entry.slot) {
                    return Settled::Elsewhere;
                }
                return Settled::Home(entry.slot);
            }
            Source::Hole if !entry.migrated => self.give_back(destination),
            Source::Private(old) | Source::Coherent(old) => {
                if let (Destination::System(slot), true) = (destination, entry.migrated)
                    && is_fetching(states, index, ticket, old)
                {
                    // From here on the slot is where its bytes are.
                    if gone.len == BLOCK_PAGES || gone.device != old.device {
                        self.forget_gone(gone);
                    }
                    gone.add(old);
                    states.set(index, PageState::Storing { slot });
                    return Settled::Home(slot);
                }
                if !entry.migrated || matches!(destination, Destination::System(_)) {
                    self.give_back(destination);
                }
                self.end_state(states, ticket, entry.page);
            }
            // They are where they should be; or the program gave them up.
            Source::System | Source::Hole => self.end_state(states, ticket, entry.page),
        }
        Settled::Done
    }

    /// Frees them.
    fn forget_gone(&self, gone: &mut Gone) {
        self.sub_away(gone.len);
        self.free_frames(gone.device, &gone.frames[..gone.len]);
        gone.len = 0;
    }

    /// Takes back what a page that did not migrate had been promised.
    fn give_back(&self, destination: Destination) {
        match destination {
            Destination::Stay => {}
            Destination::Device(frame) => self.free_frame(frame),
            Destination::System(slot) => self.staging.put(SlotRun { start: slot, len: 1 }, Left::Memory),
        }
    }

    /// Gives a run of pages, from the slots that begin at `slot`, to the program. What cannot be mapped now waits in
    /// staging.
    fn bring_home(&self, states: &mut States, run: &[Entry], slot: Slot) {
        let mut done = 0;
        while let Some(first) = run.get(done) {
            let extent = self.kernel.extent(first.page);
            let within = run[done..].iter().take_while(|entry| extent.contains(entry.page)).count().max(1);
            let slots = SlotRun { start: slot.add(done), len: within };
            let pages = PageRange::new(first.page, within as u64);
            let protected = first.protect.then(|| self.give_home_protected(slots, pages)).flatten();
            let mapped = protected.unwrap_or_else(|| self.give_home(self.config.home_by, slots, pages));
            for entry in &run[done..done + mapped.done] {
                states.set(entry.page.index(), PageState::System { copy: entry.copy });
            }
            self.staging.put(SlotRun { start: slots.start, len: mapped.done }, mapped.left);
            done += mapped.done;
            let (Some(stopped), Some(stop)) = (run.get(done), mapped.stop) else { continue };
            if stop == Stop::Exists {
                // The program has a page there that we know nothing of; what it maps is the truth.
                states.set(stopped.page.index(), PageState::System { copy: stopped.copy });
                self.staging.put(SlotRun { start: slot.add(done), len: 1 }, Left::Memory);
                self.charge_found(1);
                self.kernel.wake(PageRange::new(stopped.page, 1));
                done += 1;
                continue;
            }
            // From it on the pages have to go home in another way.
            if matches!(stop, Stop::Unsuited | Stop::Busy) && mapped.done > 0 {
                continue;
            }
            for (offset, entry) in run.iter().enumerate().skip(done) {
                let slot = slot.add(offset);
                states.set(entry.page.index(), PageState::Staged { slot, copy: entry.copy });
                self.staging.stage(slot, entry.page);
            }
            return;
        }
    }

    /// Ends the hold on a system page that is not where it was: the program moved it, and it waits in staging; or it
    /// went home or was given up, and the slot is free. The caller holds the gate, but no block.
    fn settle_elsewhere(&self, entry: &Entry) {
        let slot = entry.slot;
        if self.end_storing(slot, PageState::Staged { slot, copy: entry.copy }) {
            self.staging.stage(slot, self.staging.owner(slot));
        } else {
            entry.copy.inspect(|copy| self.free_frame(*copy));
            self.staging.put(SlotRun { start: slot, len: 1 }, Left::Memory);
        }
    }
}

/// Whether somebody may wait for the page until the migration ends.
fn waits(entry: &Entry) -> bool {
    entry.migrated || matches!(entry.source, Source::Private(_) | Source::Coherent(_))
}

fn is_fetching(states: &States, index: usize, ours: Ticket, of: Frame) -> bool {
    matches!(states.get(index), PageState::Fetching { ticket, frame } if ticket == ours && frame == of)
}
