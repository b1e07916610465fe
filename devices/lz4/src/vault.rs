//! Frames and what they hold: who owns a slot when, and all `unsafe` that rests on it.
//!
//! **Slots.** A slot has one owner from [`Slabs::take`] to [`Slabs::give`]. While it is being filled that is the filling
//! thread; the word that is then published, with release ordering, makes the frame the owner. From there on the bytes do
//! not change, until the owner ends and the slot is given back.
//!
//! **Readers.** Who reads a slot has pinned its frame ([`Vault::read`]), and a frame that is pinned does not end: see
//! [`entry`](crate::entry), where the protocol between storing, reading and freeing is.
//!
//! **Stream units.** The slot of several frames begins with a counter of those that have not ended. The last one gives
//! the slot back. The counter is used as an atomic only.
//!
//! Locks: the frame list, then the slabs; both are held for some tens of nanoseconds a page, and never by a reader.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hmm_device::{DeviceError, DevicePfn, PAGE_SIZE};

use crate::budget::Budget;
use crate::classes::Class;
use crate::entry::Entry;
use crate::frames::FrameList;
use crate::pool::Pool;
use crate::slabs::{Slabs, SlotUsage};
use crate::word::{State, Unit};

/// Bytes of the counter at the start of a stream unit's slot.
pub(crate) const COUNTER_BYTES: usize = size_of::<AtomicU64>();
/// Frames that are ended under one hold of the locks.
const FREE_BATCH: usize = 32;

/// Locks; no section under these locks can panic half way.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many of the frames in use hold what.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) same_pages: AtomicU64,
    pub(crate) raw_pages: AtomicU64,
    pub(crate) compressed_pages: AtomicU64,
    /// Bytes in slots, without what rounding up to the slot's size wastes.
    pub(crate) stored_bytes: AtomicU64,
}

/// What a frame was found to hold.
#[derive(Debug)]
pub(crate) enum Content<'a> {
    /// One word, over and over.
    Same(u64),
    /// A unit, or part of one.
    Unit(Pinned<'a>),
}

/// A frame's unit, which stays as long as this lives.
#[derive(Debug)]
pub(crate) struct Pinned<'a> {
    vault: &'a Vault,
    frame: DevicePfn,
    unit: Unit,
    /// Fingerprint of the page.
    pub(crate) tag: u64,
}

impl Pinned<'_> {
    /// The stored bytes of the unit.
    pub(crate) fn bytes(&self) -> &[u8] {
        let header = if self.unit.part.is_some() { COUNTER_BYTES } else { 0 };
        let start = self.unit.offset + header;
        // SAFETY: the slot is in the region, because `Slabs` gave its offset. The frame owns it and has a reader (us),
        // so it does not end before `self` is dropped, and until then nobody writes to its bytes behind the counter.
        unsafe { self.vault.pool.slot(start..start + self.unit.len) }
    }

    /// Where the unit is, and which part of it the frame is.
    pub(crate) const fn unit(&self) -> Unit {
        self.unit
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        self.vault.unpin(self.frame);
    }
}

/// All frames.
#[derive(Debug)]
pub(crate) struct Vault {
    pool: Pool,
    budget: Budget,
    frames: Mutex<FrameList>,
    slabs: Mutex<Slabs>,
    tally: Tally,
}

impl Vault {
    pub(crate) fn new(pool: Pool, budget: Budget, slabs: Slabs) -> Self {
        let (frames, tally) = (Mutex::default(), Tally::default());
        Self { pool, budget, frames, slabs: Mutex::new(slabs), tally }
    }

    pub(crate) const fn budget(&self) -> &Budget {
        &self.budget
    }

    pub(crate) const fn tally(&self) -> &Tally {
        &self.tally
    }

    pub(crate) fn live_frames(&self) -> u64 {
        locked(&self.frames).live()
    }

    pub(crate) fn slot_usage(&self) -> SlotUsage {
        locked(&self.slabs).usage()
    }

    /// Hands out frames, from the front, and returns how many.
    pub(crate) fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        let mut list = locked(&self.frames);
        let granted = frames.iter_mut().map_while(|slot| {
            *slot = list.pop(self.pool.entries(), &self.budget)?;
            Some(())
        });
        granted.count()
    }

    /// Fills an empty frame with a word, over and over.
    ///
    /// # Errors
    /// `Unsupported`: the frame is not empty.
    pub(crate) fn put_same(&self, frame: DevicePfn, word: u64) -> Result<(), DeviceError> {
        self.publish(frame, State::Same, word)
    }

    /// Fills an empty frame with stored bytes of its own. A whole page is taken as it is, less as compressed.
    ///
    /// # Errors
    /// `OutOfMemory`; `Unsupported`: the frame is not empty.
    pub(crate) fn put_page(&self, frame: DevicePfn, bytes: &[u8], tag: u64) -> Result<(), DeviceError> {
        let (offset, len) = (self.take(bytes.len())?, bytes.len());
        // SAFETY: `take` made the slot ours alone; the part is in it.
        unsafe { self.pool.slot_mut(offset..offset + len) }.copy_from_slice(bytes);
        let outcome = self.publish(frame, State::Unit(Unit { offset, len, part: None }), tag);
        if outcome.is_err() {
            locked(&self.slabs).give(offset);
        }
        outcome
    }

    /// Fills empty frames with the pages of one stream unit, and returns how many, from the front. When not all of them
    /// are empty, that is fewer.
    ///
    /// # Errors
    /// `OutOfMemory`: none was filled.
    pub(crate) fn put_stream(
        &self,
        frames: &[DevicePfn],
        bytes: &[u8],
        tags: &[u64],
    ) -> Result<usize, DeviceError> {
        let (offset, len) = (self.take(COUNTER_BYTES + bytes.len())?, bytes.len());
        let start = offset + COUNTER_BYTES;
        // SAFETY: `take` made the slot ours alone; the part is in it.
        unsafe { self.pool.slot_mut(start..start + len) }.copy_from_slice(bytes);
        self.counter(offset).store(frames.len() as u64, Ordering::Relaxed);
        let filled = frames.iter().zip(tags).enumerate().map_while(|(part, (frame, tag))| {
            self.publish(*frame, State::Unit(Unit { offset, len, part: Some(part) }), *tag).ok()
        });
        let filled = filled.count();
        let missing = (frames.len() - filled) as u64;
        if missing > 0 && self.counter(offset).fetch_sub(missing, Ordering::AcqRel) == missing {
            locked(&self.slabs).give(offset);
        }
        Ok(filled)
    }

    /// What the frame holds; `None` when nothing was stored to it.
    pub(crate) fn read(&self, frame: DevicePfn) -> Option<Content<'_>> {
        let (state, tag) = self.entry(frame)?.pin()?;
        if let State::Unit(unit) = state {
            return Some(Content::Unit(Pinned { vault: self, frame, unit, tag }));
        }
        self.unpin(frame);
        Some(Content::Same(tag))
    }

    /// Ends frames. Those that are not in use are left as they are.
    pub(crate) fn free(&self, frames: &[DevicePfn]) {
        for batch in frames.chunks(FREE_BATCH) {
            let mut list = locked(&self.frames);
            let mut slabs = locked(&self.slabs);
            for frame in batch {
                if let Some(state) = self.entry(*frame).and_then(Entry::end) {
                    self.ended(*frame, state, &mut list, &mut slabs);
                }
            }
            self.trim(&mut list, &mut slabs);
        }
        self.give_memory_back();
    }

    /// Lets a frame go that was pinned or claimed; if it was freed meanwhile and this was the last, ends it.
    fn unpin(&self, frame: DevicePfn) {
        let Some(state) = self.entry(frame).and_then(Entry::unpin) else { return };
        {
            let mut list = locked(&self.frames);
            let mut slabs = locked(&self.slabs);
            self.ended(frame, state, &mut list, &mut slabs);
            self.trim(&mut list, &mut slabs);
        }
        self.give_memory_back();
    }

    /// Takes back what belonged to a frame that has just ended.
    fn ended(&self, frame: DevicePfn, state: State, list: &mut FrameList, slabs: &mut Slabs) {
        if let State::Unit(unit) = state {
            let was_last =
                unit.part.is_none() || self.counter(unit.offset).fetch_sub(1, Ordering::AcqRel) == 1;
            if was_last {
                slabs.give(unit.offset);
            }
        }
        self.count(state, u64::wrapping_neg);
        list.push(self.pool.entries(), frame);
    }

    /// When the last frame has ended, keeps no memory that is worth mentioning.
    fn trim(&self, list: &mut FrameList, slabs: &mut Slabs) {
        if list.live() == 0 {
            slabs.drop_spare();
            if let Some(len_bytes) = list.reset(&self.budget) {
                self.pool.release_entries(len_bytes);
            }
        }
    }

    /// Gives the memory of empty slabs back, without holding a lock meanwhile.
    fn give_memory_back(&self) {
        loop {
            let Some((id, len_bytes)) = locked(&self.slabs).next_dying() else { return };
            // SAFETY: a dying slab has no slot in use, hence no frame owns one and nobody reads or fills one; and none
            // is taken from it before it is buried.
            unsafe { self.pool.release_slots(id.offset(), len_bytes) };
            locked(&self.slabs).bury(id, &self.budget);
        }
    }

    /// Takes a slot; the caller owns it.
    fn take(&self, len_bytes: usize) -> Result<usize, DeviceError> {
        let class = Class::for_bytes(len_bytes).ok_or(DeviceError::Unsupported)?;
        locked(&self.slabs).take(class, &self.budget).ok_or(DeviceError::OutOfMemory)
    }

    /// Makes an empty frame the owner of what the state names.
    fn publish(&self, frame: DevicePfn, state: State, tag: u64) -> Result<(), DeviceError> {
        let entry = self.entry(frame).filter(|entry| entry.claim()).ok_or(DeviceError::Unsupported)?;
        if !entry.fill(state, tag) {
            self.unpin(frame);
            return Err(DeviceError::Unsupported);
        }
        self.count(state, |amount| amount);
        Ok(())
    }

    /// Counts a frame; `signed` makes the amounts negative for one that ended.
    fn count(&self, state: State, signed: impl Fn(u64) -> u64) {
        let (pages, bytes) = match state {
            State::Free | State::Empty => return,
            State::Same => (&self.tally.same_pages, 0),
            State::Unit(Unit { len: PAGE_SIZE, part: None, .. }) => (&self.tally.raw_pages, PAGE_SIZE),
            State::Unit(Unit { len, part: None, .. }) => (&self.tally.compressed_pages, len),
            // A unit's bytes count with its first page.
            State::Unit(Unit { len, part: Some(part), .. }) => {
                (&self.tally.compressed_pages, if part == 0 { len } else { 0 })
            }
        };
        pages.fetch_add(signed(1), Ordering::Relaxed);
        self.tally.stored_bytes.fetch_add(signed(bytes as u64), Ordering::Relaxed);
    }

    fn entry(&self, frame: DevicePfn) -> Option<&Entry> {
        self.pool.entries().get(frame.0 as usize)
    }

    /// How many frames of a stream unit have not ended.
    fn counter(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: offsets come from `Slabs`: in the region, and a multiple of 16. The caller owns the slot, or a part of
        // it, and of a slot with a counter everybody uses these bytes only so.
        unsafe { self.pool.counter(offset) }
    }
}
