//! An entry of the frame table: what the frame is, and the tag that goes with it.
//!
//! Two words cannot be changed at once. So nobody writes the tag of a frame that another may be reading, and nobody reads
//! one that another may be writing:
//!
//! - The tag of a free frame belongs to the free list, and is used under its lock.
//! - Who fills an empty frame *claims* it: it counts as its only reader, and an empty frame is not read by others. The
//!   word that says what the frame has become is stored after the tag.
//! - Who reads a full frame *pins* it first: raises the reader count in the word. Then the tag is that of the word.
//! - A frame that is pinned or claimed does not end. Freeing it marks the word, and the last to let it go ends it.
//!
//! By the contract of [`Device`](hmm_device::Device) nobody frees a frame that is being fetched or stored to, and nobody
//! stores to one twice. Here it is made sure, at the price of two atomic operations a transfer, so that a mistake of the
//! caller cannot become a broken promise of ours.

use crate::sync::{AtomicU64, Ordering};
use crate::word::{State, Word};

/// See the module. All zero is a valid one: a free frame, the last of its list.
#[derive(Debug, Default)]
#[repr(C, align(16))]
pub(crate) struct Entry {
    /// What the frame is, and how many read it.
    word: AtomicU64,
    /// Of a full frame: the page's fingerprint, or its pattern. Of a free frame: the next free one.
    tag: AtomicU64,
}

impl Entry {
    /// The next free frame, as the list has set it. The caller holds the list's lock.
    pub(crate) fn next_free(&self) -> u64 {
        self.tag.load(Ordering::Relaxed)
    }

    /// Notes the next free frame. The caller holds the list's lock, and this frame has ended.
    pub(crate) fn set_next_free(&self, next: u64) {
        self.tag.store(next, Ordering::Relaxed);
    }

    /// Makes a free frame an empty one. The caller has taken it off the list.
    pub(crate) fn hand_out(&self) {
        self.word.store(Word::new(State::Empty).0, Ordering::Relaxed);
    }

    /// Claims an empty frame, to fill it. `false`: it is not empty, or is claimed. Who claims it fills it; if it cannot,
    /// it lets it go.
    pub(crate) fn claim(&self) -> bool {
        let empty = Word::new(State::Empty);
        let Some(claimed) = empty.with_reader() else { return false };
        self.word.compare_exchange(empty.0, claimed.0, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Fills the claimed frame, which ends the claim. `false`: it was freed meanwhile, and is still claimed.
    pub(crate) fn fill(&self, state: State, tag: u64) -> bool {
        self.tag.store(tag, Ordering::Relaxed);
        let Some(claimed) = Word::new(State::Empty).with_reader() else { return false };
        self.word
            .compare_exchange(claimed.0, Word::new(state).0, Ordering::Release, Ordering::Relaxed)
            .is_ok()
    }

    /// Pins a full frame, and returns what it is, with its tag. `None`: nothing was stored to it, or it was freed.
    pub(crate) fn pin(&self) -> Option<(State, u64)> {
        let mut word = Word(self.word.load(Ordering::Relaxed));
        loop {
            if matches!(word.state(), State::Free | State::Empty) || word.is_doomed() {
                return None;
            }
            let Some(pinned) = word.with_reader() else {
                // More readers than the word counts: one of them is about to leave.
                std::hint::spin_loop();
                word = Word(self.word.load(Ordering::Relaxed));
                continue;
            };
            match self.word.compare_exchange_weak(word.0, pinned.0, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some((word.state(), self.tag.load(Ordering::Relaxed))),
                Err(now) => word = Word(now),
            }
        }
    }

    /// Lets a frame go that the caller has pinned or claimed. If it was the last of a frame that was freed, the word says
    /// free from here on, and what it said before is returned: the caller takes back what belonged to it.
    pub(crate) fn unpin(&self) -> Option<State> {
        let release = |word| {
            let left = Word(word).without_reader();
            Some(if left.is_doomed() && !left.is_read() { Word::new(State::Free) } else { left }.0)
        };
        let before = Word(self.word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, release).ok()?);
        (before.is_doomed() && !before.without_reader().is_read()).then(|| before.state())
    }

    /// Frees a frame. If nobody has pinned it the word says free from here on, and what it said before is returned: the
    /// caller takes back what belonged to it. `None`: the last to let it go does that; or it is not in use.
    pub(crate) fn end(&self) -> Option<State> {
        let mark = |word| {
            let word = Word(word);
            let in_use = word.state() != State::Free && !word.is_doomed();
            in_use.then(|| if word.is_read() { word.doomed() } else { Word::new(State::Free) }.0)
        };
        let before = Word(self.word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, mark).ok()?);
        (!before.is_read()).then(|| before.state())
    }
}

#[cfg(any(loom, shuttle))]
#[cfg(test)]
mod interleavings;
