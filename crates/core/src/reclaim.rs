//! Making memory free: blocks leave the program for staging, wait there for their second chance, and go on to a device.
//!
//! Blocks leave in the order in which they came, whole, in one move with one flush of the TLBs. Staging holds as many
//! as half of its bays before the oldest is migrated. Memory that a bay's pages leave behind is spent, and goes back to the
//! system; what pages come home through is stock, and goes back when it is of no use.

use std::sync::atomic::Ordering;

use crate::addr::{BLOCK_PAGES, Bay, BlockId, PageRange, SlotRun, Vpn};
use crate::bits::PageSet;
use crate::engine::{Engine, HomeBy};
use crate::fetch::DEMAND_PAGES;
use crate::kernel::{BayScan, Kernel, Stop};
use crate::migrate::{Collected, MIGRATE_PAGES, Migration};
use crate::notifier::{Cause, Change};
use crate::staging::{Left, Surplus, Which};
use crate::state::PageState;
use crate::table::States;
use crate::trace::{What, Why};

/// What one step of reclaim achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "`Full` and `Nothing` mean that waiting alone does not help"]
pub enum Reclaimed {
    /// Pages are on their way or free; another step may do more.
    Progress,
    /// There is nothing to take out now: all of it is pinned, or in other threads' hands.
    Nothing,
    /// No device takes another page.
    Full,
}

/// What came of moving runs of a block's pages out.
#[derive(Default)]
pub(crate) struct Swept {
    /// Pages that were there and are no longer.
    moved: PageSet,
    /// Where no page is left.
    clean: PageSet,
    /// Why others were left, the last reason.
    pub(crate) stop: Option<Stop>,
}

/// Blocks that one step tries to take out before it gives up.
const EVICT_TRIES: usize = 64;
/// A process with fewer pages than this waits for others that share its budget, rather than take its own out.
const POOR_PAGES: u64 = 256;
/// One in so many of a process's pages is given back when another one asks.
const GIVE_SHARE: u64 = 8;
/// Steps of reclaim in which that is tried at least.
const SHARE_STEPS: u64 = 64;
/// Calls of [`Engine::trim_idle`] after which stock that was not used is given back: a second of the runtime's.
const IDLE_CALLS: u32 = 50;
/// Stock that is kept for fetches when pages come home by copy.
const COPY_STOCK_PAGES: usize = 4 * DEMAND_PAGES;
/// Spent pages that are given back without need: what that costs is a call of its own.
const SPENT_PAGES: usize = BLOCK_PAGES / 2;

impl<K: Kernel> Engine<K> {
    /// Pages that can be used without reclaim.
    pub fn free_pages(&self) -> u64 {
        self.kernel.ledger().free() + self.nr_stock()
    }

    /// Whether background reclaim has work: fewer pages than the low mark are free, or, once it has begun
    /// (`going`), fewer than the high mark.
    pub fn wants_reclaim(&self, going: bool) -> bool {
        let mark = if going { self.config.high_pages } else { self.config.low_pages };
        self.free_pages() < mark && !self.is_poor()
    }

    /// Whether fewer pages than the low mark are free, whoever has them.
    pub fn is_short(&self) -> bool {
        self.free_pages() < self.config.low_pages
    }

    /// Whether the budget was made larger, and is not yet what was set again.
    pub fn is_granted(&self) -> bool {
        self.kernel.ledger().granted() > 0
    }

    /// Whether the budget is larger than it has to be for pages that cannot leave.
    pub fn is_overdrawn(&self) -> bool {
        self.kernel.ledger().overdrawn() > 0
    }

    /// Tries whether pages of a block can leave by now that could not, if the budget is larger for them. To be called now and then,
    /// by a background thread.
    pub fn try_stuck(&self) {
        if self.is_granted() && !self.is_overdrawn() {
            self.evict_one_of(1, Why::Low);
        }
    }

    /// Makes the budget again what was set, as far as pages can leave, and more is free than the high mark.
    pub fn take_back(&self) {
        let ledger = self.kernel.ledger();
        loop {
            let due = ledger.overdrawn().min(self.free_pages().saturating_sub(self.config.high_pages));
            if due == 0 || self.kernel.share().take_back(due) {
                return;
            }
            // Some of it is stock.
            if !self.give_stock_back() {
                return;
            }
        }
    }

    /// Whether another has much more than we, and we next to nothing: taking out what little we have would only bring it
    /// back. Who has most is never poor, so there is always somebody who gives.
    fn is_poor(&self) -> bool {
        let own = self.kernel.share().charged();
        own < POOR_PAGES && own * 2 < self.kernel.ledger().largest_share()
    }

    /// Tells those who share the budget that we found no memory free.
    pub fn ask_others(&self) {
        self.own_asked.fetch_add(1, Ordering::Relaxed);
        self.kernel.ledger().ask();
    }

    /// Gives memory back if another process that shares the budget has asked since the last time, as long as `go_on` says so. To
    /// be called now and then, by a background thread.
    pub fn share(&self, go_on: &dyn Fn() -> bool) {
        let asked = self.kernel.ledger().asked();
        let others = asked.saturating_sub(self.own_asked.load(Ordering::Relaxed));
        if self.others_asked.swap(others, Ordering::Relaxed) >= others || self.is_poor() {
            return;
        }
        let own = self.kernel.share().charged();
        let goal = own - own / GIVE_SHARE;
        // The program may take as much meanwhile.
        let mut nr_left = SHARE_STEPS + own / GIVE_SHARE / (MIGRATE_PAGES as u64 / 8);
        while self.kernel.share().charged() > goal && nr_left > 0 && go_on() {
            nr_left -= 1;
            if !self.give_stock_back() && self.reclaim() != Reclaimed::Progress {
                return;
            }
        }
    }

    /// Gives stock back that was not used since this was called a few times, where there is no budget: nobody else
    /// does there. To be called now and then, by a background thread.
    pub fn trim_idle(&self) {
        if !self.config.zero_page || self.nr_stock() == 0 {
            return;
        }
        let now = self.staging.nr_uses();
        let is_idle = {
            let mut idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *idle = if idle.0 == now { (now, idle.1 + 1) } else { (now, 0) };
            idle.1 >= IDLE_CALLS
        };
        while is_idle && self.give_stock_back() {}
    }

    /// Does one step: takes a block out of the program, or migrates some pages of the bay that has waited longest.
    pub fn reclaim(&self) -> Reclaimed {
        self.reclaim_for(None)
    }

    /// The same, also of one that has next to nothing.
    pub fn reclaim_own(&self) -> Reclaimed {
        self.reclaim_any(None)
    }

    /// The same, of who serves a fault at a page.
    pub(crate) fn reclaim_for(&self, fault: Option<Vpn>) -> Reclaimed {
        if self.is_poor() { Reclaimed::Nothing } else { self.reclaim_any(fault) }
    }

    fn reclaim_any(&self, fault: Option<Vpn>) -> Reclaimed {
        self.trim();
        let nr_waiting = self.policy.nr_waiting(self.config.nr_bays);
        if self.staging.nr_loaded() < nr_waiting && self.evict(fault) {
            return Reclaimed::Progress;
        }
        let stored = self.store(fault);
        if stored == Reclaimed::Nothing
            && (self.evict(fault) || self.revoke_all() || fault.is_some() && self.give_stock_back())
        {
            return Reclaimed::Progress;
        }
        stored
    }

    /// Gives stock back, all of one bay. Who needs a copy in memory of its own may have been lent all that there is.
    fn give_stock_back(&self) -> bool {
        self.staging.take_surplus(Which::Most).map(|surplus| self.release(surplus)).is_some()
    }

    /// From now on no page leaves the program, until this is called with false: who needs memory for a fault waits.
    pub fn have_all_stay(&self, stay: bool) {
        self.all_stay.store(stay, Ordering::SeqCst);
    }

    pub(crate) fn may_evict(&self) -> bool {
        !self.all_stay.load(Ordering::SeqCst)
    }

    /// Takes pages of the range out of the program into staging. Returns how many.
    pub fn evict_range(&self, range: PageRange) -> usize {
        if !self.may_evict() {
            return 0;
        }
        let mut evicted = 0;
        for (id, _, part) in self.table.used_blocks(range) {
            let Some(bay) = self.empty_bay() else { break };
            self.policy.forget(id);
            evicted += self.evict_to(id, part, bay, Why::Order);
        }
        evicted
    }

    fn evict(&self, fault: Option<Vpn>) -> bool {
        self.evict_one_of(EVICT_TRIES, if fault.is_some() { Why::Fault } else { Why::Low })
    }

    /// Takes one of so many blocks out.
    fn evict_one_of(&self, at_most: usize, why: Why) -> bool {
        let tries = if self.may_evict() { self.policy.nr_blocks().min(at_most) } else { 0 };
        for _ in 0..tries {
            let Some(victim) = self.policy.next() else { return false };
            let Some(bay) = self.empty_bay() else {
                self.policy.put_back(victim);
                return false;
            };
            if self.evict_to(victim.block, 0..BLOCK_PAGES, bay, why) > 0 {
                return true;
            }
        }
        false
    }

    /// Reserves an empty bay, made from the smallest rest of stock if there is none.
    fn empty_bay(&self) -> Option<Bay> {
        loop {
            if let Some(bay) = self.staging.reserve_bay() {
                return Some(bay);
            }
            let surplus = self.staging.take_surplus(Which::Least)?;
            self.release(surplus);
        }
    }

    /// Charges pages for a copy, giving stock back if need be.
    pub(crate) fn charge_for_copy(&self, nr_pages: usize) -> bool {
        while !self.try_charge(nr_pages) {
            if !self.give_stock_back() {
                return false;
            }
        }
        true
    }

    pub(crate) fn release(&self, surplus: Surplus) {
        self.kernel.release(surplus.run);
        self.staging.put(surplus.run, Left::Nothing);
        self.uncharge(surplus.nr_pages);
    }

    /// Gives back what is spent, when it is worth a call, and stock that nobody will use.
    fn trim(&self) {
        let by_copy = self.config.home_by == HomeBy::Copy || self.streams.is_stray();
        loop {
            let is_much = self.staging.nr_spent() >= SPENT_PAGES
                || by_copy && self.staging.nr_stock() > COPY_STOCK_PAGES;
            let which = if is_much { Which::Most } else { Which::Done };
            let Some(surplus) = self.staging.take_surplus(which) else { return };
            self.release(surplus);
        }
    }

    /// Takes the block's pages at `part` out of the program. The block leaves the queue, or goes to its end.
    fn evict_to(&self, id: BlockId, part: std::ops::Range<usize>, bay: Bay, why: Why) -> usize {
        let range = PageRange { start: id.page(part.start), end: id.page(part.end) };
        let is_all = part == (0..BLOCK_PAGES);
        let change = self.notifiers.invalidate(Change { range, cause: Cause::Clear, owner: None });
        let gate = self.gate();
        let block = self.table.block(id);
        let mut states = block.lock();
        states.queued = false;
        let (swept, scan) = if states.nr_system() > 0 {
            (self.sweep(id, unpinned_runs(&states, part), bay), self.kernel.scan_bay(bay))
        } else {
            (Swept::default(), BayScan::default())
        };
        let staged = self.account_moved(&mut states, &scan, &swept, bay);
        let stop = swept.stop;
        self.staging.load(bay, staged, scan.huge, id.page(0));
        if is_all && !matches!(stop, Some(Stop::Busy | Stop::Changing)) {
            let nr_left = states.nr_system();
            self.note_stuck(&mut states, nr_left);
        }
        self.note_resident(id, &mut states);
        if !staged.is_empty() {
            self.policy.left(&mut states.note);
            let pages = PageRange::new(id.page(0), staged.len() as u64);
            self.record(What::Evict, pages.start, pages, why as u8);
        }
        drop(states);
        drop(gate);
        drop(change);
        let moved = staged.len();
        self.stats().pgsteal.fetch_add(moved as u64, Ordering::Relaxed);
        if moved == 0 && stop == Some(Stop::Busy) {
            self.kernel.unshare(id.pages());
        }
        moved
    }

    /// So many of the block's resident pages cannot leave, as far as is known.
    pub(crate) fn note_stuck(&self, states: &mut States, nr_stuck: usize) {
        let now = u16::try_from(nr_stuck).unwrap_or(u16::MAX);
        let before = std::mem::replace(&mut states.nr_stuck, now);
        if before != now {
            self.kernel.share().change_stuck(before.into(), now.into());
        }
    }

    /// Pages of the block have gone otherwise than by leaving, those that could not leave among them.
    pub(crate) fn note_gone(&self, states: &mut States) {
        let nr_left = states.nr_system().min(states.nr_stuck.into());
        self.note_stuck(states, nr_left);
    }

    /// Moves runs of the block's pages out, each in one call.
    pub(crate) fn sweep(
        &self,
        id: BlockId,
        runs: impl Iterator<Item = std::ops::Range<usize>>,
        bay: Bay,
    ) -> Swept {
        let mut swept = Swept::default();
        for run in runs {
            let range = PageRange { start: id.page(run.start), end: id.page(run.end) };
            let moved = self.kernel.move_out(range, bay);
            swept.moved = swept.moved.or(&moved.pages);
            match moved.stop {
                None => run.for_each(|index| swept.clean.insert(index)),
                stop => swept.stop = stop,
            }
        }
        swept
    }

    /// Brings the states up to what the bay was found to hold.
    pub(crate) fn account_moved(
        &self,
        states: &mut States,
        scan: &BayScan,
        swept: &Swept,
        bay: Bay,
    ) -> PageSet {
        let strays = self.strays(scan, &swept.moved, bay);
        let present = scan.present.without(&strays);
        let mut vanished = 0;
        for index in 0..BLOCK_PAGES {
            let state = states.get(index);
            if present.contains(index) {
                let copy = if let PageState::System { copy } = state {
                    copy
                } else {
                    self.found_unknown(states, index);
                    None
                };
                states.set(index, PageState::Staged { slot: bay.slot(index), copy });
            } else if let (PageState::System { copy }, true) = (state, swept.clean.contains(index)) {
                // Given up by the program in a way that sends no event.
                states.set(index, PageState::None);
                copy.inspect(|frame| self.free_frame(*frame));
                vanished += 1;
            }
        }
        self.uncharge(vanished);
        for run in strays.runs() {
            self.kernel.release(SlotRun { start: bay.slot(run.start), len: run.len() });
        }
        present
    }

    /// Slots that hold a page which did not come from the program: somebody has read our memory (a debugger, `/proc/PID/mem`),
    /// and where a slot is empty the kernel has made zeroes for that. Taken for the program's they would replace what a device
    /// has. What is no zeroes is a page that we did not know of.
    fn strays(&self, scan: &BayScan, moved: &PageSet, bay: Bay) -> PageSet {
        let mut strays = PageSet::EMPTY;
        for index in scan.present.without(moved).runs().flatten() {
            let slot = SlotRun { start: bay.slot(index), len: 1 };
            self.kernel.with_slots(slot, &mut |bytes| {
                if bytes.iter().all(|byte| *byte == 0) {
                    strays.insert(index);
                }
            });
        }
        strays
    }

    /// A page was there that we thought was not: what the program had mapped is the truth.
    fn found_unknown(&self, states: &mut States, index: usize) {
        match states.get(index) {
            PageState::Device { frame } | PageState::Coherent { frame, .. } => self.forget_frame(frame),
            PageState::Fetching { frame, .. } => {
                debug_assert!(false, "a page that is being fetched was mapped: {frame:?}");
            }
            PageState::None
            | PageState::System { .. }
            | PageState::Dropped { .. }
            | PageState::Staged { .. }
            | PageState::Storing { .. }
            | PageState::Exclusive { .. }
            | PageState::Poisoned => {}
        }
        self.charge_found(1);
        self.stats().pgadopt.fetch_add(1, Ordering::Relaxed);
    }

    /// Collects pages of the bay that has waited longest and has some that nobody else is storing.
    fn collect_next(&self, fault: Option<Vpn>) -> Option<(Bay, Migration<'_, K, Collected>)> {
        for _ in 0..self.staging.nr_loaded() {
            let bay = self.staging.next_loaded()?;
            let collected = Migration::collect(self, bay, fault);
            if collected.len() > 0 {
                return Some((bay, collected));
            }
            self.staging.requeue(bay);
        }
        None
    }

    /// Migrates some pages of the bay that has waited longest.
    pub(crate) fn store(&self, fault: Option<Vpn>) -> Reclaimed {
        let Some((bay, collected)) = self.collect_next(fault) else { return Reclaimed::Nothing };
        let migrated = collected.copy().commit();
        self.staging.requeue(bay);
        if migrated.committed + migrated.overtaken > 0 {
            Reclaimed::Progress
        } else if migrated.put_off {
            // The device is busy, and not full: copies on it are in nobody's way.
            Reclaimed::Nothing
        } else if self.drop_copies(BLOCK_PAGES) > 0 {
            Reclaimed::Progress
        } else {
            Reclaimed::Full
        }
    }
}

/// The runs of the block's pages that may be moved out, each in one call.
fn unpinned_runs(
    states: &States,
    part: std::ops::Range<usize>,
) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut movable = PageSet::EMPTY;
    // Over pages that are elsewhere one move can go on: they are holes. What was given up may still be there for a moment,
    // until the program's call drops it; taken out, it would come back instead of zeroes.
    let passable = |state| match state {
        PageState::System { .. }
        | PageState::Device { .. }
        | PageState::Staged { .. }
        | PageState::Storing { .. }
        | PageState::Exclusive { .. }
        | PageState::Fetching { .. } => true,
        // What is in a coherent frame takes no system memory: it stays.
        PageState::Coherent { .. } => false,
        PageState::None | PageState::Dropped { .. } | PageState::Poisoned => false,
    };
    part.filter(|index| !states.is_pinned(*index) && passable(states.get(*index)))
        .for_each(|index| movable.insert(index));
    let mut from = 0;
    std::iter::from_fn(move || {
        let run = movable.runs().find(|run| run.start >= from)?;
        from = run.end;
        Some(run)
    })
}
