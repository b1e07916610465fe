//! Which blocks of the device's own file are whose.
//!
//! Blocks are taken from where the last search ended, so that what leaves together lies together. Those of a unit lie side by
//! side. They are free again when the last of the unit's frames ends: the first of them has a count of those.
//!
//! # What children read
//!
//! The children of forks read what was there when they were forked (see [`share`](crate::share)). They are numbered from 1 on. What
//! was stored after fork `born`, and has ended before fork `ended + 1`, is what children `born + 1` to `ended` may read. If there
//! are such numbers its blocks are *kept* when it ends here, until it is known that no such child reads any more.

use std::ops::Range;

use hmm_uapi::{AddrRange, Errno};

use crate::bits::Bits;
use crate::entry::Unit;
use crate::share::Claims;
use crate::zeroed::Zeroed;

const BITS: usize = u64::BITS as usize;
/// Blocks that are kept before it is asked for whom.
const FEW: usize = 64;

/// See the module. All of it is made at the start; zeroed memory that is not used is not resident.
#[derive(Debug)]
pub(crate) struct Blocks {
    taken: Bits,
    /// Where the next search begins.
    next: usize,
    /// For the first block of a unit, how many of its frames have not ended.
    living: Zeroed<u8>,
    /// For the first block of a unit, and for each that is kept: the forks before it was stored.
    born: Zeroed<u32>,
    /// For each that is kept: the forks before it ended.
    ended: Zeroed<u32>,
    /// A bit for each that is kept, and the words of these in which there may be some.
    kept: Zeroed<u64>,
    words: Range<usize>,
    nr_kept: usize,
    /// From so many kept blocks on it is asked for whom.
    many: usize,
    /// Forks before what is stored now.
    nr_before: u32,
    /// Forks before what ends now: one more while one is under way, as it may have happened already, or not.
    nr_forks: u32,
    /// Children up to that number are known to read nothing any more.
    nr_over: u32,
}

impl Blocks {
    /// # Errors
    /// There are no addresses left.
    pub(crate) fn new(len: usize) -> Result<Self, Errno> {
        Ok(Self {
            taken: Bits::new(len)?,
            next: 0,
            living: Zeroed::new(len)?,
            born: Zeroed::new(len)?,
            ended: Zeroed::new(len)?,
            kept: Zeroed::new(len.div_ceil(BITS))?,
            words: 0..0,
            nr_kept: 0,
            many: FEW,
            nr_before: 0,
            nr_forks: 0,
            nr_over: 0,
        })
    }

    /// Where they are.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = AddrRange> {
        let numbers = [self.born.range(), self.ended.range()];
        self.taken.ranges().into_iter().chain([self.living.range(), self.kept.range()]).chain(numbers)
    }

    pub(crate) const fn len(&self) -> usize {
        self.taken.len()
    }

    pub(crate) const fn nr_taken(&self) -> usize {
        self.taken.nr_taken()
    }

    /// Takes blocks side by side.
    pub(crate) fn take_run(&mut self, len: usize) -> Option<usize> {
        let start = self.taken.run_from(self.next, len).or_else(|| self.taken.run_from(0, len))?;
        (start..start + len).for_each(|block| self.taken.take(block));
        self.next = start + len;
        Some(start)
    }

    /// Gives the blocks of a unit back that no frame holds, and none has held.
    pub(crate) fn give_run(&mut self, unit: Unit) {
        run(unit).for_each(|block| self.taken.give(block));
    }

    /// So many frames hold a unit now.
    pub(crate) fn begin(&mut self, unit: Unit, nr_frames: u8) {
        let first = unit.block as usize;
        (self.living[first], self.born[first]) = (nr_frames, self.nr_before);
    }

    /// One of a unit's frames has ended.
    pub(crate) fn end_one(&mut self, unit: Unit) {
        let first = unit.block as usize;
        self.living[first] -= 1;
        if self.living[first] > 0 {
            return;
        }
        let born = self.born[first];
        if born.max(self.nr_over) >= self.nr_forks {
            self.give_run(unit);
            return;
        }
        for block in run(unit) {
            (self.born[block], self.ended[block]) = (born, self.nr_forks);
            let word = block / BITS;
            self.kept[word] |= 1 << (block % BITS);
            let (from, to) =
                if self.nr_kept == 0 { (word, word) } else { (self.words.start, self.words.end) };
            self.words = from.min(word)..to.max(word + 1);
            self.nr_kept += 1;
        }
    }

    /// A fork is under way. Returns the child's number.
    pub(crate) const fn begin_fork(&mut self) -> u32 {
        self.nr_forks = self.nr_before + 1;
        self.nr_forks
    }

    /// It has happened, or it will not.
    pub(crate) const fn end_fork(&mut self) {
        self.nr_before = self.nr_forks;
    }

    /// Forks so far, if so many blocks are kept that it should be asked for whom.
    pub(crate) fn nr_forks_to_ask_for(&self, is_needed: bool) -> Option<u32> {
        let are_enough = self.nr_kept >= if is_needed { 1 } else { self.many };
        are_enough.then_some(self.nr_forks)
    }

    /// Gives the blocks back that are kept for none of the children that read: up to the number that was asked for.
    /// Returns how many.
    pub(crate) fn give_kept(&mut self, claims: &Claims) -> usize {
        let before = self.nr_kept;
        if claims.are_none() {
            self.nr_over = self.nr_over.max(claims.up_to());
        }
        for word in self.words.clone() {
            let mut bits = self.kept[word];
            while bits != 0 {
                let block = word * BITS + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                if !claims.may_read(self.born[block], self.ended[block]) {
                    self.kept[word] &= !(1 << (block % BITS));
                    self.nr_kept -= 1;
                    self.taken.give(block);
                }
            }
        }
        self.many = FEW + 2 * self.nr_kept;
        before - self.nr_kept
    }

    /// In a child, whose file is empty.
    pub(crate) fn begin_anew(&mut self) {
        self.taken.clear();
        self.living.clear();
        self.born.clear();
        self.ended.clear();
        self.kept.clear();
        (self.next, self.nr_kept, self.many) = (0, 0, FEW);
        (self.nr_before, self.nr_forks, self.nr_over) = (0, 0, 0);
    }

    #[cfg(test)]
    pub(crate) fn copy_to(&self, other: &mut Self) {
        self.taken.copy_to(&mut other.taken);
        self.living.copy_to(&mut other.living);
        self.born.copy_to(&mut other.born);
        self.ended.copy_to(&mut other.ended);
        self.kept.copy_to(&mut other.kept);
        (other.next, other.words, other.nr_kept, other.many) =
            (self.next, self.words.clone(), self.nr_kept, self.many);
        (other.nr_before, other.nr_forks, other.nr_over) = (self.nr_before, self.nr_forks, self.nr_over);
    }
}

fn run(unit: Unit) -> Range<usize> {
    let first = unit.block as usize;
    first..first + unit.nr_blocks()
}
