//! What the table has of a frame, in two words: what it holds and where, and a tag, by which its bytes are known again.
//!
//! ```text
//! 63..62  61..59  58..54     53..49  48..32           31..0
//! kind    file    pages - 1  part    compressed len   block
//! ```

use hmm_device::PAGE_SIZE;

const LEN_SHIFT: u32 = 32;
const LEN_BITS: u32 = 17;
const PART_SHIFT: u32 = LEN_SHIFT + LEN_BITS;
const PAGES_SHIFT: u32 = PART_SHIFT + PAGE_BITS;
const PAGE_BITS: u32 = 5;
const FILE_SHIFT: u32 = PAGES_SHIFT + PAGE_BITS;
const FILE_BITS: u32 = 3;
const KIND_SHIFT: u32 = 62;
const SAME: u64 = 1;
const UNIT: u64 = 2;

/// Pages that a unit can have at most.
pub(crate) const MAX_UNIT_PAGES: usize = 1 << PAGE_BITS;
/// Files that frames can be in: the device's own, and those of processes that its process was forked from.
pub(crate) const NR_FILES: u8 = 1 << FILE_BITS;

/// Where a unit is, and what it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unit {
    /// Which file.
    pub(crate) file: u8,
    /// The first block of the file that it has.
    pub(crate) block: u32,
    /// Bytes that its pages were compressed to; 0: a page as it is.
    pub(crate) len: u32,
    /// Pages that were compressed together.
    pub(crate) nr_pages: u8,
}

impl Unit {
    pub(crate) const fn is_raw(self) -> bool {
        self.len == 0
    }

    /// Blocks of the file.
    pub(crate) const fn nr_blocks(self) -> usize {
        if self.is_raw() { 1 } else { (self.len as usize).div_ceil(PAGE_SIZE) }
    }

    /// Where it begins in the file.
    pub(crate) const fn offset(self) -> u64 {
        self.block as u64 * PAGE_SIZE as u64
    }
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Content {
    /// Nothing was stored to it.
    #[default]
    Empty,
    /// One word over and over, which is the tag.
    Same,
    /// One of the pages of a unit; the tag is the page's fingerprint.
    Part(Unit, u8),
}

impl Content {
    pub(crate) fn word(self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Same => SAME << KIND_SHIFT,
            Self::Part(unit, part) => {
                UNIT << KIND_SHIFT
                    | u64::from(unit.file) << FILE_SHIFT
                    | u64::from(unit.nr_pages.saturating_sub(1)) << PAGES_SHIFT
                    | u64::from(part) << PART_SHIFT
                    | u64::from(unit.len) << LEN_SHIFT
                    | u64::from(unit.block)
            }
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "each field is masked to its bits")]
    pub(crate) fn of_word(word: u64) -> Self {
        let field = |shift: u32, bits: u32| word >> shift & ((1 << bits) - 1);
        match word >> KIND_SHIFT {
            SAME => Self::Same,
            UNIT => {
                let unit = Unit {
                    file: field(FILE_SHIFT, FILE_BITS) as u8,
                    block: word as u32,
                    len: field(LEN_SHIFT, LEN_BITS) as u32,
                    nr_pages: field(PAGES_SHIFT, PAGE_BITS) as u8 + 1,
                };
                Self::Part(unit, field(PART_SHIFT, PAGE_BITS) as u8)
            }
            _ => Self::Empty,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_say_what_was_meant() {
        let mut all = vec![Content::Empty, Content::Same];
        for block in [0, 1, 77, u32::MAX] {
            for len in [0, 1, 4096, 4097, (1 << LEN_BITS) - 1] {
                for (file, nr_pages, part) in [(0, 1, 0), (7, 2, 1), (1, 16, 7), (7, 32, 31)] {
                    all.push(Content::Part(Unit { file, block, len, nr_pages }, part));
                }
            }
        }
        for content in all {
            assert_eq!(Content::of_word(content.word()), content);
        }
        assert_eq!(Content::Empty.word(), 0, "zeroed memory is a table of empty frames");
    }

    #[test]
    fn blocks_are_those_that_the_bytes_reach() {
        let nr_blocks = |len| Unit { len, nr_pages: 16, ..Unit::default() }.nr_blocks();
        assert_eq!([0, 1, 4096, 4097, 65536].map(nr_blocks), [1, 1, 1, 2, 16]);
    }
}
