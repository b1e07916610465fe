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
}

impl Ledger {
    /// An account with a budget.
    pub const fn new(budget_pages: u64) -> Self {
        Self {
            budget_pages: AtomicU64::new(budget_pages),
            charged_pages: AtomicU64::new(0),
            peak_pages: AtomicU64::new(0),
            hunger: AtomicU64::new(0),
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
        let limit = self.limit();
        let charge = self.charged_pages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
            (now + pages <= limit).then_some(now + pages)
        });
        if let Ok(before) = charge {
            self.peak_pages.fetch_max(before + pages, Ordering::Relaxed);
        }
        charge.is_ok()
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
