//! Blocks leave in the order in which they came, and get a second chance on the way.
//!
//! A block that is touched while it waits in staging comes back, and is then the last to leave: the hand of a clock that goes
//! round over all blocks, with staging as the place where it is noticed whether one is used.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::queue::Queue;
use super::{Note, Policy, Victim};
use crate::addr::BlockId;

/// See the module.
#[derive(Debug)]
pub struct Clock(Mutex<Queue>);

impl Clock {
    /// Without blocks.
    pub const fn new() -> Self {
        Self(Mutex::new(Queue::new()))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl Policy for Clock {
    fn expect(&self, nr_blocks: usize) {
        self.lock().reserve(nr_blocks);
    }

    fn came(&self, block: BlockId, _: &mut Note) {
        self.lock().push(block);
    }

    fn next(&self) -> Option<Victim> {
        self.lock().pop().map(|block| Victim { block, queue: 0 })
    }

    fn put_back(&self, victim: Victim) {
        self.lock().put_back(victim.block);
    }

    fn left(&self, _: &mut Note) {}

    fn forget(&self, block: BlockId) {
        self.lock().forget(block);
    }

    fn nr_blocks(&self) -> usize {
        self.lock().len()
    }

    fn block_at(&self, position: usize) -> Option<BlockId> {
        self.lock().get(position)
    }
}
