//! Whether a page that came home keeps its frame.
//!
//! If it leaves again unchanged, the device still has it and nothing need be stored. Programs that change what they
//! touch gain nothing and pay with device memory, so the outcome of the last departures decides, and a sample of pages
//! keeps its frame in any case, to notice when the program changes its ways.

use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use hmm_device::Device;

use crate::engine::Engine;
use crate::kernel::Kernel;
use crate::state::{Frame, PageState};

const SCORE_MAX: i32 = 1024;
/// What an unchanged page is worth: a comparison costs about a tenth of a store.
const HIT: i32 = 8;
/// One of so many pages keeps its frame whatever the score.
const SAMPLE: u32 = 16;
/// A device this full (in percent) keeps no copies.
const FULL_PERCENT: u64 = 90;
/// One of so many times pages from a tier below the first keep no frame there whatever the score, and go to the first one next:
/// what comes again and again is on the first in the end, also if it is only read, and what comes once costs little more.
const PROMOTE: u32 = 8;

#[derive(Debug)]
pub(crate) struct CopyPolicy {
    score: AtomicI32,
    counter: AtomicU32,
    from_below: AtomicU32,
}

impl CopyPolicy {
    pub(crate) const fn new() -> Self {
        Self {
            score: AtomicI32::new(SCORE_MAX / 2),
            counter: AtomicU32::new(0),
            from_below: AtomicU32::new(0),
        }
    }

    /// A page with a copy left: was the copy still good?
    pub(crate) fn learn(&self, unchanged: bool) {
        let change = if unchanged { HIT } else { -1 };
        let score = (self.score.load(Ordering::Relaxed) + change).clamp(-SCORE_MAX, SCORE_MAX);
        self.score.store(score, Ordering::Relaxed);
    }

    fn wants(&self) -> bool {
        self.score.load(Ordering::Relaxed) > 0
            || self.counter.fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLE)
    }

    /// Whether what comes home from a tier leaves it for good.
    fn promotes(&self, tier: u8) -> bool {
        tier > 0 && self.from_below.fetch_add(1, Ordering::Relaxed).is_multiple_of(PROMOTE)
    }
}

impl<K: Kernel> Engine<K> {
    /// Whether the next page that comes home from the device keeps its frame there.
    pub(crate) fn keeps_copy(&self, number: u8) -> bool {
        // A driver's device has its frames to itself.
        let Some(device) = self.devices().get(usize::from(number)) else { return false };
        device.caps().keeps_copies
            && !self.copies.promotes(number)
            && self.policy.keeps_copy(self.copies.wants())
            && {
                let usage = device.usage();
                usage.used_bytes * 100 < usage.capacity_bytes * FULL_PERCENT
            }
    }

    /// Whether a page that comes home alone keeps its frame.
    pub(crate) fn keeps_frame(&self, frame: Frame) -> bool {
        self.keeps_copy(frame.device) && self.is_worth_keeping(frame)
    }

    /// Whether that device wants it to keep this one.
    pub(crate) fn is_worth_keeping(&self, frame: Frame) -> bool {
        let Some(device) = self.devices().get(usize::from(frame.device)) else { return false };
        device.is_worth_keeping(frame.pfn)
    }

    /// Frees frames of resident pages, until `enough` are freed or there are no more. Returns how many were.
    pub fn drop_copies(&self, enough: usize) -> usize {
        let mut freed = 0;
        for position in 0..self.policy.nr_blocks() {
            let Some(id) = self.policy.block_at(position) else { break };
            let Some(block) = self.table.get(id) else { continue };
            let mut states = block.lock();
            for index in 0..crate::addr::BLOCK_PAGES {
                if let PageState::System { copy: Some(frame) } = states.get(index) {
                    states.set(index, PageState::System { copy: None });
                    self.free_frame(frame);
                    freed += 1;
                }
            }
            if freed >= enough {
                break;
            }
        }
        freed
    }
}
