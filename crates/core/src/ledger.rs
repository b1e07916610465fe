//! The budget: how many pages may be resident, and how many are (I9).
//!
//! Plain atomics in a fixed layout, so that a ledger can lie in memory that several processes share.

use std::sync::atomic::{AtomicU64, Ordering};

/// The part of the budget (one in so many pages) that is kept for memory which is there before it is charged.
const FOUND_SHARE: u64 = 64;
/// But not more than so many pages.
const FOUND_MAX_PAGES: u64 = 256;

/// An account of pages. Everything resident is charged before it becomes so.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Ledger {
    budget_pages: AtomicU64,
    charged_pages: AtomicU64,
    /// Highest value of `charged_pages` seen.
    peak_pages: AtomicU64,
    /// How often somebody found no memory free.
    hunger: AtomicU64,
    /// Pages of the budget that were granted beyond what was set.
    granted_pages: AtomicU64,
}

impl Ledger {
    /// An account with a budget.
    pub const fn new(budget_pages: u64) -> Self {
        Self {
            budget_pages: AtomicU64::new(budget_pages),
            charged_pages: AtomicU64::new(0),
            peak_pages: AtomicU64::new(0),
            hunger: AtomicU64::new(0),
            granted_pages: AtomicU64::new(0),
        }
    }

    /// Sets the budget.
    pub fn set_budget(&self, pages: u64) {
        self.budget_pages.store(pages, Ordering::Relaxed);
    }

    /// Pages that may be resident.
    pub fn budget(&self) -> u64 {
        self.budget_pages.load(Ordering::Relaxed)
    }

    /// Pages that are charged.
    pub fn charged(&self) -> u64 {
        self.charged_pages.load(Ordering::Relaxed)
    }

    /// The most that was ever charged.
    pub fn peak(&self) -> u64 {
        self.peak_pages.load(Ordering::Relaxed)
    }

    /// Pages that can still be charged. A small part of the budget is kept for [`charge_found`](Self::charge_found).
    pub fn free(&self) -> u64 {
        self.limit().saturating_sub(self.charged())
    }

    fn limit(&self) -> u64 {
        let budget = self.budget();
        budget - (budget / FOUND_SHARE).min(FOUND_MAX_PAGES)
    }

    /// Charges `pages`, all or none.
    #[must_use = "memory may only be used when it was charged"]
    pub fn try_charge(&self, pages: u64) -> bool {
        let before = self.hold(pages);
        before.inspect(|before| _ = self.peak_pages.fetch_max(before + pages, Ordering::Relaxed));
        before.is_some()
    }

    /// Charges pages that nobody uses. Gives what was charged before.
    fn hold(&self, pages: u64) -> Option<u64> {
        let limit = self.limit();
        let more = |now: u64| (now + pages <= limit).then_some(now + pages);
        self.charged_pages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()
    }

    /// Charges pages that are resident already, whatever the budget says: for memory that was there before us.
    pub fn charge_found(&self, pages: u64) {
        let before = self.charged_pages.fetch_add(pages, Ordering::Relaxed);
        self.peak_pages.fetch_max(before + pages, Ordering::Relaxed);
    }

    /// Charges pages that a fork made a second owner of, and for which nothing could be set aside before: they take no
    /// more memory than before until one of the owners writes to them, so they do not count for the peak.
    pub fn charge_shared(&self, pages: u64) {
        self.charged_pages.fetch_add(pages, Ordering::Relaxed);
    }

    /// Makes the budget larger, because the alternative is a program that stands still. Whoever does it counts it.
    pub fn grow(&self, pages: u64) {
        self.budget_pages.fetch_add(pages, Ordering::Relaxed);
        self.granted_pages.fetch_add(pages, Ordering::Relaxed);
    }

    /// Pages by which the budget is larger now than it was set.
    pub fn granted(&self) -> u64 {
        self.granted_pages.load(Ordering::Relaxed)
    }

    /// Makes the budget smaller again, by at most `pages` and never below what was set. Returns false if so many are not free.
    pub fn take_back(&self, pages: u64) -> bool {
        // Nobody else gets them meanwhile.
        if self.hold(pages).is_none() {
            return false;
        }
        let rest = |granted: u64| Some(granted.saturating_sub(pages));
        let before = self.granted_pages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest);
        let back = before.map_or(0, |granted| granted.min(pages));
        self.budget_pages.fetch_sub(back, Ordering::Relaxed);
        self.uncharge(pages);
        true
    }

    /// Says that somebody found no memory free: who shares the budget gives some back.
    pub fn ask(&self) {
        self.hunger.fetch_add(1, Ordering::Relaxed);
    }

    /// How often somebody asked.
    pub fn asked(&self) -> u64 {
        self.hunger.load(Ordering::Relaxed)
    }

    /// Takes a charge back.
    pub fn uncharge(&self, pages: u64) {
        let before = self.charged_pages.fetch_sub(pages, Ordering::Relaxed);
        debug_assert!(before >= pages, "I9: {pages} uncharged of {before}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_granted_is_taken_back_and_no_more() {
        let ledger = Ledger::new(6400);
        assert!(ledger.try_charge(6300) && !ledger.try_charge(1));
        ledger.grow(256);
        assert!(ledger.try_charge(100));
        assert!(!ledger.take_back(256), "not so many are free");
        assert_eq!((ledger.budget(), ledger.granted()), (6656, 256));
        let free = ledger.free();
        assert!(ledger.take_back(free));
        assert_eq!((ledger.charged(), ledger.granted()), (6400, 256 - free));
        ledger.uncharge(1000);
        assert!(ledger.take_back(500), "more than was granted");
        assert_eq!((ledger.budget(), ledger.granted(), ledger.peak()), (6400, 0, 6400));
    }
}
