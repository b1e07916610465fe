//! The bytes of a page, kept compactly: a pattern and the words that were written over it.

use std::collections::BTreeMap;

/// 64-bit words in a page.
pub const PAGE_WORDS: u16 = 512;
/// Bytes in a page.
pub const PAGE_SIZE: usize = PAGE_WORDS as usize * 8;

/// What a page is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// The stamp in every word: any compressor shrinks it, and with stamp 0 it is a page of zeroes.
    Same,
    /// Words that no compressor can shrink.
    Noise,
}

/// The bytes of one page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pattern: Pattern,
    stamp: u64,
    /// Words written since the fill, by their number in the page.
    words: BTreeMap<u16, u64>,
}

impl Default for Content {
    fn default() -> Self {
        Self::filled(Pattern::Same, 0)
    }
}

impl Content {
    /// A page filled with a pattern.
    pub const fn filled(pattern: Pattern, stamp: u64) -> Self {
        Self { pattern, stamp, words: BTreeMap::new() }
    }

    /// Writes one word.
    ///
    /// # Panics
    /// If there is no such word in a page.
    pub fn write(&mut self, word: u16, value: u64) {
        assert!(word < PAGE_WORDS, "a page has no word {word}");
        self.words.insert(word, value);
    }

    /// What word number `word` reads.
    pub fn word(&self, word: u16) -> u64 {
        self.words.get(&word).copied().unwrap_or_else(|| self.filler(word))
    }

    /// All words, in order.
    pub fn words(&self) -> impl Iterator<Item = u64> + '_ {
        (0..PAGE_WORDS).map(|word| self.word(word))
    }

    /// The page's bytes, in the byte order of this machine, as the program would see them.
    pub fn bytes(&self) -> Box<[u8; PAGE_SIZE]> {
        let mut bytes = Box::new([0; PAGE_SIZE]);
        self.write_to(&mut bytes);
        bytes
    }

    /// Puts the page's bytes where the caller wants them.
    pub fn write_to(&self, bytes: &mut [u8; PAGE_SIZE]) {
        let (chunks, _) = bytes.as_chunks_mut::<8>();
        for (chunk, word) in chunks.iter_mut().zip(0..) {
            *chunk = self.filler(word).to_ne_bytes();
        }
        for (word, value) in &self.words {
            chunks[usize::from(*word)] = value.to_ne_bytes();
        }
    }

    /// The first word in which `bytes` differ, with what the page must read there and what it reads.
    pub fn difference(&self, bytes: &[u8; PAGE_SIZE]) -> Option<Difference> {
        if *self.bytes() == *bytes {
            return None;
        }
        let (chunks, _) = bytes.as_chunks::<8>();
        self.words().zip(chunks).zip(0..).find_map(|((expected, chunk), word)| {
            let found = u64::from_ne_bytes(*chunk);
            (found != expected).then_some(Difference { word, expected, found })
        })
    }

    fn filler(&self, word: u16) -> u64 {
        match self.pattern {
            Pattern::Same => self.stamp,
            Pattern::Noise => mix(self.stamp ^ (u64::from(word) << 48)),
        }
    }
}

/// A word that does not read as it must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its number in the page.
    pub word: u16,
    /// What it must read.
    pub expected: u64,
    /// What it reads.
    pub found: u64,
}

/// A bijection under which consecutive inputs have nothing to do with each other (the finaliser of SplitMix64).
pub(crate) const fn mix(input: u64) -> u64 {
    let input = (input ^ (input >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let input = (input ^ (input >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    input ^ (input >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_words_say_the_same() {
        let mut content = Content::filled(Pattern::Noise, 7);
        content.write(0, 1);
        content.write(511, u64::MAX);
        let bytes = content.bytes();
        assert_eq!(content.difference(&bytes), None);
        assert_eq!(bytes[..8], 1_u64.to_ne_bytes());
        assert_eq!(bytes[4088..], [0xff; 8]);
    }

    #[test]
    fn a_single_wrong_byte_is_found() {
        let content = Content::filled(Pattern::Same, 3);
        let mut bytes = content.bytes();
        bytes[8 * 300] ^= 1;
        let difference = content.difference(&bytes).unwrap();
        assert_eq!((difference.word, difference.expected), (300, 3));
        assert_ne!(difference.found, 3);
    }

    #[test]
    fn a_fresh_page_is_zero() {
        assert_eq!(*Content::default().bytes(), [0; PAGE_SIZE]);
    }

    #[test]
    fn noise_differs_from_word_to_word_and_from_stamp_to_stamp() {
        let one: Vec<u64> = Content::filled(Pattern::Noise, 1).words().collect();
        let two: Vec<u64> = Content::filled(Pattern::Noise, 2).words().collect();
        let mut all = [one, two].concat();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 2 * usize::from(PAGE_WORDS));
    }
}
