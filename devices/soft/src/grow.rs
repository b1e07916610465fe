//! How many pages a fault that migrates brings: at least the aligned 64 KiB around it, and the largest aligned part of its
//! block (2 MiB) that is then more than half on the device.
//!
//! The density rule is the one that NVIDIA's driver uses, with its threshold of 51 %.

use std::ops::Range;

use hmm_core::addr::BLOCK_PAGES;

/// What a single fault brings, in pages: 64 KiB.
pub(crate) const UNIT_PAGES: usize = 16;
const THRESHOLD_PERCENT: usize = 51;

/// A set of pages of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mask([u64; BLOCK_PAGES / 64]);

impl Mask {
    pub(crate) fn set(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    pub(crate) fn has(&self, index: usize) -> bool {
        self.0[index / 64] & 1 << (index % 64) != 0
    }

    /// How many pages of a range are in it.
    pub(crate) fn count(&self, range: Range<usize>) -> usize {
        range.filter(|index| self.has(*index)).count()
    }
}

/// The pages to bring for a fault at `index` of a block of which `resident` are on the device: 64 KiB or at most so many.
pub(crate) fn grow(resident: &Mask, index: usize, most_pages: usize) -> Range<usize> {
    let aligned = |len: usize| index / len * len..(index / len + 1) * len;
    let unit = aligned(UNIT_PAGES);
    let mut best = unit.clone();
    let mut len = UNIT_PAGES * 2;
    // What is resident in the unit counts once.
    let brought = UNIT_PAGES - resident.count(unit);
    while len <= most_pages.min(BLOCK_PAGES) {
        let range = aligned(len);
        if (resident.count(range.clone()) + brought) * 100 > len * THRESHOLD_PERCENT {
            best = range;
        }
        len *= 2;
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(pages: Range<usize>) -> Mask {
        let mut mask = Mask::default();
        pages.for_each(|index| mask.set(index));
        mask
    }

    #[test]
    fn a_lone_fault_brings_64_kib() {
        assert_eq!(grow(&Mask::default(), 0, 512), 0..16);
        assert_eq!(grow(&Mask::default(), 511, 512), 496..512);
    }

    #[test]
    fn density_brings_more() {
        // 16 of 32 are half, which is not enough; 17 are.
        assert_eq!(grow(&mask(0..16), 16, 512), 0..32);
        assert_eq!(grow(&mask(0..1), 16, 512), 0..32);
        assert_eq!(grow(&mask(64..80), 0, 512), 0..16);
        // More than half of the block: all of it, though the near parts are empty.
        assert_eq!(grow(&mask(256..512), 0, 512), 0..512);
        assert_eq!(grow(&mask(256..512), 0, 300), 0..16, "not more than there is room for");
        // Resident pages of the unit itself are not counted twice.
        assert_eq!(grow(&mask(0..15), 15, 512), 0..16);
    }
}
