//! Moves of mappings whose events came too early.
//!
//! The kernel changes mappings under its own lock, lets that go, and only then queues the event. So when one thread unmaps
//! a mapping (or moves it away) and another moves one to its place, the second event may come first. Applied in that
//! order, the first mapping's end would take the second one's states along: its pages would be lost.
//!
//! It can be told: at the place that a mapping moves to nothing is registered, because the kernel has unmapped whatever
//! was there. If an [extent](Extents) is there nevertheless, then the event that ends it has not come yet, but will. So
//! the move waits until it has, and what has moved on from that place waits, too. Of several moves, the one that was
//! the first of all can always be applied: its place is free.
//!
//! Not everything can be told. The thread that has moved the mapping goes on when its event is read, and may unmap a part
//! of it before the late event comes; and what moves away from a part of the place may be old or new: it is taken for new.
//! Calls that the agent stands in front of do not come to that (see [`crate::calls`]).

use hmm_core::addr::{PageRange, Vpn};

use crate::extents::Extents;

/// Moves that can wait at the same time: there is at most one for each of the program's threads, and rarely any.
const MAX_MOVES: usize = 32;

/// Moves that were read and not applied yet, in the order in which they were read.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    moves: [Option<Move>; MAX_MOVES],
}

/// A mapping of the program's has moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) from: PageRange,
    pub(crate) to: Vpn,
}

impl Move {
    const fn place(self) -> PageRange {
        PageRange::new(self.to, self.from.nr_pages())
    }
}

impl Moves {
    /// Adds a move. Gives it back when there is no room.
    pub(crate) fn push(&mut self, new: Move) -> Result<(), Move> {
        let free = self.moves.iter_mut().find(|slot| slot.is_none()).ok_or(new)?;
        *free = Some(new);
        Ok(())
    }

    /// Takes a move out whose place is free, and whose mapping has not come by a move that waits.
    pub(crate) fn next_ready(&mut self, extents: &Extents) -> Option<Move> {
        let is_ready = |wanted: &Move, earlier: &[Option<Move>]| {
            let place = wanted.place();
            extents.next_in(place.start, place.end).is_none()
                && earlier.iter().flatten().all(|other| other.place().intersect(wanted.from) != wanted.from)
        };
        let ready = (0..MAX_MOVES).find(|index| {
            self.moves[*index].is_some_and(|waiting| is_ready(&waiting, &self.moves[..*index]))
        })?;
        let taken = self.moves[ready].take();
        // Those behind it close up: their order counts.
        self.moves[ready..].rotate_left(1);
        taken
    }

    /// Takes the oldest move out, whatever is at its place.
    pub(crate) fn next(&mut self) -> Option<Move> {
        let taken = self.moves[0].take();
        self.moves.rotate_left(1);
        taken
    }

    /// Whether none waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.moves.iter().all(Option::is_none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> PageRange {
        PageRange { start: Vpn(start), end: Vpn(end) }
    }

    #[test]
    fn a_move_waits_until_its_place_is_free() {
        let extents = Extents::default();
        extents.set_vma(range(10, 20));
        extents.set_vma(range(30, 40));
        let early = Move { from: range(30, 40), to: Vpn(15) };
        let mut moves = Moves::default();
        moves.push(early).unwrap();
        assert_eq!(moves.next_ready(&extents), None);
        // Its place was left by another move, whose event comes now.
        let late = Move { from: range(10, 20), to: Vpn(50) };
        moves.push(late).unwrap();
        assert_eq!(moves.next_ready(&extents), Some(late));
        extents.remap(late.from, late.to);
        assert_eq!(moves.next_ready(&extents), Some(early));
        assert!(moves.is_empty());
    }

    #[test]
    fn what_moves_on_from_a_place_waits_as_well() {
        let extents = Extents::default();
        extents.set_vma(range(10, 20));
        let (first, second) =
            (Move { from: range(30, 40), to: Vpn(15) }, Move { from: range(15, 25), to: Vpn(60) });
        let mut moves = Moves::default();
        moves.push(first).unwrap();
        moves.push(second).unwrap();
        assert_eq!(moves.next_ready(&extents), None);
        extents.remove(range(10, 20));
        assert_eq!(moves.next_ready(&extents), Some(first));
        assert_eq!(moves.next_ready(&extents), Some(second));
    }

    #[test]
    fn too_many_moves_come_back() {
        let (mut moves, any) = (Moves::default(), Move { from: range(1, 2), to: Vpn(5) });
        assert_eq!((0..MAX_MOVES).try_for_each(|_| moves.push(any)), Ok(()));
        assert_eq!(moves.push(any), Err(any));
        assert_eq!(moves.next(), Some(any));
        assert_eq!(moves.push(any), Ok(()));
    }
}
