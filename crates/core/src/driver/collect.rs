//! Setup: pages of a range are taken from the program, and marked.

use std::ops::Range;

use crate::addr::{BLOCK_PAGES, Bay, BlockId, PageRange};
use crate::bits::PageSet;
use crate::driver::{Collected, Entry, MAX_PAGES, Migration, Select, SetupError, Skip, Source};
use crate::engine::Engine;
use crate::kernel::{Kernel, Stop};
use crate::notifier::{Cause, Change, Owner};
use crate::reclaim::Reclaimed;
use crate::staging::Which;
use crate::state::{Frame, PageState};
use crate::table::{States, covers};

/// Steps of reclaim that a setup makes to get staging memory.
const MAX_STORES: usize = 64;

impl<K: Kernel> Engine<K> {
    /// Collects the pages of a range that `select` names, and takes them from the program. The caller keeps the rules of
    /// the [module](crate::driver).
    ///
    /// # Errors
    /// [`SetupError::Range`]. Pages that cannot be collected are no error: their entries say why.
    pub fn migrate_setup(
        &self,
        range: PageRange,
        select: Select,
        owner: Owner,
    ) -> Result<Migration<'_, K, Collected>, SetupError> {
        let change = Change { range, cause: Cause::Migrate, owner: Some(owner) };
        self.collect(select, owner, change)
    }

    /// The same, for whatever reason.
    pub(crate) fn collect(
        &self,
        select: Select,
        owner: Owner,
        change: Change,
    ) -> Result<Migration<'_, K, Collected>, SetupError> {
        let range = change.range;
        let is_covered = range.start < range.end && covers(crate::addr::Vpn(range.end.0 - 1));
        if !is_covered || range.nr_pages() > MAX_PAGES as u64 {
            return Err(SetupError::Range(range));
        }
        if select.contains(Select::SYSTEM) && !select.contains(Select::KEEP_EXCLUSIVE) {
            self.revoke(range);
        }
        self.notice_copies(range);
        let mut migration = Migration::new(self, range, owner);
        // In front of the change, because making room for them may take its time.
        let places = [0, 1].map(|number| {
            let (id, part) = range.blocks().nth(number).filter(|_| select.contains(Select::SYSTEM))?;
            self.places_for(id, part)
        });
        let change = self.notifiers.invalidate(change);
        for ((id, part), places) in range.blocks().zip(places) {
            migration.collect_block(id, part, select, places);
        }
        // Nobody has entries for them any more, and nobody can make any.
        drop(change);
        if select.contains(Select::FAULT) {
            migration.bring();
        }
        Ok(migration)
    }

    /// Places for the block's pages that can be moved out now.
    fn places_for(&self, id: BlockId, part: Range<usize>) -> Option<Places> {
        let hull = movable_hull(&self.table.get(id)?.lock(), part)?;
        Some(Places { bay: self.take_places(hull.clone())?, hull })
    }

    /// Slots of one bay, at the same places as the pages. Makes room if need be.
    pub(super) fn take_places(&self, part: Range<usize>) -> Option<Bay> {
        for _ in 0..MAX_STORES {
            if let Some(bay) = self.staging.reserve_part(part.clone()) {
                return Some(bay);
            }
            if let Some(surplus) = self.staging.take_surplus(Which::Least) {
                self.release(surplus);
            } else if self.store(None) != Reclaimed::Progress {
                return None;
            }
        }
        None
    }
}

/// Slots of a bay that pages of a block will be moved to.
struct Places {
    bay: Bay,
    hull: Range<usize>,
}

/// The smallest run that holds all pages that could be moved out.
fn movable_hull(states: &States, part: Range<usize>) -> Option<Range<usize>> {
    let is_movable = |index: &usize| states.is_system(*index) && !states.is_pinned(*index);
    let first = part.clone().find(is_movable)?;
    let last = part.rev().find(is_movable)?;
    Some(first..last + 1)
}

impl<K: Kernel> Migration<'_, K, Collected> {
    fn collect_block(&mut self, id: BlockId, part: Range<usize>, select: Select, places: Option<Places>) {
        let engine = self.engine;
        let gate = engine.gate();
        let mut states = engine.table.block(id).lock();
        let has_places = places.is_some();
        let moved = places
            .map_or(PageSet::EMPTY, |places| engine.take_out(&mut states, id, places.hull, places.bay).0);
        if select.contains(Select::COHERENT) {
            self.unmap_own(&mut states, id, part.clone());
        }
        let is_whole = part.len() == BLOCK_PAGES && select.contains(Select::COMPOUND);
        if is_whole && self.collect_huge(&mut states, id, select, &moved) {
            return;
        }
        let mut extent = PageRange::new(id.page(part.start), 0);
        for index in part {
            let page = id.page(index);
            if !extent.contains(page) {
                extent = engine.kernel.extent(page);
            }
            let is_managed = extent.contains(page);
            let mut entry = Entry::new(page, Source::Skipped(Skip::NotSelected));
            self.collect_page(&mut states, index, select, is_managed, &mut entry);
            if let (PageState::Storing { slot }, Source::System) = (states.get(index), entry.source)
                && !moved.contains(index)
            {
                engine.staging.lend(slot);
            }
            if entry.source == Source::Skipped(Skip::Busy) && states.is_system(index) && !has_places {
                entry.source = Source::Skipped(Skip::NoStaging);
            }
            self.entries.push(entry);
        }
        drop(states);
        drop(gate);
    }

    /// Takes what is mapped from the driver's own coherent frames back to these.
    fn unmap_own(&self, states: &mut States, id: BlockId, part: Range<usize>) {
        let mut wanted = PageSet::EMPTY;
        for index in part.filter(|index| !states.is_pinned(*index)) {
            if let PageState::Coherent { frame, .. } = states.get(index)
                && self.is_own(frame)
            {
                wanted.insert(index);
            }
        }
        // Those that are left are told by their entries.
        let _ = self.engine.unmap_frames(states, id, &wanted);
    }

    fn is_own(&self, frame: Frame) -> bool {
        self.engine.registry.owner(frame.device) == Some(self.owner)
    }

    /// Marks a page, if it is wanted and can be.
    fn collect_page(
        &self,
        states: &mut States,
        index: usize,
        select: Select,
        is_managed: bool,
        entry: &mut Entry,
    ) {
        let wants = |kind| select.contains(kind);
        entry.source = match states.get(index) {
            PageState::None if !is_managed => Source::Skipped(Skip::Unmanaged),
            PageState::None if wants(Select::SYSTEM) => Source::Hole,
            PageState::Staged { slot, copy } if wants(Select::SYSTEM) => {
                states.set(index, PageState::Storing { slot });
                entry.slot = slot;
                entry.copy = copy;
                Source::System
            }
            PageState::System { .. } if wants(Select::SYSTEM) => Source::Skipped(Skip::Busy),
            PageState::None | PageState::Staged { .. } | PageState::System { .. } => {
                Source::Skipped(Skip::NotSelected)
            }
            PageState::Device { frame } => match self.engine.registry.owner(frame.device) {
                Some(owner) if owner == self.owner && wants(self.engine.select_of(frame)) => {
                    states.set(index, PageState::Fetching { ticket: self.ticket, frame });
                    self.engine.source_of(frame)
                }
                Some(owner) if owner == self.owner => Source::Skipped(Skip::NotSelected),
                Some(_) | None if wants(Select::SYSTEM | Select::FAULT) => {
                    states.set(index, PageState::Fetching { ticket: self.ticket, frame });
                    entry.from = Some(frame);
                    Source::Skipped(Skip::InFlight)
                }
                Some(_) => Source::Skipped(Skip::NotSelected),
                None => Source::Skipped(Skip::Evicted),
            },
            // The own ones that are wanted have been unmapped, as far as they can be.
            PageState::Coherent { frame, .. } if wants(Select::COHERENT) && self.is_own(frame) => {
                Source::Skipped(Skip::Busy)
            }
            PageState::Coherent { .. } => Source::Skipped(Skip::NotSelected),
            PageState::Exclusive { .. } => Source::Skipped(Skip::Exclusive),
            PageState::Fetching { .. } | PageState::Dropped { .. } | PageState::Storing { .. } => {
                Source::Skipped(Skip::InFlight)
            }
            PageState::Poisoned => Source::Skipped(Skip::Poisoned),
        };
    }
}

impl<K: Kernel> Engine<K> {
    /// What a page in the frame is to a migration.
    pub(super) fn source_of(&self, frame: Frame) -> Source {
        if self.registry.is_coherent(frame.device) { Source::Coherent(frame) } else { Source::Private(frame) }
    }

    /// What selects a page in the frame.
    pub(super) fn select_of(&self, frame: Frame) -> Select {
        if self.registry.is_coherent(frame.device) { Select::COHERENT } else { Select::PRIVATE }
    }

    /// Moves the block's resident pages in `hull` to the places that were taken in `bay`; they are `Staged` then, but not
    /// in the bay's queue. Returns which, and why others were not.
    pub(super) fn take_out(
        &self,
        states: &mut States,
        id: BlockId,
        hull: Range<usize>,
        bay: Bay,
    ) -> (PageSet, Option<Stop>) {
        let mut wanted = PageSet::EMPTY;
        hull.clone()
            .filter(|index| states.is_system(*index) && !states.is_pinned(*index))
            .for_each(|index| wanted.insert(index));
        let swept = self.sweep(id, wanted.runs(), bay);
        let mut scan = self.kernel.scan_bay(bay);
        scan.present = scan.present.and(&wanted);
        let moved = self.account_moved(states, &scan, &swept, bay);
        let is_huge = scan.huge && moved.len() == BLOCK_PAGES;
        self.staging.lend_part(bay, hull, &moved, is_huge, id.page(0));
        self.stats().pgsteal.fetch_add(moved.len() as u64, std::sync::atomic::Ordering::Relaxed);
        (moved, swept.stop)
    }
}
