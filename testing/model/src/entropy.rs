//! Where choices come from: a seed, or the bytes that a fuzzer mutates.

use crate::content::mix;

/// A source of choices.
pub trait Entropy {
    /// The next 64 bits.
    fn bits(&mut self) -> u64;

    /// A number below `bound`, 0 if that is 0. The bias of the remainder does not matter here.
    fn below(&mut self, bound: u32) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "less than bound")]
        let number = (self.bits() % u64::from(bound.max(1))) as u32;
        number
    }

    /// True once in `rarity` times.
    fn one_in(&mut self, rarity: u32) -> bool {
        self.below(rarity) == 0
    }
}

/// Choices that follow from a seed (SplitMix64): the same seed gives the same choices on every machine.
#[derive(Clone, Debug)]
pub struct Seeded(u64);

impl Seeded {
    /// The choices that follow from `seed`.
    pub const fn new(seed: u64) -> Self {
        // Seeds that follow each other must not give the same sequence, one step apart.
        Self(mix(seed))
    }
}

impl Entropy for Seeded {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

/// Choices read from bytes, one byte for a small choice, so that a mutation of one byte changes one choice.
#[derive(Clone, Debug)]
pub struct Bytes<'a> {
    rest: &'a [u8],
}

impl<'a> Bytes<'a> {
    /// The choices that `bytes` encode. Behind their end every choice is 0.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Whether all bytes are used up.
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// How many are left.
    pub const fn len(&self) -> usize {
        self.rest.len()
    }

    fn take(&mut self, nr_bytes: usize) -> u64 {
        let (taken, rest) = self.rest.split_at(nr_bytes.min(self.rest.len()));
        self.rest = rest;
        taken.iter().fold(0, |bits, byte| bits << 8 | u64::from(*byte))
    }
}

impl Entropy for Bytes<'_> {
    fn bits(&mut self) -> u64 {
        self.take(8)
    }

    fn below(&mut self, bound: u32) -> u32 {
        let nr_bytes = match bound {
            0..=0x100 => 1,
            0x101..=0x1_0000 => 2,
            _ => 4,
        };
        #[expect(clippy::cast_possible_truncation, reason = "less than bound")]
        let number = (self.take(nr_bytes) % u64::from(bound.max(1))) as u32;
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_itself_and_no_other() {
        let sequence = |seed| {
            let mut entropy = Seeded::new(seed);
            (0..8).map(|_| entropy.bits()).collect::<Vec<_>>()
        };
        assert_eq!(sequence(5), sequence(5));
        assert_ne!(sequence(5)[1..], sequence(6)[..7]);
        assert_ne!(sequence(5), sequence(6));
    }

    #[test]
    fn bytes_run_out_quietly() {
        let mut entropy = Bytes::new(&[3, 1, 0]);
        assert_eq!(entropy.below(10), 3);
        assert_eq!(entropy.below(1000), 256);
        assert!(entropy.is_empty());
        assert_eq!((entropy.below(10), entropy.bits()), (0, 0));
    }
}
