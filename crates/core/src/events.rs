//! What the program does to its mappings, applied to the states.
//!
//! An [`Events`] guard excludes everything that acts on the program's mappings. It has to be taken *before* events are
//! read from the kernel: reading one lets the program go on, into new mappings at the old addresses.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError, RwLockWriteGuard};

use crate::addr::{PageRange, SlotRun, Vpn};
use crate::bits::PageSet;
use crate::engine::Engine;
use crate::fetch::Moved;
use crate::kernel::Kernel;
use crate::notifier::{Cause, Change};
use crate::staging::Left;
use crate::state::PageState;
use crate::table::{States, covers};
use crate::trace::What;

/// Discards that are remembered one by one.
const MAX_DISCARDS: usize = 64;

/// Ranges that the kernel has said to be discarded since drivers [settled](Engine::settle) last. It says so before it acts:
/// what a driver finds there in between goes without another word.
#[derive(Debug)]
pub(crate) struct Discards(Mutex<Vec<PageRange>>);

impl Discards {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Vec::with_capacity(MAX_DISCARDS)))
    }

    /// Allocates nothing. When there are too many the last becomes one that holds the others as well.
    fn note(&self, range: PageRange) {
        let mut ranges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ranges.len() < MAX_DISCARDS {
            ranges.push(range);
        } else if let Some(last) = ranges.last_mut() {
            last.start = last.start.min(range.start);
            last.end = last.end.max(range.end);
        }
    }

    /// Whether a part of the range may still be there for a moment, and then go without another word.
    pub(crate) fn touch(&self, range: PageRange) -> bool {
        let ranges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ranges.iter().any(|discarded| !discarded.intersect(range).is_empty())
    }

    fn take(&self) -> Option<PageRange> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

/// The right to read events from the kernel and to apply them.
#[derive(Debug)]
pub struct Events<'e, K> {
    engine: &'e Engine<K>,
    _gate: RwLockWriteGuard<'e, ()>,
}

impl<K: Kernel> Engine<K> {
    /// Waits until nobody acts on the program's mappings, and keeps it so.
    pub fn events(&self) -> Events<'_, K> {
        Events { engine: self, _gate: self.gate.write().unwrap_or_else(PoisonError::into_inner) }
    }

    /// Returns when the events that were read before have been applied, and drivers told of them. Who has unmapped memory
    /// goes on when the event is read, which may be before.
    pub fn catch_up(&self) {
        drop(self.gate());
    }

    /// The same for drivers, who are told once more of what was discarded since the last time: its pages were still there at
    /// first. Nobody else may call it, because it is told once.
    pub fn settle(&self) {
        self.catch_up();
        while let Some(range) = self.discards.take() {
            drop(self.notifiers.invalidate(Change { range, cause: Cause::Clear, owner: None }));
        }
    }

    /// Keeps resident pages of the range resident, or lets them go again. Pages that are away come home when they are
    /// touched, and stay then.
    pub fn pin(&self, range: PageRange, pinned: bool) {
        let _gate = self.gate();
        for (id, part) in range.blocks().take_while(|(id, _)| covers(id.page(0))) {
            let mut states = self.table.block(id).lock();
            part.for_each(|index| states.pin(index, pinned));
        }
    }
}

impl<K: Kernel> Events<'_, K> {
    /// The program discarded the range: madvise. What it reads there next are zeroes.
    pub fn removed(&self, range: PageRange) {
        self.forget(range, Cause::Clear);
        self.engine.discards.note(range);
    }

    /// Other memory has come to the range, or its memory is not ours any more: nothing that is known of it is true.
    pub fn replaced(&self, range: PageRange) {
        self.forget(range, Cause::Clear);
    }

    /// The range becomes ours as it is. What is known of a page there is of memory that has gone untold. A page of which
    /// nothing is known has not changed: drivers keep their entries for it.
    pub fn joined(&self, range: PageRange) {
        for (id, block, part) in self.engine.table.used_blocks(range) {
            let known: PageSet = {
                let states = block.lock();
                part.filter(|index| states.get(*index) != PageState::None).collect()
            };
            for run in known.runs() {
                self.replaced(PageRange { start: id.page(run.start), end: id.page(run.end) });
            }
        }
    }

    /// The program unmapped the range.
    pub fn unmapped(&self, range: PageRange) {
        self.forget(range, Cause::Unmap);
        self.engine.hints.clear(range);
    }

    fn forget(&self, range: PageRange, cause: Cause) {
        let change = self.engine.notifiers.invalidate(Change { range, cause, owner: None });
        for (id, block, part) in self.engine.table.used_blocks(range) {
            let pages = PageRange { start: id.page(part.start), end: id.page(part.end) };
            self.engine.record(What::GaveUp, pages.start, pages, 0);
            let mut states = block.lock();
            for index in part {
                self.engine.forget(&mut states, index);
            }
            self.engine.note_gone(&mut states);
        }
        drop(change);
    }

    /// The program moved the range to `to`.
    pub fn remapped(&self, from: PageRange, to: Vpn) {
        self.unmapped(PageRange::new(to, from.nr_pages()));
        let change =
            self.engine.notifiers.invalidate(Change { range: from, cause: Cause::Unmap, owner: None });
        let mut may_be_waited_for = false;
        for (id, block, part) in self.engine.table.used_blocks(from) {
            let pages = PageRange { start: id.page(part.start), end: id.page(part.end) };
            let moved_to = PageRange::new(to.add(pages.start.0 - from.start.0), pages.nr_pages());
            self.engine.record(What::MovedFrom, pages.start, pages, 0);
            self.engine.record(What::MovedTo, moved_to.start, moved_to, 0);
            for index in part {
                let page = id.page(index);
                let mut states = block.lock();
                let state = states.get(index);
                if state == PageState::None {
                    continue;
                }
                may_be_waited_for |= matches!(state, PageState::Fetching { .. } | PageState::Dropped { .. });
                states.set(index, PageState::None);
                self.engine.note_gone(&mut states);
                drop(states);
                self.engine.arrive(page, to.add(page.0 - from.start.0), state);
            }
        }
        if may_be_waited_for {
            // Whoever fetches wakes those who wait where the page is then, and nobody where it was.
            self.engine.kernel.wake(from);
        }
        drop(change);
    }
}

impl<K: Kernel> Engine<K> {
    fn forget(&self, states: &mut States, index: usize) {
        states.pin(index, false);
        let next = match states.get(index) {
            PageState::None => return,
            // The store that reads the slot frees it.
            PageState::Storing { .. } | PageState::Poisoned => PageState::None,
            PageState::System { copy } => {
                copy.inspect(|frame| self.free_frame(*frame));
                self.uncharge(1);
                PageState::None
            }
            PageState::Staged { slot, copy } => {
                copy.inspect(|frame| self.free_frame(*frame));
                self.staging.unstage(SlotRun { start: slot, len: 1 }, Left::Memory);
                PageState::None
            }
            PageState::Exclusive { slot } => {
                self.nr_exclusive.fetch_sub(1, Ordering::Relaxed);
                self.staging.put(SlotRun { start: slot, len: 1 }, Left::Memory);
                PageState::None
            }
            PageState::Device { frame } | PageState::Coherent { frame, .. } => {
                self.forget_frame(frame);
                PageState::None
            }
            PageState::Fetching { ticket, frame } => PageState::Dropped { ticket, frame },
            dropped @ PageState::Dropped { .. } => dropped,
        };
        states.set(index, next);
    }

    /// A page in `state` is at `to` now instead of `from`.
    fn arrive(&self, from: Vpn, to: Vpn, state: PageState) {
        if !covers(to) {
            return;
        }
        let mut state = state;
        match state {
            PageState::Staged { slot, .. } | PageState::Storing { slot } => self.staging.set_owner(slot, to),
            PageState::Exclusive { slot } => {
                // Its device let go of it when it was told that the mapping moves.
                self.nr_exclusive.fetch_sub(1, Ordering::Relaxed);
                self.staging.stage(slot, to);
                state = PageState::Staged { slot, copy: None };
            }
            PageState::Fetching { ticket, .. } | PageState::Dropped { ticket, .. } => {
                self.note_moved(ticket, from, to)
            }
            PageState::None
            | PageState::System { .. }
            | PageState::Device { .. }
            | PageState::Coherent { .. }
            | PageState::Poisoned => {}
        }
        let mut states = self.table.block(to.block()).lock();
        if let PageState::Dropped { ticket, frame } = states.get(to.index()) {
            self.leave_orphan(ticket, frame);
        }
        states.set(to.index(), state);
        if let PageState::Device { frame } = state {
            self.demotion.note(to.block(), &mut states, frame.device);
        }
        self.note_resident(to.block(), &mut states);
    }

    /// The frame's page was given up, and its place is taken: whoever fetches frees the frame.
    pub(crate) fn leave_orphan(&self, ticket: crate::state::Ticket, frame: crate::state::Frame) {
        self.orphans.lock().unwrap_or_else(PoisonError::into_inner).push((ticket, frame));
    }

    fn note_moved(&self, ticket: crate::state::Ticket, from: Vpn, to: Vpn) {
        let mut moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        match moved.iter_mut().find(|moved| moved.ticket == ticket && moved.to == from) {
            Some(moved) => moved.to = to,
            None => moved.push(Moved { ticket, from, to }),
        }
    }
}
