//! What leaves next, what comes ahead, and where it goes: decisions that change no result, only what it costs.
//!
//! The engine asks a [`Policy`], and does the rest: a policy sees blocks and pages, never states, locks or devices. Four
//! are here, by [`Name`]; [`Engine::with_policy`](crate::Engine::with_policy) takes any other. The same policies can be
//! asked by a model of memory, which is how recorded traces are replayed.
//!
//! # What a policy may rely on
//!
//! - Calls come from any thread, several at a time. A block's own calls ([`came`](Policy::came), [`left`](Policy::left)) come
//!   one after the other: the caller holds the block's lock, and so no policy may call the engine.
//! - A block is given to `came` once; then not again until [`next`](Policy::next) or [`forget`](Policy::forget) took it out.
//! - Calls are made while a fault is served: they must be short, and wait for nobody but each other.

mod clock;
mod departures;
mod fifo;
mod queue;
mod round;
mod twice;

use std::fmt;
use std::str::FromStr;

use hmm_device::Usage;
use thiserror::Error;

use crate::addr::{BlockId, Vpn};
use crate::stream::Hit;
use crate::stride::Stride;

pub use clock::Clock;
pub use fifo::Fifo;
pub use round::Round;
pub use twice::Twice;

/// What a policy keeps of a block, from its first page to the end of the engine: it has no memory of its own for blocks that
/// are away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// When the block left last, as its policy counts; 0 when it never did.
    pub left: u32,
    /// Whether it had come back soon when it came last, or whatever else its policy notes.
    pub again: bool,
}

/// A block that is to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Victim {
    /// The block.
    pub block: BlockId,
    /// Where the policy had it, for [`Policy::put_back`].
    pub queue: u8,
}

/// What a fault found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A hole that was never touched.
    FirstTouch,
    /// A page that had left the program, and was still in memory.
    SecondChance,
    /// A page on a device.
    Fetch,
}

/// A fault, as a policy sees it.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Where.
    pub page: Vpn,
    /// What was found there.
    pub cause: Cause,
    /// What the streams say.
    pub hit: Hit,
    /// Pages that come together by default, if no stream says more: a power of two.
    pub together: usize,
}

impl Fault {
    /// What it brings by default.
    pub const fn brings(&self) -> Brings {
        Brings { around: self.together, window: self.hit.window }
    }
}

/// Pages that a fault brings at once, as far as they are in the same state and block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brings {
    /// Those of the aligned group of so many that the page is in: a power of two, 1 for the page alone.
    pub around: usize,
    /// So many from there on, or from the page on where there is no group. Those in front of it where the fault's stream goes down.
    pub window: usize,
}

impl Brings {
    /// For a fault at the page with this index in its block: the index at which it may begin, and how many may come from the page
    /// on, itself among them.
    pub fn span(self, index: usize, stride: Stride) -> (usize, usize) {
        let around = self.around.max(1);
        let first = index / around * around;
        let rest = first + around - index;
        match stride {
            Stride::UP => (first, rest.max(self.window)),
            Stride::DOWN => (first.min((index + 1).saturating_sub(self.window)), rest),
            _ => (first, rest),
        }
    }

    /// The same where there is nothing yet: a stream fills no holes behind it.
    pub fn span_of_holes(self, index: usize, stride: Stride) -> (usize, usize) {
        let around = if stride.is_dense() { 1 } else { self.around };
        Self { around, ..self }.span(index, stride)
    }
}

/// The decisions. Those with a body are the default's.
pub trait Policy: Send + Sync + fmt::Debug {
    /// There may be so many blocks: what they need is to be allocated now, because faults may be served where nothing can
    /// be.
    fn expect(&self, nr_blocks: usize) {
        let _ = nr_blocks;
    }

    /// The block has resident pages now, and is not among those that may leave. The note is the block's.
    fn came(&self, block: BlockId, note: &mut Note);

    /// The block that leaves next. It is not among them any more.
    fn next(&self) -> Option<Victim>;

    /// What `next` gave could not leave now: it is the next one again.
    fn put_back(&self, victim: Victim);

    /// Pages of the block have left.
    fn left(&self, note: &mut Note);

    /// The block leaves by itself: it is not among those any more.
    fn forget(&self, block: BlockId);

    /// Blocks that may leave.
    fn nr_blocks(&self) -> usize;

    /// One of them, the next ones first. `None`: there are not so many.
    fn block_at(&self, position: usize) -> Option<BlockId>;

    /// Blocks that wait in staging, where a touch is cheap, before the oldest goes on to a device.
    fn nr_waiting(&self, nr_bays: u32) -> usize {
        (nr_bays / 2) as usize
    }

    /// What a fault brings.
    fn brings(&self, fault: &Fault) -> Brings {
        fault.brings()
    }

    /// Pages to fetch ahead of need behind what a fault brought, as its stream goes; 0 for none.
    fn ahead(&self, hit: &Hit) -> usize {
        if hit.is_sequential() { hit.ahead } else { 0 }
    }

    /// Whether a page that comes home keeps its frame on the device; `pays` says whether that has paid of late.
    fn keeps_copy(&self, pays: bool) -> bool {
        pays
    }

    /// Whether pages of a block with this note pass by a tier that is so full, because there is another behind it. If that
    /// takes none, they go there all the same.
    fn passes_by(&self, note: Note, usage: Usage) -> bool {
        let _ = (note, usage);
        false
    }
}

/// The policies that can be chosen by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Name {
    /// [`Clock`].
    Clock,
    /// [`Fifo`].
    Fifo,
    /// [`Twice`].
    Twice,
    /// [`Round`].
    #[default]
    Round,
}

impl Name {
    /// All of them, the default first.
    pub const ALL: [Self; 4] = [Self::Round, Self::Clock, Self::Fifo, Self::Twice];

    /// As it is typed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Clock => "clock",
            Self::Fifo => "fifo",
            Self::Twice => "twice",
            Self::Round => "round",
        }
    }

    /// What it does, in a line.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Clock => "in the order in which they came, with a second chance; streams are fetched ahead",
            Self::Fifo => "in the order in which they came; nothing comes but what is touched",
            Self::Twice => "what came once before what came again, so that a scan does not push out the rest",
            Self::Round => {
                "as clock; but of what is gone through over and over, and is too much, a part stays"
            }
        }
    }

    /// The one with this number, as `as u8` gives it.
    pub fn of_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|name| *name as u8 == number)
    }

    /// One that knows no block.
    pub fn policy(self) -> Box<dyn Policy> {
        match self {
            Self::Clock => Box::new(Clock::new()),
            Self::Fifo => Box::new(Fifo::new()),
            Self::Twice => Box::new(Twice::new()),
            Self::Round => Box::new(Round::new()),
        }
    }
}

/// There is no policy of that name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown policy '{given}': there are round, clock, fifo and twice")]
pub struct UnknownName {
    given: String,
}

impl FromStr for Name {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let found = Self::ALL.into_iter().find(|name| name.as_str() == text);
        found.ok_or_else(|| UnknownName { given: text.to_owned() })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests;
