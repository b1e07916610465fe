//! What every word of the working set is, at every stage: pure functions of its place.
//!
//! The data is such that lz4 makes about a third of it, like much of what programs keep: a quarter of the groups are
//! random, the rest repeat.

/// Words that are made, and mixed, together.
pub(super) const GROUP: usize = 4;
/// How often the whole working set is mixed.
pub(super) const NR_MIXES: usize = 3;

/// A bijection that leaves no trace of its argument (the finalizer of a 64-bit hash).
pub(super) const fn scramble(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The group as it is filled.
pub(super) fn filled(group: usize) -> [u64; GROUP] {
    let random = scramble(group as u64);
    if random.is_multiple_of(4) {
        std::array::from_fn(|index| scramble(random ^ index as u64))
    } else {
        // The number of a page, as an index or a pointer into it would have it.
        [0, 1, 2, 3].map(|field| ((group / 128) as u64) << 8 | field)
    }
}

/// One pass of mixing: each word with its neighbour in the group, in place.
pub(super) fn mix(group: &mut [u64; GROUP]) {
    let [a, b, c, d] = *group;
    *group = [a.rotate_left(9) ^ b, b.rotate_left(9) ^ c, c.rotate_left(9) ^ d, d.rotate_left(9) ^ a];
}

/// The group when all mixing is done.
pub(super) fn mixed(group: usize) -> [u64; GROUP] {
    let mut words = filled(group);
    (0..NR_MIXES).for_each(|_| mix(&mut words));
    words
}

/// Which words are updated at random, each at most once, and in which order.
///
/// The order is a bijection of a power of two: by its inverse, any word knows whether its turn has come. Places behind
/// the end are skipped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Updates {
    nr_words: usize,
    mask: u64,
    nr_steps: u64,
}

/// Odd, so that it has an inverse; large, so that steps go far.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15 | 1;

impl Updates {
    /// About `wanted` updates of `nr_words` words.
    pub(super) fn new(nr_words: usize, wanted: u64) -> Self {
        let size = (nr_words as u64).next_power_of_two();
        // The places that are skipped are spread evenly.
        let steps = u128::from(wanted) * u128::from(size) / (nr_words as u128).max(1);
        Self { nr_words, mask: size - 1, nr_steps: u64::try_from(steps).unwrap_or(size).min(size) }
    }

    /// Steps to go through, some of which update nothing.
    pub(super) const fn nr_steps(&self) -> u64 {
        self.nr_steps
    }

    /// The word that the step updates, if any.
    pub(super) fn word(&self, step: u64) -> Option<usize> {
        let place = usize::try_from(step.wrapping_mul(FACTOR) & self.mask).ok()?;
        (place < self.nr_words).then_some(place)
    }

    /// The word's value behind its update.
    pub(super) const fn update(word: u64, step: u64) -> u64 {
        word ^ scramble(step)
    }

    /// The word's final value, of the one that it had before.
    pub(super) const fn finally(&self, place: usize, before: u64) -> u64 {
        let step = (place as u64).wrapping_mul(inverse(FACTOR)) & self.mask;
        if step < self.nr_steps { Self::update(before, step) } else { before }
    }
}

/// The inverse of an odd number modulo 2^64, by Newton's method: each round doubles the correct bits, of which the
/// number itself has three.
const fn inverse(odd: u64) -> u64 {
    let mut inverse = odd;
    let mut round = 0;
    while round < 5 {
        inverse = inverse.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(inverse)));
        round += 1;
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inverse_is_one() {
        assert_eq!(FACTOR.wrapping_mul(inverse(FACTOR)), 1);
    }

    #[test]
    fn each_word_is_updated_at_most_once_and_knows_it() {
        for nr_words in [64, 1000, 1024] {
            let updates = Updates::new(nr_words, 300);
            let mut words = vec![7; nr_words];
            let mut nr_updates = 0;
            for step in 0..updates.nr_steps() {
                let Some(place) = updates.word(step) else { continue };
                assert_eq!(words[place], 7, "word {place} is updated twice");
                words[place] = Updates::update(words[place], step);
                nr_updates += 1;
            }
            assert!((nr_words.min(250)..=nr_words.min(350)).contains(&nr_updates), "{nr_updates}");
            for (place, word) in words.into_iter().enumerate() {
                assert_eq!(word, updates.finally(place, 7));
            }
        }
    }

    #[test]
    fn mixing_loses_nothing() {
        let mut seen = std::collections::HashSet::new();
        for group in (0..10_000).filter(|group| filled(*group)[0] > 1 << 32) {
            assert!(seen.insert(mixed(group)), "two different groups became the same");
        }
    }

    #[test]
    fn a_quarter_of_the_groups_is_random() {
        let nr_random = (0..10_000).filter(|group| filled(*group)[0] > 1 << 32).count();
        assert!((2_300..2_700).contains(&nr_random), "{nr_random}");
    }
}
