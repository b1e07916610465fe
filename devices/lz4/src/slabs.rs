//! Which slots are in use: slabs of slots of one size, in a region of addresses twice as large as the capacity.
//!
//! Memory becomes resident page by page, as the slots of a slab are used from the front; each page is charged to the
//! [`Budget`] before its first use. So a slab that has only begun costs little, and a bound in bytes stays exact with
//! any number of classes. A slab that becomes empty is spared for any class, or *dies*: whoever emptied it gives its
//! memory back to the system after the lock is gone ([`next_dying`](Slabs::next_dying),
//! [`bury`](Slabs::bury)), because that takes microseconds.
//!
//! New units go to the fullest slab of their class that has room, so that the others have a chance to become empty.
//! When nothing can be charged any more, a unit may lie in a slot of a larger class, whose memory is there already.
//!
//! All of it is plain data under one lock that is held for some tens of nanoseconds; the memory itself is not touched.

use crate::budget::Budget;
use crate::classes::{Class, MAX_SLOTS, SLAB_BYTES};
use hmm_device::PAGE_SIZE;

/// Empty slabs keep their memory while there are at most so many of them, and one for every
/// [`USED_PER_SPARE`] in use. A page that is released and made anew costs 2 us, as much as a fetch; and a pool that
/// pages stream through empties slabs as fast as it begins others.
const MIN_SPARE: usize = 8;
/// See [`MIN_SPARE`].
const USED_PER_SPARE: usize = 8;
/// Lists of slabs with room for each class: up to a quarter full, up to a half, and so on.
const GROUPS: usize = 4;
const NO_SLAB: u32 = u32::MAX;

/// Number of a slab: its place in the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlabId(u32);

impl SlabId {
    /// Offset of its first byte in the region.
    pub(crate) const fn offset(self) -> usize {
        self.0 as usize * SLAB_BYTES
    }
}

#[derive(Debug)]
struct Slab {
    used: [u64; MAX_SLOTS / 64],
    class: Option<Class>,
    live: u16,
    /// Pages from the front that were used since its memory was last given back.
    touched_pages: u16,
    /// Neighbours in the list that it is in, if any.
    prev: u32,
    next: u32,
}

impl Slab {
    const fn new() -> Self {
        Self {
            used: [0; MAX_SLOTS / 64],
            class: None,
            live: 0,
            touched_pages: 0,
            prev: NO_SLAB,
            next: NO_SLAB,
        }
    }

    /// The list of its class that it belongs to; none when it is full or empty.
    fn group(&self) -> Option<usize> {
        let (nr_slots, live) = (self.class?.nr_slots(), usize::from(self.live));
        (live > 0 && live < nr_slots).then(|| live * GROUPS / nr_slots)
    }

    /// The first slot that is not in use. It must not be full.
    fn first_free(&self) -> usize {
        let word = self.used.iter().position(|word| *word != u64::MAX).unwrap_or(0);
        word * 64 + self.used[word].trailing_ones() as usize
    }
}

/// What the slots in use take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SlotUsage {
    /// Bytes of slots in use.
    pub(crate) slot_bytes: u64,
    /// Bytes of slabs that are resident.
    pub(crate) touched_bytes: u64,
}

/// All slabs.
#[derive(Debug)]
pub(crate) struct Slabs {
    /// Grows up to the capacity it was made with.
    slabs: Vec<Slab>,
    /// Heads of the lists of slabs with room.
    partial: [[u32; GROUPS]; Class::COUNT],
    /// Heads of the lists of empty slabs: with memory, without, and with memory to be given back.
    spare: u32,
    unused: u32,
    dying: u32,
    nr_spare: usize,
    /// Slabs that have a class.
    nr_used: usize,
    usage: SlotUsage,
}

impl Slabs {
    /// Slabs for a region of so many bytes. Allocates all it ever will.
    pub(crate) fn new(region_bytes: usize) -> Self {
        Self {
            slabs: Vec::with_capacity(region_bytes / SLAB_BYTES),
            partial: [[NO_SLAB; GROUPS]; Class::COUNT],
            spare: NO_SLAB,
            unused: NO_SLAB,
            dying: NO_SLAB,
            nr_spare: 0,
            nr_used: 0,
            usage: SlotUsage::default(),
        }
    }

    /// What the slots in use take.
    pub(crate) const fn usage(&self) -> SlotUsage {
        self.usage
    }

    /// Takes a slot of the class, or of a larger one if there is no other way, and returns its offset in the region.
    /// `None` when the budget or the region is full.
    pub(crate) fn take(&mut self, class: Class, budget: &Budget) -> Option<usize> {
        self.take_partial(class, budget)
            .or_else(|| self.take_empty(class, budget))
            .or_else(|| class.and_larger().find_map(|larger| self.take_touched(larger)))
    }

    /// Gives a slot back that [`take`](Self::take) returned the offset of.
    pub(crate) fn give(&mut self, offset: usize) {
        let id = slab_at(offset);
        let slab = &mut self.slabs[id as usize];
        let Some(class) = slab.class else { return };
        let (slot, group) = (offset % SLAB_BYTES / class.slot_bytes(), slab.group());
        debug_assert!(slab.used[slot / 64] & 1 << (slot % 64) != 0, "slot {slot} of slab {id} given twice");
        slab.used[slot / 64] &= !(1 << (slot % 64));
        slab.live -= 1;
        self.usage.slot_bytes -= class.slot_bytes() as u64;
        self.regroup(id, group);
        if self.slabs[id as usize].live == 0 {
            self.retire(id);
        }
    }

    /// An empty slab whose memory has to be given back, and how many bytes of it from the front are resident.
    /// The slab is the caller's until [`bury`](Self::bury).
    pub(crate) fn next_dying(&mut self) -> Option<(SlabId, usize)> {
        let id = self.pop(|slabs| &mut slabs.dying)?;
        Some((SlabId(id), usize::from(self.slabs[id as usize].touched_pages) * PAGE_SIZE))
    }

    /// The memory of a dying slab was given back.
    pub(crate) fn bury(&mut self, id: SlabId, budget: &Budget) {
        let slab = &mut self.slabs[id.0 as usize];
        let touched_bytes = u64::from(std::mem::take(&mut slab.touched_pages)) * PAGE_SIZE as u64;
        self.usage.touched_bytes -= touched_bytes;
        budget.uncharge(touched_bytes);
        self.push(id.0, |slabs| &mut slabs.unused);
    }

    /// Lets the spare slabs die, too.
    pub(crate) fn drop_spare(&mut self) {
        while let Some(id) = self.pop(|slabs| &mut slabs.spare) {
            self.nr_spare -= 1;
            self.push(id, |slabs| &mut slabs.dying);
        }
    }

    /// From the fullest slab that has room.
    fn take_partial(&mut self, class: Class, budget: &Budget) -> Option<usize> {
        let id = self.partial[class.index()].iter().rev().copied().find(|id| *id != NO_SLAB)?;
        self.take_slot(id, Some(budget))
    }

    /// From a slab that was not in use.
    fn take_empty(&mut self, class: Class, budget: &Budget) -> Option<usize> {
        let id = if let Some(id) = self.pop(|slabs| &mut slabs.spare) {
            self.nr_spare -= 1;
            id
        } else if let Some(id) = self.pop(|slabs| &mut slabs.unused) {
            id
        } else {
            self.grow(budget)?
        };
        self.slabs[id as usize].class = Some(class);
        self.nr_used += 1;
        let offset = self.take_slot(id, Some(budget));
        if offset.is_none() {
            // Spare slabs have at least a page and can always give a slot, except of the largest classes.
            self.retire(id);
        }
        offset
    }

    /// From any slab of the class whose memory is resident already.
    fn take_touched(&mut self, class: Class) -> Option<usize> {
        let heads = self.partial[class.index()];
        heads.into_iter().rev().filter(|id| *id != NO_SLAB).find_map(|id| self.take_slot(id, None))
    }

    /// Takes the first free slot, charging its pages if they are not resident; without a budget, only if they are.
    fn take_slot(&mut self, id: u32, budget: Option<&Budget>) -> Option<usize> {
        let slab = &mut self.slabs[id as usize];
        let class = slab.class?;
        let (slot, group) = (slab.first_free(), slab.group());
        let end_page = ((slot + 1) * class.slot_bytes()).div_ceil(PAGE_SIZE);
        let new_pages = end_page.saturating_sub(usize::from(slab.touched_pages));
        if new_pages > 0 {
            let new_bytes = (new_pages * PAGE_SIZE) as u64;
            if !budget?.try_charge(new_bytes) {
                return None;
            }
            // At most 32, the pages of a slab.
            slab.touched_pages += u16::try_from(new_pages).unwrap_or(0);
            self.usage.touched_bytes += new_bytes;
        }
        slab.used[slot / 64] |= 1 << (slot % 64);
        slab.live += 1;
        self.usage.slot_bytes += class.slot_bytes() as u64;
        self.regroup(id, group);
        Some(SlabId(id).offset() + slot * class.slot_bytes())
    }

    /// A slab that was never used.
    fn grow(&mut self, budget: &Budget) -> Option<u32> {
        if self.slabs.len() == self.slabs.capacity() || !budget.try_charge(size_of::<Slab>() as u64) {
            return None;
        }
        self.slabs.push(Slab::new());
        u32::try_from(self.slabs.len() - 1).ok()
    }

    /// An empty slab, in no list: keeps it for the next, or lets it die.
    fn retire(&mut self, id: u32) {
        let slab = &mut self.slabs[id as usize];
        slab.class = None;
        self.nr_used -= 1;
        if slab.touched_pages == 0 {
            self.push(id, |slabs| &mut slabs.unused);
        } else if self.nr_spare < MIN_SPARE + self.nr_used / USED_PER_SPARE {
            self.nr_spare += 1;
            self.push(id, |slabs| &mut slabs.spare);
        } else {
            self.push(id, |slabs| &mut slabs.dying);
        }
    }

    /// Puts a slab into the list that it belongs to now; `before` is the one that it is in.
    fn regroup(&mut self, id: u32, before: Option<usize>) {
        let slab = &self.slabs[id as usize];
        let (now, Some(class)) = (slab.group(), slab.class) else { return };
        if before == now {
            return;
        }
        if let Some(group) = before {
            self.unlink(id, |slabs| &mut slabs.partial[class.index()][group]);
        }
        if let Some(group) = now {
            self.push(id, |slabs| &mut slabs.partial[class.index()][group]);
        }
    }

    fn push(&mut self, id: u32, head: impl Fn(&mut Self) -> &mut u32) {
        let second = std::mem::replace(head(self), id);
        if let Some(second) = self.slabs.get_mut(second as usize) {
            second.prev = id;
        }
        let slab = &mut self.slabs[id as usize];
        (slab.prev, slab.next) = (NO_SLAB, second);
    }

    fn unlink(&mut self, id: u32, head: impl Fn(&mut Self) -> &mut u32) {
        let (prev, next) = (self.slabs[id as usize].prev, self.slabs[id as usize].next);
        match self.slabs.get_mut(prev as usize) {
            Some(prev) => prev.next = next,
            None => *head(self) = next,
        }
        if let Some(next) = self.slabs.get_mut(next as usize) {
            next.prev = prev;
        }
    }

    fn pop(&mut self, head: impl Fn(&mut Self) -> &mut u32) -> Option<u32> {
        let id = *head(self);
        (id != NO_SLAB).then(|| {
            self.unlink(id, head);
            id
        })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the region has fewer than 2^32 slabs")]
const fn slab_at(offset: usize) -> u32 {
    (offset / SLAB_BYTES) as u32
}

#[cfg(test)]
#[path = "slabs_tests.rs"]
mod tests;
