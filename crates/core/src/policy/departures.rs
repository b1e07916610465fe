//! How many blocks have left, as a clock: a block's note says when it left, and so how long ago that was when it comes back.

use super::Note;

/// Departures so far, never 0: a note with 0 is of a block that never left.
#[derive(Debug)]
pub(super) struct Departures(u32);

/// A time on this clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment(u32);

impl Departures {
    pub(super) const fn new() -> Self {
        Self(1)
    }

    pub(super) const fn now(&self) -> Moment {
        Moment(self.0)
    }

    /// Whether a moment was longer ago than half as long again as the departure of a block.
    pub(super) const fn is_long_before(&self, moment: Moment, note: Note) -> bool {
        self.0.wrapping_sub(moment.0) / 3 * 2 > self.0.wrapping_sub(note.left)
    }

    /// Notes that a block leaves now.
    pub(super) fn note(&mut self, note: &mut Note) {
        self.0 = self.0.wrapping_add(1).max(1);
        note.left = self.0;
    }

    /// Whether a block left, and no more than so many departures ago.
    pub(super) const fn is_within(&self, note: Note, distance: usize) -> bool {
        note.left != 0 && self.0.wrapping_sub(note.left) as usize <= distance
    }
}
