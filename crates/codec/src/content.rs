//! What a page's bytes say of it without being compressed: its fingerprint, and whether it is one word repeated.

use rapidhash::v3::{RapidSecrets, rapidhash_v3_seeded};

/// The hash by which pages are recognised. Two different pages have the same fingerprint with a probability of about
/// 2^-57, whatever they have in common.
///
/// All of rapidhash's constants are replaced by random ones. xxh3 is no alternative, though as fast: its seed is only
/// added to fixed constants, and for one seed in some millions two neighbouring words can be swapped without a change of
/// the hash, in 64 bits or 128. A sort does just that.
#[derive(Clone, Debug)]
pub struct Fingerprint(RapidSecrets);

impl Fingerprint {
    /// A hash function that differs for each seed.
    pub const fn new(seed: u64) -> Self {
        Self(RapidSecrets::seed(seed))
    }

    /// The fingerprint of a page.
    pub fn of(&self, page: &[u8]) -> u64 {
        rapidhash_v3_seeded(page, &self.0)
    }
}

/// The word that the page consists of, if it is the same from start to end.
pub fn same_filled(page: &[u8]) -> Option<u64> {
    let word = page.first_chunk::<8>()?;
    // Equal to itself one word further: a comparison that ends at the first difference.
    (page[8..] == page[..page.len() - 8]).then(|| u64::from_ne_bytes(*word))
}

/// Fills a page with one word.
pub fn fill_same(page: &mut [u8], word: u64) {
    let bytes = word.to_ne_bytes();
    if bytes == [bytes[0]; 8] {
        page.fill(bytes[0]);
    } else {
        page.chunks_exact_mut(8).for_each(|slot| slot.copy_from_slice(&bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hmm_device::PAGE_SIZE;

    #[test]
    fn same_filled_pages_are_found_and_made() {
        let mut page = [1; PAGE_SIZE];
        for word in [0, u64::MAX, 0x0102_0304_0506_0708] {
            fill_same(&mut page, word);
            assert_eq!(same_filled(&page), Some(word));
            for index in [0, 7, 8, 2000, PAGE_SIZE - 8, PAGE_SIZE - 1] {
                page[index] ^= 1;
                assert_eq!(same_filled(&page), None, "differs at {index}");
                page[index] ^= 1;
            }
        }
    }

    #[test]
    fn fingerprints_tell_swapped_words_apart() {
        // 2f30bee9f98a0162 is a seed for which xxh3 does not.
        for seed in [0, 1, 0x2f30_bee9_f98a_0162] {
            let fingerprint = Fingerprint::new(seed);
            let mut page = [7; PAGE_SIZE];
            page[0] = 4;
            page[64] = 5;
            let before = fingerprint.of(&page);
            page.swap(0, 64);
            assert_ne!(fingerprint.of(&page), before);
        }
        let page = [3; PAGE_SIZE];
        assert_ne!(Fingerprint::new(1).of(&page), Fingerprint::new(2).of(&page));
    }
}
