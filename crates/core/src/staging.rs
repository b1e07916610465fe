//! Staging: memory of our own in which a page's bytes are while no mapping of the program's holds them.
//!
//! It is divided into bays, each the size of a block, so that a block leaves the program in one move to the same places
//! of an empty bay. Every slot of a bay is in exactly one of these sets:
//!
//! - `blank`: no memory behind it;
//! - `stock`: memory without meaning, charged: the destination of the next page that comes home;
//! - `spent`: memory without meaning, charged, that nobody may write to;
//! - `staged`: a page of the program (states `Staged` and `Storing`), whose owner is noted;
//! - lent: handed to a fetch or to a driver's migration; comes back by [`put`](Staging::put) or
//!   [`stage`](Staging::stage).
//!
//! A move empties a slot, so pages that come home by move turn stock into blank, and nothing is allocated, zeroed or
//! freed in the kernel. Memory of a huge page is never lent in parts: taking one page out of it costs a split.
//!
//! So what is written to a slot may lie in memory that was the program's. That must not be when the kernel still reads it for
//! somebody: a page in a pipe (`vmsplice(2)`) or in a packet (`MSG_ZEROCOPY`) is referred to, not pinned, and a move takes it
//! out. From when that may be (`stop_reusing`) such memory goes home as it is, or is spent.

mod bay;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::addr::{BLOCK_PAGES, Bay, Slot, SlotRun, Vpn};
use crate::bits::PageSet;

use bay::BayState;

/// What becomes of slots that are given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// There is still memory in them.
    Memory,
    /// Their memory went to the program.
    Nothing,
}

/// Where surplus is taken from, if no huge bay is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// From nowhere.
    Done,
    /// The bay that is nearest to being empty.
    Least,
    /// The bay with the most to give, of what is spent if there is any.
    Most,
}

/// Slots without meaning, to be given back to the system.
#[derive(Debug)]
#[must_use = "its memory is charged until it is released"]
pub(crate) struct Surplus {
    pub(crate) run: SlotRun,
    /// Slots of it with memory.
    pub(crate) nr_pages: usize,
}

#[derive(Debug)]
struct Inner {
    bays: Vec<BayState>,
    /// Bays with staged pages, oldest first.
    loaded: VecDeque<Bay>,
    /// Where stock was taken last.
    lately: Bay,
}

/// All bays.
#[derive(Debug)]
pub(crate) struct Staging {
    inner: Mutex<Inner>,
    /// Whether memory that was the program's becomes stock. Changed under the lock.
    reuses: AtomicBool,
    /// Slots in stock, and spent ones. Read without the lock, by whoever wants to know how much memory is free.
    nr_stock: AtomicUsize,
    nr_spent: AtomicUsize,
    /// Times that stock came or went.
    nr_uses: AtomicUsize,
}

impl Staging {
    pub(crate) fn new(nr_bays: u32, reuses: bool) -> Self {
        let bays = (0..nr_bays).map(|_| BayState::new()).collect();
        let loaded = VecDeque::with_capacity(nr_bays as usize);
        Self {
            inner: Mutex::new(Inner { bays, loaded, lately: bay_number(0) }),
            reuses: AtomicBool::new(reuses),
            nr_stock: AtomicUsize::new(0),
            nr_spent: AtomicUsize::new(0),
            nr_uses: AtomicUsize::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory that was the program's is not lent any more, but for what is lent already.
    pub(crate) fn stop_reusing(&self) {
        let mut inner = self.lock();
        if !self.reuses.swap(false, Ordering::Relaxed) {
            return;
        }
        for bay in &mut inner.bays {
            let spent = bay.stock.and(&bay.foreign);
            spent.runs().flatten().for_each(|index| bay.stock.remove(index));
            self.nr_stock.fetch_sub(spent.len(), Ordering::Relaxed);
            self.nr_spent.fetch_add(spent.len(), Ordering::Relaxed);
            bay.spent = bay.spent.or(&spent);
        }
    }

    /// Slots in stock.
    pub(crate) fn nr_stock(&self) -> usize {
        self.nr_stock.load(Ordering::Relaxed)
    }

    /// Spent slots.
    pub(crate) fn nr_spent(&self) -> usize {
        self.nr_spent.load(Ordering::Relaxed)
    }

    /// Changes whenever stock came or went.
    pub(crate) fn nr_uses(&self) -> usize {
        self.nr_uses.load(Ordering::Relaxed)
    }

    /// Bays that wait to be stored.
    pub(crate) fn nr_loaded(&self) -> usize {
        self.lock().loaded.len()
    }

    /// Lends a run of up to `want` stock slots, at least one.
    pub(crate) fn take_stock(&self, want: usize) -> Option<SlotRun> {
        let mut inner = self.lock();
        // A stray wants one: of the bay that it was of lately, as long as that has some. To look at all bays was 2.7 % of a run of
        // strays (`perf`).
        if want == 1
            && let Some(slot) = inner.single_stock()
        {
            inner.bay(slot.bay()).stock.remove(slot.index());
            self.nr_stock.fetch_sub(1, Ordering::Relaxed);
            self.nr_uses.fetch_add(1, Ordering::Relaxed);
            return Some(SlotRun { start: slot, len: 1 });
        }
        let mut best: Option<(SlotRun, usize)> = None;
        for (number, bay) in
            inner.bays.iter().enumerate().filter(|(_, bay)| !bay.huge && !bay.stock.is_empty())
        {
            let in_stock = bay.stock.len();
            for run in bay.stock.runs() {
                let len = run.len().min(want);
                // The longest run; among equals the bay that is nearest to being empty.
                if best.is_none_or(|(best, stock)| len > best.len || (len == best.len && in_stock < stock)) {
                    best = Some((SlotRun { start: bay_number(number).slot(run.start), len }, in_stock));
                }
                if len == want {
                    break;
                }
            }
        }
        let (run, _) = best?;
        inner.lately = run.start.bay();
        let bay = inner.bay(run.start.bay());
        indices(run).for_each(|index| bay.stock.remove(index));
        self.nr_stock.fetch_sub(run.len, Ordering::Relaxed);
        self.nr_uses.fetch_add(1, Ordering::Relaxed);
        Some(run)
    }

    /// Lends a run of up to `want` blank slots, at least one. The caller has charged `want` pages.
    /// The last empty bay is kept for eviction as long as there is anything else.
    pub(crate) fn take_blank(&self, want: usize) -> Option<SlotRun> {
        let mut inner = self.lock();
        let nr_empty = inner.bays.iter().filter(|bay| bay.is_empty()).count();
        let used = inner.longest_blank(want, false);
        let run = match used {
            Some(run) if run.len >= want || nr_empty <= 1 => run,
            shorter => inner.longest_blank(want, true).or(shorter)?,
        };
        let bay = inner.bay(run.start.bay());
        indices(run).for_each(|index| bay.blank.remove(index));
        Some(run)
    }

    /// Takes back slots that were lent.
    pub(crate) fn put(&self, run: SlotRun, left: Left) {
        if run.len == 0 {
            return;
        }
        let mut inner = self.lock();
        let bay = inner.bay(run.start.bay());
        match left {
            Left::Memory => {
                let reuses = self.reuses.load(Ordering::Relaxed);
                let (mut nr_stock, mut nr_spent) = (0, 0);
                for index in indices(run) {
                    let (set, nr) = match bay.foreign.contains(index) && !reuses {
                        true => (&mut bay.spent, &mut nr_spent),
                        false => (&mut bay.stock, &mut nr_stock),
                    };
                    set.insert(index);
                    *nr += 1;
                }
                self.nr_stock.fetch_add(nr_stock, Ordering::Relaxed);
                self.nr_spent.fetch_add(nr_spent, Ordering::Relaxed);
                self.nr_uses.fetch_add(1, Ordering::Relaxed);
            }
            Left::Nothing => {
                for index in indices(run) {
                    bay.blank.insert(index);
                    bay.foreign.remove(index);
                }
                // What is left of a huge page that a part was taken of are small ones.
                bay.huge = false;
            }
        }
    }

    /// Reserves an empty bay for an eviction.
    pub(crate) fn reserve_bay(&self) -> Option<Bay> {
        let mut inner = self.lock();
        let number = inner.bays.iter().position(BayState::is_empty)?;
        inner.bays[number].reserved = true;
        Some(bay_number(number))
    }

    /// Takes the blank slots at `part` of a bay, as places for pages that a driver migrates; bays that are in use anyway
    /// come first. End with [`lend_part`](Self::lend_part).
    pub(crate) fn reserve_part(&self, part: Range<usize>) -> Option<Bay> {
        let mut inner = self.lock();
        let fits = |bay: &BayState| {
            !bay.reserved && !bay.huge && bay.blank.next_outside(part.start).is_none_or(|out| out >= part.end)
        };
        // A whole block may be a huge page, which stays one only in a bay that has not had small ones: those begin at the front.
        let number = if part.len() == BLOCK_PAGES {
            inner.bays.iter().rposition(fits)?
        } else {
            let used = inner.bays.iter().position(|bay| !bay.is_empty() && fits(bay));
            used.or_else(|| inner.bays.iter().position(fits))?
        };
        part.for_each(|index| inner.bays[number].blank.remove(index));
        Some(bay_number(number))
    }

    /// Says what became of places from [`reserve_part`](Self::reserve_part): those in `filled` hold pages of the block
    /// that begins at `first_page`, and are lent to whoever migrates them. Whether they are one huge page is said by `huge`.
    pub(crate) fn lend_part(
        &self,
        bay: Bay,
        part: Range<usize>,
        filled: &PageSet,
        huge: bool,
        first_page: Vpn,
    ) {
        let mut inner = self.lock();
        let state = inner.bay(bay);
        state.huge |= huge;
        for index in part {
            if filled.contains(index) {
                state.owners[index] = first_page.add(index as u64);
                state.foreign.insert(index);
            } else {
                state.blank.insert(index);
            }
        }
    }

    /// Lends the slot of a staged page to whoever migrates it. Comes back by [`put`](Self::put) or
    /// [`stage`](Self::stage).
    pub(crate) fn lend(&self, slot: Slot) {
        self.lock().bay(slot.bay()).staged.remove(slot.index());
    }

    /// Lends a bay of which all slots are staged.
    pub(crate) fn lend_bay(&self, bay: Bay) {
        self.lock().bay(bay).staged = PageSet::EMPTY;
    }

    /// Lends a bay that is one huge page, all of it stock.
    pub(crate) fn take_huge_stock(&self) -> Option<Bay> {
        let mut inner = self.lock();
        let is_whole = |bay: &BayState| bay.huge && bay.stock.len() == BLOCK_PAGES;
        let number = inner.bays.iter().position(is_whole)?;
        inner.bays[number].stock = PageSet::EMPTY;
        self.nr_stock.fetch_sub(BLOCK_PAGES, Ordering::Relaxed);
        self.nr_uses.fetch_add(1, Ordering::Relaxed);
        Some(bay_number(number))
    }

    /// Lends an empty bay, to be filled with a huge page; the caller has charged it. The last one is kept for eviction.
    pub(crate) fn take_empty(&self) -> Option<Bay> {
        let mut inner = self.lock();
        let nr_empty = inner.bays.iter().filter(|bay| bay.is_empty()).count();
        let number = inner.bays.iter().rposition(BayState::is_empty).filter(|_| nr_empty > 1)?;
        inner.bays[number].blank = PageSet::EMPTY;
        Some(bay_number(number))
    }

    /// Says whether a bay that is lent is one huge page.
    pub(crate) fn set_huge(&self, bay: Bay, huge: bool) {
        self.lock().bay(bay).huge = huge;
    }

    /// Whether all slots of the bay are those of the block that begins at `first_page`, in order.
    pub(crate) fn is_owned(&self, bay: Bay, first_page: Vpn) -> bool {
        let mut inner = self.lock();
        (0..).zip(inner.bay(bay).owners.iter()).all(|(index, owner)| *owner == first_page.add(index))
    }

    /// Ends a reservation: the slots in `staged` hold the pages of the block that begins at `first_page`.
    pub(crate) fn load(&self, bay: Bay, staged: PageSet, huge: bool, first_page: Vpn) {
        let mut inner = self.lock();
        let state = inner.bay(bay);
        state.reserved = false;
        state.huge = huge;
        for index in staged.runs().flatten() {
            state.blank.remove(index);
            state.staged.insert(index);
            state.foreign.insert(index);
            state.owners[index] = first_page.add(index as u64);
        }
        inner.enqueue(bay);
    }

    /// A lent slot now holds a page of the program, ready to be mapped.
    pub(crate) fn stage(&self, slot: Slot, owner: Vpn) {
        let mut inner = self.lock();
        let state = inner.bay(slot.bay());
        state.staged.insert(slot.index());
        state.owners[slot.index()] = owner;
        inner.enqueue(slot.bay());
    }

    /// The program has a staged page back, or gave it up.
    pub(crate) fn unstage(&self, run: SlotRun, left: Left) {
        {
            let mut inner = self.lock();
            let bay = inner.bay(run.start.bay());
            indices(run).for_each(|index| bay.staged.remove(index));
        }
        self.put(run, left);
    }

    /// A staged page has moved to another address.
    pub(crate) fn set_owner(&self, slot: Slot, owner: Vpn) {
        self.lock().bay(slot.bay()).owners[slot.index()] = owner;
    }

    /// The address of a staged page.
    pub(crate) fn owner(&self, slot: Slot) -> Vpn {
        self.lock().bay(slot.bay()).owners[slot.index()]
    }

    /// The bay that has waited longest. It is the caller's until [`requeue`](Self::requeue).
    pub(crate) fn next_loaded(&self) -> Option<Bay> {
        self.lock().loaded.pop_front()
    }

    /// Pages staged in the bay.
    pub(crate) fn staged(&self, bay: Bay) -> PageSet {
        self.lock().bay(bay).staged
    }

    /// Whether a huge page is in the bay.
    pub(crate) fn is_huge(&self, bay: Bay) -> bool {
        self.lock().bay(bay).huge
    }

    /// Ends the work on a bay from [`next_loaded`](Self::next_loaded); it waits again if pages are left.
    pub(crate) fn requeue(&self, bay: Bay) {
        let mut inner = self.lock();
        inner.bay(bay).queued = false;
        if !inner.bay(bay).staged.is_empty() {
            inner.enqueue(bay);
        }
    }

    /// Takes stock and what is spent out, to be given back to the system. End with [`put`](Self::put) and [`Left::Nothing`].
    ///
    /// All of it in one stretch, which may go over blank slots: what giving back costs is a call of its own, and a division
    /// of the mapping, however long the stretch is.
    pub(crate) fn take_surplus(&self, which: Which) -> Option<Surplus> {
        let mut inner = self.lock();
        let with_memory =
            || inner.bays.iter().enumerate().filter(|(_, bay)| !bay.idle().is_empty() && !bay.reserved);
        let done = with_memory().find(|(_, bay)| bay.huge && bay.staged.is_empty());
        let small = || with_memory().filter(|(_, bay)| !bay.huge);
        let (number, _) = done.or_else(|| match which {
            Which::Done => None,
            Which::Least => small().min_by_key(|(_, bay)| bay.idle().len()),
            Which::Most => small().max_by_key(|(_, bay)| (bay.spent.len(), bay.stock.len())),
        })?;
        let bay = &mut inner.bays[number];
        let (stretch, nr_pages) = bay.fullest_stretch()?;
        let nr_spent = stretch.clone().filter(|index| bay.spent.contains(*index)).count();
        for index in stretch.clone() {
            bay.stock.remove(index);
            bay.spent.remove(index);
            bay.blank.remove(index);
        }
        if bay.idle().is_empty() && bay.staged.is_empty() {
            bay.huge = false;
        }
        self.nr_spent.fetch_sub(nr_spent, Ordering::Relaxed);
        self.nr_stock.fetch_sub(nr_pages - nr_spent, Ordering::Relaxed);
        let run = SlotRun { start: bay_number(number).slot(stretch.start), len: stretch.len() };
        Some(Surplus { run, nr_pages })
    }
}

impl Inner {
    /// The longest run, up to `want`, of blank slots in bays that are empty, or in bays that are not.
    fn longest_blank(&self, want: usize, in_empty: bool) -> Option<SlotRun> {
        let mut best: Option<SlotRun> = None;
        let bays = self.bays.iter().enumerate();
        for (number, bay) in bays.filter(|(_, bay)| !bay.reserved && !bay.huge && bay.is_empty() == in_empty)
        {
            for run in bay.blank.runs() {
                let len = run.len().min(want);
                if best.is_none_or(|best| len > best.len) {
                    best = Some(SlotRun { start: bay_number(number).slot(run.start), len });
                }
            }
        }
        best
    }

    fn bay(&mut self, bay: Bay) -> &mut BayState {
        &mut self.bays[bay.0 as usize]
    }

    /// A slot of stock in the bay that some was taken of last.
    fn single_stock(&self) -> Option<Slot> {
        let bay = &self.bays[self.lately.0 as usize];
        let index = if bay.huge { None } else { bay.stock.next(0) };
        index.map(|index| self.lately.slot(index))
    }

    fn enqueue(&mut self, bay: Bay) {
        let state = self.bay(bay);
        if !state.queued && !state.staged.is_empty() {
            state.queued = true;
            self.loaded.push_back(bay);
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "there are fewer than 2^11 bays")]
const fn bay_number(number: usize) -> Bay {
    Bay(number as u32)
}

fn indices(run: SlotRun) -> Range<usize> {
    run.start.index()..run.start.index() + run.len
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bay that got these pages, all of which went on.
    fn stored(staging: &Staging, pages: impl IntoIterator<Item = usize>) -> Bay {
        let bay = staging.reserve_bay().unwrap();
        let set: PageSet = pages.into_iter().collect();
        staging.load(bay, set, false, Vpn(0));
        for run in set.runs() {
            staging.unstage(SlotRun { start: bay.slot(run.start), len: run.len() }, Left::Memory);
        }
        bay
    }

    #[test]
    fn scattered_stock_is_given_back_in_one_stretch() {
        let staging = Staging::new(2, false);
        let bay = stored(&staging, (0..BLOCK_PAGES).filter(|index| index % 3 == 1));
        let surplus = staging.take_surplus(Which::Most).unwrap();
        assert_eq!((surplus.run.start, surplus.run.len), (bay.slot(1), 511));
        assert_eq!(surplus.nr_pages, 171);
        assert_eq!(staging.nr_spent(), 0);
        assert!(staging.reserve_part(2..3).is_none_or(|other| other != bay), "blank slots of it are taken");
        staging.put(surplus.run, Left::Nothing);
        assert!(staging.lock().bay(bay).is_empty());
    }

    /// Somebody may still read it.
    #[test]
    fn memory_that_was_the_programs_is_not_lent() {
        let staging = Staging::new(2, true);
        let bay = stored(&staging, 0..4);
        assert_eq!((staging.nr_spent(), staging.nr_stock()), (0, 4));
        let lent = staging.take_stock(1).unwrap();
        staging.stop_reusing();
        assert_eq!((staging.nr_spent(), staging.nr_stock()), (3, 0));
        staging.put(lent, Left::Memory);
        assert_eq!((staging.nr_spent(), staging.nr_stock()), (4, 0));
        assert!(staging.take_stock(1).is_none());
        let fresh = staging.take_blank(4).unwrap();
        staging.put(fresh, Left::Memory);
        assert_eq!(staging.take_stock(8), Some(fresh));
        staging.put(fresh, Left::Memory);
        // What is of no use goes back first.
        let surplus = staging.take_surplus(Which::Most).unwrap();
        assert!(surplus.run.start.bay() == bay && surplus.nr_pages >= 4, "{surplus:?}");
        staging.put(surplus.run, Left::Nothing);
        // A slot forgets what was in it.
        let again = staging.take_blank(BLOCK_PAGES).unwrap();
        staging.put(again, Left::Memory);
        assert_eq!(staging.nr_spent(), 0);
    }

    #[test]
    fn a_huge_page_that_was_the_programs_is_not_lent() {
        let staging = Staging::new(2, false);
        let bay = staging.reserve_bay().unwrap();
        let mut all = PageSet::EMPTY;
        all.insert_range(0..BLOCK_PAGES);
        staging.load(bay, all, true, Vpn(0));
        staging.unstage(SlotRun { start: bay.slot(0), len: BLOCK_PAGES }, Left::Memory);
        assert!(staging.take_huge_stock().is_none());
        let surplus = staging.take_surplus(Which::Done).unwrap();
        assert_eq!(surplus.nr_pages, BLOCK_PAGES);
    }

    #[test]
    fn a_stretch_ends_at_what_is_in_use() {
        let staging = Staging::new(2, false);
        let bay = stored(&staging, (0..100).filter(|index| index % 2 == 0));
        staging.stage(bay.slot(30), Vpn(30));
        staging.lock().bay(bay).spent.remove(30);
        let surplus = staging.take_surplus(Which::Most).unwrap();
        assert_eq!((surplus.run.start, surplus.run.len, surplus.nr_pages), (bay.slot(32), 67, 34));
        staging.put(surplus.run, Left::Nothing);
        let rest = staging.take_surplus(Which::Least).unwrap();
        assert_eq!((rest.run.start, rest.run.len, rest.nr_pages), (bay.slot(0), 29, 15));
        staging.put(rest.run, Left::Nothing);
        assert!(staging.take_surplus(Which::Most).is_none());
    }
}
