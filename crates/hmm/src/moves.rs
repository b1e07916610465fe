//! Moves of mappings whose events came too early.
//!
//! The kernel changes mappings under its own lock, lets that go, and only then queues the events. So when one thread unmaps
//! a mapping, or moves it away, and another moves one to its place, the second's event may come first. Applied in that
//! order, the first mapping's end would take the second one's states along: its pages would be lost. There are two events
//! of a move, and the second, that its old place is unmapped, is queued only when the thread runs again that has waited for
//! the first to be read: that takes long enough to be overtaken. And while a move waits here its second event waits with it.
//!
//! It can be told: at the place that a mapping moves to nothing is registered, because the kernel has unmapped whatever
//! was there. If an [extent](Extents) is there nevertheless (also that of a mapping that has moved on from there stays
//! until the second event), then the event that ends it has not come yet, but will. So the move waits until it has, and
//! what has moved on from that place waits, too. Of several moves, the one that was the first of all can always be applied:
//! its place is free.
//!
//! Not everything can be told. The thread that has moved the mapping goes on when its event is read, and may unmap a part
//! of it before the late event comes; and what moves away from a part of the place may be old or new: it is taken for new.
//! The agent moves mappings only to places whose old extents are gone, and does not come to that.

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
    /// The event that it has left its old place, which must not be applied before the move, has been read, too.
    pub(crate) has_left: bool,
}

impl Move {
    pub(crate) const fn new(from: PageRange, to: Vpn) -> Self {
        Self { from, to, has_left: false }
    }

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

    /// A range was unmapped: whether that is the second event of a move that waits, and comes with it.
    pub(crate) fn has_left(&mut self, range: PageRange) -> bool {
        let waiting =
            self.moves.iter_mut().flatten().find(|waiting| waiting.from == range && !waiting.has_left);
        waiting.map(|waiting| waiting.has_left = true).is_some()
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
        let early = Move::new(range(30, 40), Vpn(15));
        let mut moves = Moves::default();
        moves.push(early).unwrap();
        assert_eq!(moves.next_ready(&extents), None);
        // Its place was left by another move, of which now both events come.
        let late = Move::new(range(10, 20), Vpn(50));
        moves.push(late).unwrap();
        assert_eq!(moves.next_ready(&extents), Some(late));
        extents.moved(late.from, late.to);
        assert_eq!(moves.next_ready(&extents), None);
        extents.remove(late.from);
        assert_eq!(moves.next_ready(&extents), Some(early));
        assert!(moves.is_empty());
    }

    #[test]
    fn what_moves_on_from_a_place_waits_as_well() {
        let extents = Extents::default();
        extents.set_vma(range(10, 20));
        let (first, second) = (Move::new(range(30, 40), Vpn(15)), Move::new(range(15, 25), Vpn(60)));
        let mut moves = Moves::default();
        moves.push(first).unwrap();
        moves.push(second).unwrap();
        assert_eq!(moves.next_ready(&extents), None);
        extents.remove(range(10, 20));
        assert_eq!(moves.next_ready(&extents), Some(first));
        assert_eq!(moves.next_ready(&extents), Some(second));
    }

    #[test]
    fn the_second_event_of_a_move_waits_with_it() {
        let extents = Extents::default();
        extents.set_vma(range(10, 20));
        let mut moves = Moves::default();
        assert!(!moves.has_left(range(30, 40)));
        moves.push(Move::new(range(30, 40), Vpn(10))).unwrap();
        assert!(!moves.has_left(range(10, 20)), "what the move waits for does not wait for the move");
        assert!(moves.has_left(range(30, 40)));
        assert!(!moves.has_left(range(30, 40)), "there is one");
        extents.remove(range(10, 20));
        let applied = moves.next_ready(&extents).unwrap();
        assert!(applied.has_left);
    }

    #[test]
    fn too_many_moves_come_back() {
        let (mut moves, any) = (Moves::default(), Move::new(range(1, 2), Vpn(5)));
        assert_eq!((0..MAX_MOVES).try_for_each(|_| moves.push(any)), Ok(()));
        assert_eq!(moves.push(any), Err(any));
        assert_eq!(moves.next(), Some(any));
        assert_eq!(moves.push(any), Ok(()));
    }
}
