//! A set of the pages of one block.

use crate::addr::BLOCK_PAGES;

const WORDS: usize = BLOCK_PAGES / 64;

/// One bit for each page of a block, or each slot of a bay.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct PageSet([u64; WORDS]);

impl std::fmt::Debug for PageSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.runs()).finish()
    }
}

impl FromIterator<usize> for PageSet {
    fn from_iter<I: IntoIterator<Item = usize>>(pages: I) -> Self {
        let mut set = Self::EMPTY;
        pages.into_iter().for_each(|index| set.insert(index));
        set
    }
}

impl PageSet {
    /// The empty set.
    pub const EMPTY: Self = Self([0; WORDS]);
    /// All pages of a block.
    pub const FULL: Self = Self([u64::MAX; WORDS]);

    /// Whether the page is in the set.
    pub const fn contains(&self, index: usize) -> bool {
        self.0[index / 64] & (1 << (index % 64)) != 0
    }

    /// Adds a page.
    pub const fn insert(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    /// Takes a page out.
    pub const fn remove(&mut self, index: usize) {
        self.0[index / 64] &= !(1 << (index % 64));
    }

    /// Adds a run of pages.
    pub fn insert_range(&mut self, range: std::ops::Range<usize>) {
        range.for_each(|index| self.insert(index));
    }

    /// The pages that are in both sets.
    pub fn and(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & other.0[word]))
    }

    /// The pages that are in one of the sets.
    pub fn or(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] | other.0[word]))
    }

    /// The pages that are in this set and not in the other.
    pub fn without(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & !other.0[word]))
    }

    /// How many pages are in it.
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// The first page at or behind `from` that is in the set.
    pub fn next(&self, from: usize) -> Option<usize> {
        let mut index = from;
        while index < BLOCK_PAGES {
            let rest = self.0[index / 64] >> (index % 64);
            if rest != 0 {
                return Some(index + rest.trailing_zeros() as usize);
            }
            index = (index / 64 + 1) * 64;
        }
        None
    }

    /// The first page at or behind `from` that is not in the set.
    pub(crate) fn next_outside(&self, from: usize) -> Option<usize> {
        Some(self.run_end(from)).filter(|end| *end < BLOCK_PAGES)
    }

    /// The end of the run of pages that begins at `from`.
    fn run_end(&self, from: usize) -> usize {
        let mut index = from;
        while index < BLOCK_PAGES {
            let rest = !self.0[index / 64] >> (index % 64);
            let bits_left = 64 - index % 64;
            let ones = (rest.trailing_zeros() as usize).min(bits_left);
            index += ones;
            if ones < bits_left {
                return index;
            }
        }
        BLOCK_PAGES
    }

    /// The runs of pages that are in the set, in order.
    pub fn runs(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let start = self.next(from)?;
            let end = self.run_end(start);
            from = end;
            Some(start..end)
        })
    }
}
