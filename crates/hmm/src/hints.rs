//! What the program tells all drivers of its memory beforehand.

use hmm_core::addr::{PageRange, Vpn};
use hmm_core::hints::{Advice, Hint};

use crate::callers;
use crate::space::AddressSpace;

impl AddressSpace {
    /// Tells drivers something of a range, for whatever devices there are. It is forgotten when the memory is unmapped.
    pub fn advise(&self, range: PageRange, advice: Advice) {
        let _inside = callers::enter();
        self.runtime().engine().hints().advise(range, advice);
    }

    /// What was said of a page, and the pages around it of which the same was said.
    pub fn hint(&self, page: Vpn) -> (Hint, PageRange) {
        let _inside = callers::enter();
        self.runtime().engine().hints().get(page)
    }
}
