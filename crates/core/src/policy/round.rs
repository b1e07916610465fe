//! The default: as the clock; but while a program goes round through more than there is room for, those that came last leave.
//!
//! Who reads twice as much as there is room for, from the front to the back and again, would find nothing of it in the clock's order:
//! each block leaves just before its turn. The best that can be done is to keep what is there, and have the rest pass through
//! a few places (Belady's order is that for such a program). Then one of the newest leaves, but not what streams are at work
//! on.
//!
//! Nobody sees touches of what is there, so what becomes of what has left has to tell of what kind a program is. It goes round
//! if the oldest come back soon, in streams, once they have left. While the newest leave, the oldest still has its turn now and
//! then, and is known by its return: in a round everything that has left comes back once, what was kept as well as what
//! passed. So if one that passed comes back, and none that had been kept has for half as long again as it was away, what is kept
//! is of no use any more: the program has gone on to something else, as a sort does after each of its rounds, and what is newest
//! is wanted. The order is the clock's again, until the oldest come back once more, and more of them than the first time.
//!
//! Among strays the order stays the clock's: a block that has just come back has few of its pages, and taking it out costs as
//! much as one that has all.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::departures::{Departures, Moment};
use super::queue::Queue;
use super::{Brings, Fault, Note, Policy, Victim};
use crate::addr::BlockId;

/// Blocks have come back soon if they left so many times the number of resident blocks ago, at most.
const SOON: usize = 4;
/// What the return of one that was the oldest weighs, against 1 for its departure.
const RETURN: isize = 2;
/// From what on the program is found to go round, and the most that is counted: such a part of the resident blocks.
const GOES_ROUND: isize = 16;
const MOST: isize = 8;
/// What a fault of a stream weighs against one of none, from what on faults are found to be of streams, and the most.
const STREAM: i32 = 4;
const STREAMS: i32 = 32;
const MAX_STREAMS: i32 = 64;
/// Blocks that streams are at work on: the last that came.
const NR_AT_WORK: usize = 8;
/// With fewer blocks than this the order stays as it is.
const MIN_BLOCKS: usize = 4 * NR_AT_WORK;
/// One of so many departures is the oldest's.
const OLDEST_TURN: u32 = 16;

const FRONT: u8 = 0;
const BACK: u8 = 1;

#[derive(Debug)]
struct Hand {
    queue: Queue,
    departures: Departures,
    /// Whether the program is taken to go round.
    goes_round: bool,
    /// While it is not: how much more of the oldest comes back than leaves.
    returns: isize,
    turn: u32,
    /// Newest blocks that were given out, and have not left yet.
    nr_newest_out: usize,
    /// When one that was the oldest came back last.
    kept_returned: Moment,
}

impl Hand {
    fn count(&mut self, change: isize) {
        if self.goes_round {
            return;
        }
        let most = self.most();
        self.returns = (self.returns + change).clamp(-most, most);
        self.goes_round = self.returns >= (self.queue.len().cast_signed() / GOES_ROUND).max(1);
    }

    fn most(&self) -> isize {
        self.queue.len().cast_signed() / MOST
    }

    /// A block is back that left not long ago.
    fn returned(&mut self, note: Note) {
        if !note.again {
            self.count(RETURN);
            self.kept_returned = self.departures.now();
        } else if self.departures.is_long_before(self.kept_returned, note) {
            self.goes_round = false;
            self.returns = -self.most();
        }
    }

    fn takes_newest(&self) -> bool {
        self.goes_round && self.queue.len() >= MIN_BLOCKS
    }
}

/// See the module.
#[derive(Debug)]
pub struct Round {
    hand: Mutex<Hand>,
    /// How much faults are of streams. Changed without the lock: one that gets lost does no harm.
    streams: AtomicI32,
}

impl Round {
    /// Without blocks.
    pub const fn new() -> Self {
        let departures = Departures::new();
        let kept_returned = departures.now();
        let hand = Hand {
            queue: Queue::new(),
            departures,
            goes_round: false,
            returns: 0,
            turn: 0,
            nr_newest_out: 0,
            kept_returned,
        };
        Self { hand: Mutex::new(hand), streams: AtomicI32::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Hand> {
        self.hand.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Round {
    fn default() -> Self {
        Self::new()
    }
}

impl Policy for Round {
    fn expect(&self, nr_blocks: usize) {
        self.lock().queue.reserve(nr_blocks);
    }

    fn came(&self, block: BlockId, note: &mut Note) {
        let mut hand = self.lock();
        if hand.departures.is_within(*note, SOON * hand.queue.len()) {
            hand.returned(*note);
        }
        hand.queue.push(block);
    }

    fn next(&self) -> Option<Victim> {
        let mut hand = self.lock();
        let takes_newest = hand.takes_newest() && self.streams.load(Ordering::Relaxed) >= STREAMS;
        if takes_newest {
            hand.turn = (hand.turn + 1) % OLDEST_TURN;
            if hand.turn != 0 {
                hand.nr_newest_out += 1;
                return hand.queue.take_newest(NR_AT_WORK).map(|block| Victim { block, queue: BACK });
            }
        }
        hand.queue.pop().map(|block| Victim { block, queue: FRONT })
    }

    fn put_back(&self, victim: Victim) {
        let mut hand = self.lock();
        if victim.queue == BACK {
            hand.nr_newest_out = hand.nr_newest_out.saturating_sub(1);
            hand.queue.put_back_newest(NR_AT_WORK, victim.block);
        } else {
            hand.queue.put_back(victim.block);
        }
    }

    fn left(&self, note: &mut Note) {
        let mut hand = self.lock();
        hand.departures.note(note);
        // Of several that leave at the same time one may be taken for the other.
        note.again = hand.nr_newest_out > 0;
        if note.again {
            hand.nr_newest_out -= 1;
        } else {
            hand.count(-1);
        }
    }

    fn forget(&self, block: BlockId) {
        self.lock().queue.forget(block);
    }

    fn nr_blocks(&self) -> usize {
        self.lock().queue.len()
    }

    fn block_at(&self, position: usize) -> Option<BlockId> {
        self.lock().queue.get(position)
    }

    fn brings(&self, fault: &Fault) -> Brings {
        let change = if fault.hit.is_sequential() { STREAM } else { -1 };
        let streams = self.streams.load(Ordering::Relaxed) + change;
        self.streams.store(streams.clamp(0, MAX_STREAMS), Ordering::Relaxed);
        fault.brings()
    }
}
