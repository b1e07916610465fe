//! What happens next, from a seed.

use hmm_model::{Entropy, Seeded};

use super::place::{PAGE, Place};

/// A thread's choices.
#[derive(Clone, Debug)]
pub(crate) struct Chance(Seeded);

impl Chance {
    /// The choices that follow from a seed, for one of those that share it.
    pub(crate) const fn new(seed: u64, number: u64) -> Self {
        Self(Seeded::new(seed.wrapping_mul(1_000_003).wrapping_add(number)))
    }

    /// A number below `bound`, 0 if that is 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0.below(u32::try_from(bound).unwrap_or(u32::MAX)) as usize
    }

    /// True once in so many times.
    pub(crate) fn one_in(&mut self, rarity: usize) -> bool {
        self.below(rarity) == 0
    }

    /// 64 bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0.bits()
    }

    /// One of several.
    pub(crate) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// A few pages of so many: single ones, some, up to a block, or all of an aligned block.
    pub(crate) fn span(&mut self, nr_pages: usize) -> (usize, usize) {
        const BLOCK: usize = 512;
        let first = match self.below(4) {
            0 => self.below(nr_pages.div_ceil(BLOCK)) * BLOCK,
            // A few pages that come again.
            1 => self.below(16) * 5 % nr_pages,
            _ => self.below(nr_pages),
        };
        let longest = match self.below(16) {
            0..=4 => 1,
            5..=9 => 8,
            10..=13 => 64,
            _ => BLOCK,
        };
        (first, 1 + self.below(longest.min(nr_pages - first)))
    }

    /// Fills a buffer: words that shrink well, noise, one value, or zeroes.
    pub(crate) fn fill(&mut self, buffer: Place) {
        let (kind, first) = (self.below(8), self.bits());
        for number in 0..buffer.len() / 8 {
            let value = match kind {
                0..=2 => first.wrapping_add(number as u64),
                3 | 4 => self.bits(),
                5 | 6 => first.wrapping_add((number * 8 / PAGE) as u64),
                _ => 0,
            };
            buffer.set_word(number, value);
        }
    }
}
