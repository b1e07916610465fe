//! Resistant to scans: blocks that came once leave before blocks that came again.
//!
//! Two queues, as in 2Q and S3-FIFO. A block is put into the first (`once`) when it comes for the first time, or after a long
//! absence. It is put into the second (`again`) when it comes back soon: before as many blocks have left as there are in
//! both queues, so that with twice the memory it would have stayed. To know that takes no list of those that have left: each
//! block's note has the number of departures at its own.
//!
//! Blocks leave from `once` as long as it has more than a tenth of all. So one pass over a large array goes through that
//! tenth and leaves the rest alone; and a working set that changes gets in by coming back. Within each queue the order is
//! the clock's. Where none of a queue's blocks can leave (all of it is read-only, say), it is the other's turn.
//!
//! What came once goes by a tier that is three quarters full, if there is another: that room is for what will be back.

use std::sync::{Mutex, MutexGuard, PoisonError};

use hmm_device::Usage;

use super::departures::Departures;
use super::queue::Queue;
use super::{Note, Policy, Victim};
use crate::addr::BlockId;

/// One in so many blocks is left to those that came once, as in S3-FIFO; and one in any case.
const ONCE_SHARE: usize = 10;
/// A tier this full (in percent) is kept for what came again.
const KEPT_PERCENT: u64 = 75;
/// Tries that a departure allows a queue whose blocks stayed.
const TRIES: usize = 2;
const ONCE: u8 = 0;
const AGAIN: u8 = 1;

#[derive(Debug)]
struct Queues {
    once: Queue,
    again: Queue,
    departures: Departures,
    /// How many more were given out than have left, of late.
    nr_stayed: usize,
}

impl Queues {
    fn len(&self) -> usize {
        self.once.len() + self.again.len()
    }

    fn get(&mut self, queue: u8) -> &mut Queue {
        if queue == AGAIN { &mut self.again } else { &mut self.once }
    }

    /// The queue whose turn it is.
    fn turn(&self) -> u8 {
        let (once, again) = (self.once.len(), self.again.len());
        if once == 0 || again == 0 {
            return if once == 0 { AGAIN } else { ONCE };
        }
        let kept = (self.len() / ONCE_SHARE).max(1);
        let (first, len, other) = if once > kept { (ONCE, once, AGAIN) } else { (AGAIN, again, ONCE) };
        if self.nr_stayed < len { first } else { other }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Twice(Mutex<Queues>);

impl Twice {
    /// Without blocks.
    pub const fn new() -> Self {
        Self(Mutex::new(Queues {
            once: Queue::new(),
            again: Queue::new(),
            departures: Departures::new(),
            nr_stayed: 0,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Twice {
    fn default() -> Self {
        Self::new()
    }
}

impl Policy for Twice {
    fn expect(&self, nr_blocks: usize) {
        let mut queues = self.lock();
        queues.once.reserve(nr_blocks);
        queues.again.reserve(nr_blocks);
    }

    fn came(&self, block: BlockId, note: &mut Note) {
        let mut queues = self.lock();
        note.again = queues.departures.is_within(*note, queues.len());
        queues.get(if note.again { AGAIN } else { ONCE }).push(block);
    }

    fn next(&self) -> Option<Victim> {
        let mut queues = self.lock();
        let queue = queues.turn();
        let nr_blocks = queues.len();
        let block = queues.get(queue).pop()?;
        // When each was tried it begins anew: what could not leave then may by now.
        queues.nr_stayed = (queues.nr_stayed + 1) % nr_blocks;
        Some(Victim { block, queue })
    }

    fn put_back(&self, victim: Victim) {
        let mut queues = self.lock();
        queues.nr_stayed = queues.nr_stayed.saturating_sub(1);
        queues.get(victim.queue).put_back(victim.block);
    }

    fn left(&self, note: &mut Note) {
        let mut queues = self.lock();
        queues.nr_stayed = queues.nr_stayed.saturating_sub(TRIES);
        queues.departures.note(note);
    }

    fn forget(&self, block: BlockId) {
        let mut queues = self.lock();
        queues.once.forget(block);
        queues.again.forget(block);
    }

    fn nr_blocks(&self) -> usize {
        self.lock().len()
    }

    fn block_at(&self, position: usize) -> Option<BlockId> {
        let queues = self.lock();
        queues.once.get(position).or_else(|| queues.again.get(position.checked_sub(queues.once.len())?))
    }

    fn passes_by(&self, note: Note, usage: Usage) -> bool {
        !note.again && usage.used_bytes * 100 > usage.capacity_bytes * KEPT_PERCENT
    }
}
