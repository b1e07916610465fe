//! Faults that find no memory: when to wait, and when there is more than was allowed.

use std::sync::atomic::Ordering;
use std::time::Duration;

use hmm_core::addr::Vpn;
use hmm_core::kernel::Kernel;

use crate::control::OnFull;
use crate::runtime::Runtime;

/// A fault that found no memory for so long gets it beyond the budget, and is counted.
const STUCK: Duration = Duration::from_secs(2);
/// The same for those that follow, as long as what the first got cannot be taken back: what is resident is of a kind that
/// cannot leave, and that will be so for the next page as well. Long enough for other processes to give some.
const STUCK_AGAIN: Duration = Duration::from_millis(50);
/// Pages that the budget grows by at a time, where it may.
const GROW_PAGES: u64 = 256;

impl Runtime {
    /// There is no memory for a page now. When that was so for too long there is more.
    pub(crate) fn starve(&self, page: Vpn) {
        if self.engine().awaits_device() {
            // It answers, or it becomes clear that it does not.
            return;
        }
        if self.grow_to_need(0) {
            return;
        }
        let now = self.clock.now();
        let patience = if self.engine().is_granted() { STUCK_AGAIN } else { STUCK };
        if now.duration_since(self.waits.go_on(page, now)) > patience {
            if !self.policy.settle_the_dead() {
                self.grow();
            }
            self.waits.end(page);
        }
    }

    /// No device takes another page.
    pub(crate) fn make_room(&self) {
        match self.policy.on_full() {
            _ if self.policy.settle_the_dead() => {}
            OnFull::Grow => self.grow(),
            OnFull::Kill => {
                self.engine().refresh_gauges();
                self.policy.end();
            }
        }
    }

    /// More memory than was allowed, counted: the alternative is a program that stands still.
    pub fn grow(&self) {
        let mm = self.engine().kernel();
        mm.ledger().grow(GROW_PAGES);
        mm.stats().overcharged.fetch_add(GROW_PAGES, Ordering::Relaxed);
    }

    /// The same where it is known that to wait for memory is in vain: so many pages cannot leave, and `more` are to come.
    /// Says whether there is more of it now.
    pub fn grow_to_need(&self, more: u64) -> bool {
        let mm = self.engine().kernel();
        let pages = mm.ledger().grow_to_need(more);
        mm.stats().overcharged.fetch_add(pages, Ordering::Relaxed);
        pages > 0
    }
}
