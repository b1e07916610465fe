//! Which of many are taken: a bit for each, and a second level of bits that knows the words in which none is free.

use hmm_uapi::{AddrRange, Errno};

use crate::zeroed::Zeroed;

const BITS: usize = u64::BITS as usize;
/// Places that are looked at in the search for a run: after that it is given up, however many there are.
const MAX_PLACES: usize = 256;

/// See the module. All of it is made at the start; zeroed memory that is not used is not resident.
#[derive(Debug)]
pub(crate) struct Bits {
    taken: Zeroed<u64>,
    /// A bit for each word of `taken` in which none is free.
    full: Zeroed<u64>,
    len: usize,
    nr_taken: usize,
}

impl Bits {
    /// # Errors
    /// There are no addresses left.
    pub(crate) fn new(len: usize) -> Result<Self, Errno> {
        let nr_words = len.div_ceil(BITS);
        let mut this = Self {
            taken: Zeroed::new(nr_words)?,
            full: Zeroed::new(nr_words.div_ceil(BITS))?,
            len,
            nr_taken: 0,
        };
        this.end();
        Ok(this)
    }

    /// What is behind the last one is never free.
    fn end(&mut self) {
        let nr_words = self.taken.len();
        if !self.len.is_multiple_of(BITS) {
            self.taken[nr_words - 1] = u64::MAX << (self.len % BITS);
        }
        if !nr_words.is_multiple_of(BITS) {
            self.full[nr_words / BITS] = u64::MAX << (nr_words % BITS);
        }
    }

    /// Gives all of them back.
    pub(crate) fn clear(&mut self) {
        self.taken.clear();
        self.full.clear();
        self.nr_taken = 0;
        self.end();
    }

    #[cfg(test)]
    pub(crate) fn copy_to(&self, other: &mut Self) {
        self.taken.copy_to(&mut other.taken);
        self.full.copy_to(&mut other.full);
        other.nr_taken = self.nr_taken;
    }

    /// Where they are.
    pub(crate) fn ranges(&self) -> [AddrRange; 2] {
        [self.taken.range(), self.full.range()]
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) const fn nr_taken(&self) -> usize {
        self.nr_taken
    }

    pub(crate) fn is_taken(&self, at: usize) -> bool {
        at < self.len && self.taken[at / BITS] & (1 << (at % BITS)) != 0
    }

    /// The first free one that is not in front of `from`.
    pub(crate) fn free_from(&self, from: usize) -> Option<usize> {
        let word = from / BITS;
        let free = !*self.taken.get(word)? & (u64::MAX << (from % BITS));
        if free != 0 {
            return Some(word * BITS + free.trailing_zeros() as usize);
        }
        let word = first_zero(&self.full, word + 1)?;
        Some(word * BITS + self.taken[word].trailing_ones() as usize)
    }

    /// The first of `len` free ones side by side, none of them in front of `from`. For one it is found if it is there;
    /// for more, if it is among the first few places.
    pub(crate) fn run_from(&self, from: usize, len: usize) -> Option<usize> {
        let mut start = self.free_from(from)?;
        for _ in 0..MAX_PLACES {
            let nr_free = self.nr_free_at(start, len);
            if nr_free == len {
                return Some(start);
            }
            start = self.free_from(start + nr_free)?;
        }
        None
    }

    /// How many from `start` on are free, up to `most`.
    fn nr_free_at(&self, start: usize, most: usize) -> usize {
        let mut nr_free = 0;
        while nr_free < most {
            let at = start + nr_free;
            let Some(word) = self.taken.get(at / BITS) else { break };
            let here = ((word >> (at % BITS)).trailing_zeros() as usize).min(BITS - at % BITS);
            nr_free += here;
            if at % BITS + here < BITS {
                break;
            }
        }
        nr_free.min(most)
    }

    /// Takes a free one.
    pub(crate) fn take(&mut self, at: usize) {
        let word = at / BITS;
        self.taken[word] |= 1 << (at % BITS);
        if self.taken[word] == u64::MAX {
            self.full[word / BITS] |= 1 << (word % BITS);
        }
        self.nr_taken += 1;
    }

    /// Gives one back that is taken.
    pub(crate) fn give(&mut self, at: usize) {
        let word = at / BITS;
        self.taken[word] &= !(1 << (at % BITS));
        self.full[word / BITS] &= !(1 << (word % BITS));
        self.nr_taken -= 1;
    }
}

/// The first bit from `from` on that is not set.
fn first_zero(words: &[u64], from: usize) -> Option<usize> {
    let first = from / BITS;
    let mut mask = u64::MAX << (from % BITS);
    for (index, word) in words.iter().enumerate().skip(first) {
        let zeroes = !word & mask;
        if zeroes != 0 {
            return Some(index * BITS + zeroes.trailing_zeros() as usize);
        }
        mask = u64::MAX;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(bits: &mut Bits) -> Vec<usize> {
        let mut got = Vec::new();
        while let Some(at) = bits.free_from(0) {
            bits.take(at);
            got.push(at);
        }
        got
    }

    #[test]
    fn each_is_taken_once_and_in_order() {
        for len in [1, 63, 64, 65, 4096, 4097, 5000] {
            let mut bits = Bits::new(len).expect("addresses");
            assert_eq!(take_all(&mut bits), (0..len).collect::<Vec<_>>());
            assert_eq!((bits.nr_taken(), bits.free_from(0), bits.run_from(0, 1)), (len, None, None));
            (0..len).for_each(|at| bits.give(at));
            assert_eq!(bits.nr_taken(), 0);
            take_all(&mut bits);
            bits.clear();
            assert_eq!(take_all(&mut bits).len(), len);
        }
    }

    #[test]
    fn what_was_given_back_is_found_again() {
        let mut bits = Bits::new(10_000).expect("addresses");
        take_all(&mut bits);
        let given: Vec<usize> = (0..10_000).filter(|at| at % 127 == 3).collect();
        given.iter().for_each(|at| bits.give(*at));
        assert!(given.iter().all(|at| !bits.is_taken(*at)) && bits.is_taken(0));
        assert_eq!(take_all(&mut bits), given);
    }

    #[test]
    fn runs_are_found_over_the_borders_of_words() {
        let mut bits = Bits::new(1000).expect("addresses");
        take_all(&mut bits);
        assert_eq!(bits.run_from(0, 2), None);
        for (start, len) in [(3, 2), (60, 70), (200, 5), (990, 10)] {
            (start..start + len).for_each(|at| bits.give(at));
        }
        for (from, len, found) in [
            (0, 1, Some(3)),
            (0, 2, Some(3)),
            (0, 3, Some(60)),
            (0, 70, Some(60)),
            (61, 69, Some(61)),
            (0, 71, None),
            (62, 69, None),
            (131, 10, Some(990)),
            (991, 10, None),
            (1000, 1, None),
            (5000, 1, None),
        ] {
            assert_eq!(bits.run_from(from, len), found, "{len} from {from}");
        }
    }

    #[test]
    fn a_search_ends() {
        let mut bits = Bits::new(1 << 20).expect("addresses");
        (0..1 << 19).for_each(|at| bits.take(at * 2));
        assert_eq!(bits.run_from(0, 1), Some(1));
        bits.give(1 << 15);
        assert_eq!(bits.run_from(0, 2), None, "far away");
        assert_eq!(bits.run_from((1 << 15) - 100, 3), Some((1 << 15) - 1));
    }
}
