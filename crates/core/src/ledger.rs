//! The budget: how many pages may be resident, and how many are (I9).
//!
//! Who shares the budget has a [`Share`] each: one word, which says what it has charged. What is charged in all is the sum
//! of the shares, and is noted nowhere else. So whoever ends, at whatever instruction, what it had charged comes back by
//! clearing one word: nothing is lost, and nothing is given back twice.
//!
//! Several may find out at the same time that somebody is gone. Each time that a share is cleared another number is in its
//! upper bits, so that what was seen before ([`Share::seen`]) is cleared by one of them, and never what the next has charged.
//!
//! Plain atomics in a fixed layout, so that a ledger can lie in memory that several processes share.

use std::sync::atomic::{AtomicU64, Ordering};

/// How many can share a budget.
pub const NR_SHARES: usize = 128;

/// The part of the budget (one in so many pages) that is kept for memory which is there before it is charged.
const FOUND_SHARE: u64 = 64;
/// But not more than so many pages.
const FOUND_MAX_PAGES: u64 = 256;

/// The part of the budget (one in so many pages) that there shall be for pages that can leave, where others take all of it.
const ROOM_SHARE: u64 = 8;

/// The lower bits of a share's word are pages, one says whether its party gives nothing back for the time being, and the others
/// how often it was cleared.
const PAGES: u64 = (1 << 39) - 1;
const STILL: u64 = PAGES + 1;
const CLEARED: u64 = STILL << 1;

/// An account of pages. Everything resident is charged before it becomes so.
#[derive(Debug)]
#[repr(C)]
pub struct Ledger {
    set_pages: AtomicU64,
    /// Pages of the budget that were granted beyond what was set.
    granted_pages: AtomicU64,
    /// The highest sum of the shares seen.
    peak_pages: AtomicU64,
    /// How often somebody found no memory free.
    hunger: AtomicU64,
    /// The shares from this one on have never been used.
    nr_used: AtomicU64,
    shares: [AtomicU64; NR_SHARES],
    /// Of what each has charged, pages that were found not to be able to leave.
    stuck: [AtomicU64; NR_SHARES],
}

/// One party's part in a ledger.
#[derive(Clone, Copy, Debug)]
pub struct Share<'a> {
    ledger: &'a Ledger,
    word: &'a AtomicU64,
    stuck: &'a AtomicU64,
}

/// What a share was at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen(u64);

impl Ledger {
    /// An account with a budget.
    pub const fn new(budget_pages: u64) -> Self {
        Self {
            set_pages: AtomicU64::new(budget_pages),
            granted_pages: AtomicU64::new(0),
            peak_pages: AtomicU64::new(0),
            hunger: AtomicU64::new(0),
            nr_used: AtomicU64::new(0),
            shares: [const { AtomicU64::new(0) }; NR_SHARES],
            stuck: [const { AtomicU64::new(0) }; NR_SHARES],
        }
    }

    /// The share of that number.
    ///
    /// # Panics
    /// There are [`NR_SHARES`].
    pub fn share(&self, number: usize) -> Share<'_> {
        let nr_used = number as u64 + 1;
        if self.nr_used.load(Ordering::SeqCst) < nr_used {
            self.nr_used.fetch_max(nr_used, Ordering::SeqCst);
        }
        Share { ledger: self, word: &self.shares[number], stuck: &self.stuck[number] }
    }

    /// Begins anew with a budget, for a party that has the ledger to itself: what an earlier one was granted is not its. The peak
    /// stays, as the highest of all of them.
    pub fn begin(&self, pages: u64) {
        self.set_budget(pages);
        self.granted_pages.store(0, Ordering::Relaxed);
    }

    /// Grants as much as another ledger has, if that is more: for who is going to have all that is charged there as well.
    pub fn grant_as(&self, other: &Self) {
        self.granted_pages.fetch_max(other.granted(), Ordering::Relaxed);
    }

    /// Sets the budget.
    pub fn set_budget(&self, pages: u64) {
        self.set_pages.store(pages, Ordering::Relaxed);
    }

    /// Pages that may be resident.
    pub fn budget(&self) -> u64 {
        self.set_pages.load(Ordering::Relaxed) + self.granted()
    }

    /// Pages that are charged.
    pub fn charged(&self) -> u64 {
        self.all().sum()
    }

    /// The most that one party has charged that can give something back.
    pub fn largest_share(&self) -> u64 {
        self.words().filter(|word| word & STILL == 0).map(|word| word & PAGES).max().unwrap_or(0)
    }

    fn all(&self) -> impl Iterator<Item = u64> {
        self.words().map(|word| word & PAGES)
    }

    fn words(&self) -> impl Iterator<Item = u64> {
        let nr_used = usize::try_from(self.nr_used.load(Ordering::SeqCst)).unwrap_or(NR_SHARES);
        self.shares.iter().take(nr_used).map(|share| share.load(Ordering::SeqCst))
    }

    /// The most that was ever charged.
    pub fn peak(&self) -> u64 {
        self.peak_pages.load(Ordering::Relaxed)
    }

    fn note_peak(&self, charged: u64) {
        if self.peak() < charged {
            self.peak_pages.fetch_max(charged, Ordering::Relaxed);
        }
    }

    /// Pages that can still be charged. A small part of the budget is kept for [`Share::charge_found`].
    pub fn free(&self) -> u64 {
        self.limit().saturating_sub(self.charged())
    }

    fn limit(&self) -> u64 {
        let budget = self.budget();
        budget - (budget / FOUND_SHARE).min(FOUND_MAX_PAGES)
    }

    /// Makes the budget larger, because the alternative is a program that stands still. Whoever does it counts it.
    pub fn grow(&self, pages: u64) {
        self.granted_pages.fetch_add(pages, Ordering::Relaxed);
    }

    /// Pages by which the budget is larger now than it was set.
    pub fn granted(&self) -> u64 {
        self.granted_pages.load(Ordering::Relaxed)
    }

    /// Of what is charged, pages that were found not to be able to leave: of read-only mappings, locked ones. Who is gone has
    /// none, as it has nothing charged.
    pub fn stuck(&self) -> u64 {
        self.all().zip(&self.stuck).map(|(charged, stuck)| charged.min(stuck.load(Ordering::Relaxed))).sum()
    }

    /// Pages by which the budget has to be larger than it was set, so that some of it is left for pages that can leave if
    /// `more` than now cannot. To wait for these would be in vain.
    fn owed(&self, more: u64) -> u64 {
        let set = self.set_pages.load(Ordering::Relaxed);
        (self.stuck() + more + set / ROOM_SHARE).saturating_sub(set)
    }

    /// Makes the budget as large as it has to be where pages cannot leave, `more` than now. Returns by how much it grew; whoever
    /// does it counts it.
    #[must_use = "0: it is as large"]
    pub fn grow_to_need(&self, more: u64) -> u64 {
        let owed = self.owed(more);
        let before = self.granted_pages.fetch_max(owed, Ordering::Relaxed);
        owed.saturating_sub(before)
    }

    /// Pages by which the budget is larger than it has to be, and was set.
    pub fn overdrawn(&self) -> u64 {
        match self.granted() {
            0 => 0,
            granted => granted.saturating_sub(self.owed(0)),
        }
    }

    /// Says that somebody found no memory free: who shares the budget gives some back.
    pub fn ask(&self) {
        self.hunger.fetch_add(1, Ordering::Relaxed);
    }

    /// How often somebody asked.
    pub fn asked(&self) -> u64 {
        self.hunger.load(Ordering::Relaxed)
    }
}

impl Share<'_> {
    /// Pages that this party has charged.
    pub fn charged(&self) -> u64 {
        self.word.load(Ordering::SeqCst) & PAGES
    }

    /// Pages that can still be charged here.
    pub fn free(&self) -> u64 {
        self.ledger.free()
    }

    /// Charges `pages`, all or none. When two try at the same time for what is enough for one, both may get none.
    #[must_use = "memory may only be used when it was charged"]
    pub fn try_charge(&self, pages: u64) -> bool {
        let charged = self.hold(pages);
        charged.inspect(|charged| self.ledger.note_peak(*charged));
        charged.is_some()
    }

    /// Charges pages that nobody uses. Gives what is charged in all then.
    fn hold(&self, pages: u64) -> Option<u64> {
        // What cannot be is not tried: others would find what we take for a moment missing.
        if self.ledger.charged() + pages > self.ledger.limit() {
            return None;
        }
        // Of two that do this at the same time one sees what the other has taken, as there is one order of all of this.
        self.word.fetch_add(pages, Ordering::SeqCst);
        let charged = self.ledger.charged();
        if charged > self.ledger.limit() {
            self.uncharge(pages);
            return None;
        }
        Some(charged)
    }

    /// Charges pages that are resident already, whatever the budget says: for memory that was there before us.
    pub fn charge_found(&self, pages: u64) {
        self.charge_shared(pages);
        self.ledger.note_peak(self.ledger.charged());
    }

    /// Charges pages that a fork made a second owner of, and for which nothing could be set aside before: they take no
    /// more memory than before until one of the owners writes to them, so they do not count for the peak.
    pub fn charge_shared(&self, pages: u64) {
        self.word.fetch_add(pages, Ordering::SeqCst);
    }

    /// Pages that this party said cannot leave.
    pub fn stuck(&self) -> u64 {
        self.stuck.load(Ordering::Relaxed)
    }

    /// Says how many of the pages that this party has charged cannot leave.
    pub fn set_stuck(&self, pages: u64) {
        self.stuck.store(pages, Ordering::Relaxed);
    }

    /// There were `before` of them in some place, and there are `now`.
    pub fn change_stuck(&self, before: u64, now: u64) {
        if now >= before {
            self.stuck.fetch_add(now - before, Ordering::Relaxed);
        } else {
            self.stuck.fetch_sub(before - now, Ordering::Relaxed);
        }
    }

    /// Takes a charge back.
    pub fn uncharge(&self, pages: u64) {
        let before = self.word.fetch_sub(pages, Ordering::SeqCst);
        debug_assert!(before & PAGES >= pages, "I9: {pages} uncharged of {}", before & PAGES);
    }

    /// Says whether this party gives nothing back for the time being, however much it has: it stands still, or what it has waits for
    /// a child that is not there yet.
    pub fn stand_still(&self, still: bool) {
        if still {
            self.word.fetch_or(STILL, Ordering::SeqCst);
        } else {
            self.word.fetch_and(!STILL, Ordering::SeqCst);
        }
    }

    /// Takes back all that this party has charged: what it had is gone. To be called by the party itself.
    pub fn clear(&self) {
        self.set_stuck(0);
        while !self.clear_seen(self.seen()) {}
    }

    /// What the share is now, to be cleared if it is found out then that its party is gone.
    pub fn seen(&self) -> Seen {
        Seen(self.word.load(Ordering::SeqCst))
    }

    /// Takes back all that was charged, if nobody has charged, uncharged or cleared anything since.
    #[must_use = "if not there may be something left"]
    pub fn clear_seen(&self, seen: Seen) -> bool {
        let cleared = (seen.0 & !(PAGES | STILL)).wrapping_add(CLEARED);
        self.word.compare_exchange(seen.0, cleared, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Makes the budget smaller again, by at most `pages` and never below what was set. Returns false if so many are not free.
    pub fn take_back(&self, pages: u64) -> bool {
        // Nobody else gets them meanwhile.
        if self.hold(pages).is_none() {
            return false;
        }
        let rest = |granted: u64| Some(granted.saturating_sub(pages));
        let _always = self.ledger.granted_pages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest);
        self.uncharge(pages);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_granted_is_taken_back_and_no_more() {
        let ledger = Ledger::new(6400);
        let share = ledger.share(0);
        assert!(share.try_charge(6300) && !share.try_charge(1));
        ledger.grow(256);
        assert!(share.try_charge(100));
        assert!(!share.take_back(256), "not so many are free");
        assert_eq!((ledger.budget(), ledger.granted()), (6656, 256));
        let free = ledger.free();
        assert!(share.take_back(free));
        assert_eq!((ledger.charged(), ledger.granted()), (6400, 256 - free));
        share.uncharge(1000);
        assert!(share.take_back(500), "more than was granted");
        assert_eq!((ledger.budget(), ledger.granted(), ledger.peak()), (6400, 0, 6400));
    }

    #[test]
    fn who_begins_has_what_was_set_and_what_another_was_granted() {
        let (one, next) = (Ledger::new(6400), Ledger::new(100));
        next.grow(7);
        assert!(next.share(0).try_charge(90));
        next.share(0).clear();
        next.begin(6400);
        assert_eq!((next.budget(), next.granted(), next.peak(), next.share(0).free()), (6400, 0, 90, 6300));
        one.grow(50);
        next.grant_as(&one);
        next.grant_as(&Ledger::new(1));
        assert_eq!((next.budget(), next.granted()), (6450, 50));
    }

    #[test]
    fn what_cannot_leave_does_not_take_all_of_the_budget() {
        let ledger = Ledger::new(6400);
        let (one, other) = (ledger.share(0), ledger.share(5));
        assert!(one.try_charge(4000) && other.try_charge(2000));
        one.set_stuck(3600);
        assert_eq!((ledger.grow_to_need(0), ledger.grow_to_need(2000)), (0, 0), "an eighth is left");
        other.set_stuck(2100);
        assert_eq!(ledger.stuck(), 5600, "no more than it has");
        assert_eq!((ledger.grow_to_need(100), ledger.grow_to_need(100), ledger.budget()), (100, 0, 6500));
        assert_eq!(ledger.overdrawn(), 100, "what was to come did not");
        other.set_stuck(2000);
        one.set_stuck(3650);
        assert_eq!(ledger.overdrawn(), 50);
        other.clear();
        assert_eq!((ledger.stuck(), ledger.overdrawn()), (3650, 100), "who is gone has none");
    }

    #[test]
    fn what_a_party_had_comes_back_as_a_whole_whatever_it_was_doing() {
        let ledger = Ledger::new(6400);
        let (one, other) = (ledger.share(0), ledger.share(5));
        assert!(one.try_charge(4000) && other.try_charge(2000) && !one.try_charge(2000));
        assert_eq!((ledger.charged(), ledger.largest_share()), (6000, 4000));
        one.clear();
        one.clear();
        assert_eq!((one.charged(), other.charged(), ledger.charged()), (0, 2000, 2000));
        assert!(other.try_charge(4000), "it is free again");
    }

    #[test]
    fn who_gives_nothing_back_is_not_waited_for() {
        let ledger = Ledger::new(6400);
        let (one, other) = (ledger.share(0), ledger.share(5));
        assert!(one.try_charge(4000) && other.try_charge(100));
        one.stand_still(true);
        one.stand_still(true);
        assert!(one.try_charge(1));
        assert_eq!((one.charged(), ledger.charged(), ledger.largest_share()), (4001, 4101, 100));
        one.stand_still(false);
        assert_eq!(ledger.largest_share(), 4001);
        // Who is gone does not stand still any more.
        one.stand_still(true);
        one.clear();
        assert!(one.try_charge(200));
        assert_eq!(ledger.largest_share(), 200);
    }

    #[test]
    fn what_was_seen_is_cleared_once_and_never_what_came_after() {
        let ledger = Ledger::new(6400);
        let share = ledger.share(0);
        assert!(share.try_charge(100));
        let seen = share.seen();
        assert!(share.clear_seen(seen));
        assert!(share.try_charge(100), "the next party has as much");
        assert!(!share.clear_seen(seen));
        assert_eq!((share.charged(), ledger.charged(), ledger.largest_share()), (100, 100, 100));
        share.uncharge(100);
        assert_eq!(ledger.charged(), 0);
    }

    #[test]
    fn parties_that_charge_at_the_same_time_never_have_more_than_the_budget() {
        const BUDGET: u64 = 60;
        const NR_PARTIES: usize = 4;
        let (ledger, used) = (Ledger::new(BUDGET), AtomicU64::new(0));
        let charge = |number: usize| {
            let share = ledger.share(number);
            let mut nr_charged = 0;
            for round in 0..20_000u64 {
                let pages = 1 + round % 20;
                if share.try_charge(pages) {
                    nr_charged += 1;
                    assert!(used.fetch_add(pages, Ordering::SeqCst) + pages <= BUDGET);
                    used.fetch_sub(pages, Ordering::SeqCst);
                    share.uncharge(pages);
                }
            }
            nr_charged
        };
        let charged = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..NR_PARTIES).map(|number| scope.spawn(move || charge(number))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<u64>>()
        });
        assert!(charged.iter().all(|nr_charged| *nr_charged > 0), "{charged:?}");
        assert_eq!(ledger.charged(), 0);
    }
}
