//! Why forks are refused: counted for whoever runs the program, and said when it ends by it.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use hmm::core::stats::Stats;

use crate::books::own_slot;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Refusal {
    /// No process more fits into the control page, or no descriptors are left.
    NoPlace,
    /// No device takes what has to leave for the child.
    NoRoom,
    /// Pages are where a child cannot have them.
    Away,
    /// The engine did not come to rest.
    Restless,
    /// The child's copy of the engine was of no use, again and again.
    Useless,
}

const ALL: [Refusal; 5] =
    [Refusal::NoPlace, Refusal::NoRoom, Refusal::Away, Refusal::Restless, Refusal::Useless];

static LAST: AtomicU8 = AtomicU8::new(0);

impl Refusal {
    const fn counter(self, stats: &Stats) -> &AtomicU64 {
        match self {
            Self::NoPlace => &stats.fork_no_place,
            Self::NoRoom => &stats.fork_no_room,
            Self::Away => &stats.fork_away,
            Self::Restless => &stats.fork_restless,
            Self::Useless => &stats.fork_useless,
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::NoPlace => {
                "a fork could not be arranged: there are 128 processes, or no descriptors are left"
            }
            Self::NoRoom => "a fork could not be arranged: the devices are full",
            Self::Away => {
                "a fork could not be arranged: pages are in a file that a child cannot have, or away and CAP_SYS_PTRACE is missing"
            }
            Self::Restless => "a fork could not be arranged: the engine did not come to rest",
            Self::Useless => "a fork could not be arranged: the child's copy of the engine was of no use",
        }
    }

    /// Counts a fork that was refused for that.
    pub(crate) fn note(self) {
        LAST.store(self as u8, Ordering::Relaxed);
        self.counter(own_slot().stats()).fetch_add(1, Ordering::Relaxed);
    }
}

/// What the last fork was refused for.
pub(crate) fn last() -> &'static str {
    let last = ALL.into_iter().find(|this| *this as u8 == LAST.load(Ordering::Relaxed));
    last.unwrap_or(Refusal::NoPlace).text()
}
