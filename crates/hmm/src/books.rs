//! Where the accounts of an address space are.

use hmm_core::ledger::{Ledger, Share};
use hmm_core::stats::Stats;
use hmm_core::trace::Event;
use hmm_device::DeviceError;

/// Where the accounts are: in the library's own memory, or in memory shared with a supervisor.
pub trait Books: Send + Sync + std::fmt::Debug {
    /// The budget.
    fn ledger(&self) -> &Ledger;
    /// Our part in it.
    fn share(&self) -> Share<'_> {
        self.ledger().share(0)
    }
    /// The counters.
    fn stats(&self) -> &Stats;
    /// Whether what happens is recorded, see [`Kernel::is_traced`](hmm_core::kernel::Kernel::is_traced).
    fn is_traced(&self) -> bool {
        false
    }
    /// Records it.
    fn record(&self, event: Event) {
        let _ = event;
    }
    /// Told of failures of tiers, see
    /// [`Kernel::device_failed`](hmm_core::kernel::Kernel::device_failed).
    fn device_failed(&self, device: u8, why: DeviceError) {
        let _ = (device, why);
    }
}
