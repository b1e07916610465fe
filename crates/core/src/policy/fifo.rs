//! The plainest: blocks leave in the order in which they came, a fault brings the page that was touched and no other, nothing
//! waits for a second chance longer than it must, no copies are kept.
//!
//! What the others gain is what they gain over this one. And every touch of a page that is not there is a fault of its own:
//! what is recorded under it shows most.

use super::{Brings, Clock, Fault, Note, Policy, Victim};
use crate::addr::BlockId;
use crate::stream::Hit;

/// See the module.
#[derive(Debug, Default)]
pub struct Fifo(Clock);

impl Fifo {
    /// Without blocks.
    pub const fn new() -> Self {
        Self(Clock::new())
    }
}

impl Policy for Fifo {
    fn expect(&self, nr_blocks: usize) {
        self.0.expect(nr_blocks);
    }

    fn came(&self, block: BlockId, note: &mut Note) {
        self.0.came(block, note);
    }

    fn next(&self) -> Option<Victim> {
        self.0.next()
    }

    fn put_back(&self, victim: Victim) {
        self.0.put_back(victim);
    }

    fn left(&self, note: &mut Note) {
        self.0.left(note);
    }

    fn forget(&self, block: BlockId) {
        self.0.forget(block);
    }

    fn nr_blocks(&self) -> usize {
        self.0.nr_blocks()
    }

    fn block_at(&self, position: usize) -> Option<BlockId> {
        self.0.block_at(position)
    }

    /// One: what leaves has to be somewhere until a device has taken it.
    fn nr_waiting(&self, _: u32) -> usize {
        1
    }

    fn brings(&self, _: &Fault) -> Brings {
        Brings { around: 1, window: 1 }
    }

    fn ahead(&self, _: &Hit) -> usize {
        0
    }

    fn keeps_copy(&self, _: bool) -> bool {
        false
    }
}
