//! References to frames, whatever becomes of their pages.

use std::collections::BTreeSet;

use hmm_core::HeldFrame;
use hmm_core::addr::Vpn;
use hmm_core::state::PageState;
use hmm_device::DevicePfn;

use super::{Driver, SimEngine};
use crate::shared::Shared;

impl Driver {
    /// Refers to a page's frame from now on, or to what it referred to first no more.
    pub(super) fn hold_or_let_go(&self, shared: &Shared, engine: &SimEngine, page: Vpn) {
        let (PageState::Device { frame } | PageState::Coherent { frame, .. }) = engine.state(page) else {
            return self.let_go(shared, 1);
        };
        let held = engine.hold_frame(frame, self.owner);
        shared.lock().count("held", usize::from(held.is_some()));
        self.held.lock().expect("nobody panics with it").extend(held);
    }

    /// Ends the oldest of its references.
    pub(crate) fn let_go(&self, shared: &Shared, most: usize) {
        let gone: Vec<HeldFrame> = {
            let mut held = self.held.lock().expect("nobody panics with it");
            let nr_gone = most.min(held.len());
            held.drain(..nr_gone).collect()
        };
        shared.lock().count("let_go", gone.len());
        // The device is asked with no lock held.
        drop(gone);
    }
}

/// Frames that drivers refer to.
pub(crate) fn held(shared: &Shared) -> BTreeSet<(u8, DevicePfn)> {
    let of = |driver: &Driver| {
        let held = driver.held.lock().expect("nobody panics with it");
        held.iter().map(HeldFrame::frame).map(|frame| (frame.device, frame.pfn)).collect::<Vec<_>>()
    };
    shared.drivers().iter().flat_map(of).collect()
}
