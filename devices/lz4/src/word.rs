//! What a frame is, in one 64-bit word:
//!
//! | bits | |
//! | --- | --- |
//! | 0-2 | kind: free, empty, same-filled, page unit, stream unit |
//! | 3-4 | stream unit: which of its pages |
//! | 5-19 | unit: length of the stored bytes |
//! | 20-55 | unit: offset of its slot, in granules of 16 bytes (reaches 1 TiB) |
//! | 56-62 | readers at work; of an empty frame: who is filling it |
//! | 63 | freed, ends with its last reader |
//!
//! A word of zero is a free frame, so that a fresh table needs no initialisation.

use crate::classes::GRANULE;

const KIND: u64 = 0b111;
const FREE: u64 = 0;
const EMPTY: u64 = 1;
const SAME: u64 = 2;
const PAGE: u64 = 3;
const STREAM: u64 = 4;

const PART_SHIFT: u32 = 3;
const PART: u64 = 0b11;
const LEN_SHIFT: u32 = 5;
const LEN: u64 = (1 << 15) - 1;
const PLACE_SHIFT: u32 = 20;
const PLACE: u64 = (1 << 36) - 1;

/// One reader.
const READER: u64 = 1 << 56;
const READERS: u64 = 127 << 56;
const DOOMED: u64 = 1 << 63;

/// Bytes that the offsets of slots can reach.
pub(crate) const MAX_REGION_BYTES: usize = 1 << (36 + GRANULE.ilog2());

/// Where a frame's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    /// Offset of the slot in the region of slabs.
    pub(crate) offset: usize,
    /// Length of the stored bytes.
    pub(crate) len: usize,
    /// `None`: the unit is this one page. Else it is a stream unit, and this is the page's place in it.
    pub(crate) part: Option<usize>,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Not handed out.
    Free,
    /// Handed out, not stored to.
    Empty,
    /// One 64-bit word, over and over; its tag is that word.
    Same,
    /// Stored in a slot.
    Unit(Unit),
}

/// A frame's word: its state, and who reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(pub(crate) u64);

impl Word {
    /// The word of a frame that nobody reads.
    pub(crate) const fn new(state: State) -> Self {
        Self(match state {
            State::Free => FREE,
            State::Empty => EMPTY,
            State::Same => SAME,
            State::Unit(Unit { offset, len, part }) => {
                let (kind, part) = match part {
                    None => (PAGE, 0),
                    Some(part) => (STREAM, part as u64),
                };
                kind | part << PART_SHIFT
                    | (len as u64) << LEN_SHIFT
                    | ((offset / GRANULE) as u64) << PLACE_SHIFT
            }
        })
    }

    /// What the frame is, whoever reads it.
    pub(crate) const fn state(self) -> State {
        let part = match self.0 & KIND {
            EMPTY => return State::Empty,
            SAME => return State::Same,
            PAGE => None,
            STREAM => Some((self.0 >> PART_SHIFT & PART) as usize),
            _ => return State::Free,
        };
        let len = (self.0 >> LEN_SHIFT & LEN) as usize;
        let offset = (self.0 >> PLACE_SHIFT & PLACE) as usize * GRANULE;
        State::Unit(Unit { offset, len, part })
    }

    /// With one reader more; `None` when it is freed, or has all the readers it can have.
    pub(crate) const fn with_reader(self) -> Option<Self> {
        if self.is_doomed() || self.0 & READERS == READERS { None } else { Some(Self(self.0 + READER)) }
    }

    /// With one reader less. There must be one.
    pub(crate) const fn without_reader(self) -> Self {
        Self(self.0 - READER)
    }

    /// Freed, but still read.
    pub(crate) const fn doomed(self) -> Self {
        Self(self.0 | DOOMED)
    }

    /// Whether it was freed and only its readers are left.
    pub(crate) const fn is_doomed(self) -> bool {
        self.0 & DOOMED != 0
    }

    /// Whether somebody reads it.
    pub(crate) const fn is_read(self) -> bool {
        self.0 & READERS != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_survive_the_word() {
        let units = [None, Some(0), Some(3)].into_iter().flat_map(|part| {
            [0, 16, 48 << 20, MAX_REGION_BYTES - 16]
                .into_iter()
                .flat_map(move |offset| [1, 4096, 16384].map(|len| State::Unit(Unit { offset, len, part })))
        });
        for state in [State::Free, State::Empty, State::Same].into_iter().chain(units) {
            let word = Word::new(state);
            assert_eq!(word.state(), state);
            assert!(!word.is_read() && !word.is_doomed());
        }
        assert_eq!(Word(0).state(), State::Free);
    }

    #[test]
    fn readers_and_doom_do_not_disturb_the_state() {
        let state = State::Unit(Unit { offset: MAX_REGION_BYTES - 16, len: 16384, part: Some(3) });
        let mut word = Word::new(state);
        for _ in 0..127 {
            word = word.with_reader().unwrap();
        }
        assert_eq!(word.with_reader(), None, "full");
        assert_eq!((word.state(), word.doomed().state()), (state, state));
        assert_eq!(word.without_reader().doomed().with_reader(), None, "freed");
        assert!(word.doomed().is_doomed() && word.is_read());
    }
}
