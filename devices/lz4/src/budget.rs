//! The hard bound: nothing of ours becomes resident without being charged here first.

use std::sync::atomic::{AtomicU64, Ordering};

/// An account of bytes.
#[derive(Debug)]
pub(crate) struct Budget {
    capacity_bytes: u64,
    charged_bytes: AtomicU64,
}

impl Budget {
    /// An account on which `fixed_bytes` are charged for good.
    pub(crate) const fn new(capacity_bytes: u64, fixed_bytes: u64) -> Self {
        Self { capacity_bytes, charged_bytes: AtomicU64::new(fixed_bytes) }
    }

    /// Charges all of it or nothing.
    #[must_use = "memory may only be used when it was charged"]
    pub(crate) fn try_charge(&self, bytes: u64) -> bool {
        self.charged_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                now.checked_add(bytes).filter(|sum| *sum <= self.capacity_bytes)
            })
            .is_ok()
    }

    /// Takes a charge back, after the memory went back.
    pub(crate) fn uncharge(&self, bytes: u64) {
        self.charged_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes charged now.
    pub(crate) fn charged(&self) -> u64 {
        self.charged_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that can be charged at most.
    pub(crate) const fn capacity(&self) -> u64 {
        self.capacity_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_all_or_nothing() {
        let budget = Budget::new(100, 30);
        assert!(!budget.try_charge(71));
        assert!(budget.try_charge(70));
        assert!(!budget.try_charge(1) && !budget.try_charge(u64::MAX));
        budget.uncharge(60);
        assert_eq!((budget.charged(), budget.capacity()), (40, 100));
    }
}
