//! What drivers ask beyond migrating and reading ranges.

use hmm_core::addr::Vpn;
use hmm_core::state::PageState;

use crate::callers;
use crate::space::AddressSpace;

impl AddressSpace {
    /// The state of a page. For tools and tests; it may have changed when the caller looks at it.
    pub fn state(&self, page: Vpn) -> PageState {
        let _inside = callers::enter();
        self.runtime().engine().state(page)
    }

    /// Returns when every change of the program's mappings that was made before has reached all drivers.
    ///
    /// The kernel lets a program that unmaps or discards memory go on when its message has been *read*; drivers hear of it
    /// a moment later. Of a discard they hear when its pages are still there, which they may find once more; so they are told
    /// of it again, of all discards since the last call that are over. ([`discard`](Self::discard) needs no second word.) A
    /// device that begins to work for the program must not work by what was true before, so its driver
    /// calls this first: when a kernel is launched, not for each access. Not to be called under a lock that a driver's
    /// callback takes.
    pub fn settle(&self) {
        let _inside = callers::enter();
        self.runtime().engine().settle();
    }
}
