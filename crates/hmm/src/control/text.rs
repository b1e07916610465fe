//! Text of bounded length: as a value that needs no allocator, and in memory that several processes share.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Up to `N` bytes of UTF-8. What does not fit is cut off at a character.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    /// No text.
    pub const EMPTY: Self = Self { bytes: [0; N], len: 0 };

    /// Formats, without an allocation: `Text::format(format_args!(..))`.
    pub fn format(text: fmt::Arguments<'_>) -> Self {
        let mut this = Self::EMPTY;
        // Writing fails only where a part has cut the text off already; then that is the text.
        let _cut = fmt::write(&mut this, text);
        this
    }

    /// The text as a slice.
    pub fn as_str(&self) -> &str {
        let bytes = &self.bytes[..self.len];
        match str::from_utf8(bytes) {
            Ok(text) => text,
            // A writer that died half way: what is whole, counts.
            Err(error) => str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
        }
    }
}

impl<const N: usize> fmt::Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = text.floor_char_boundary(N - self.len);
        self.bytes[self.len..self.len + room].copy_from_slice(&text.as_bytes()[..room]);
        self.len += room;
        if room == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// [`Text`] of up to `8 * WORDS` bytes in shared memory. Readers and writers may meet: then a reader sees a mixture of
/// both texts, but never anything that is not text.
#[derive(Debug)]
#[repr(C)]
pub(super) struct SharedText<const WORDS: usize> {
    len: AtomicU64,
    words: [AtomicU64; WORDS],
}

impl<const WORDS: usize> SharedText<WORDS> {
    /// Stores as much of the text as fits.
    pub(super) fn store(&self, text: &str) {
        let text = &text.as_bytes()[..text.floor_char_boundary(8 * WORDS)];
        for (word, chunk) in self.words.iter().zip(text.chunks(8)) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
        }
        self.len.store(text.len() as u64, Ordering::Release);
    }

    /// The text, at most `N` bytes of it.
    pub(super) fn load<const N: usize>(&self) -> Text<N> {
        let mut text = Text::EMPTY;
        let len = usize::try_from(self.len.load(Ordering::Acquire)).unwrap_or(usize::MAX);
        text.len = len.min(8 * WORDS).min(N);
        for (chunk, word) in text.bytes.chunks_mut(8).zip(&self.words) {
            let bytes = word.load(Ordering::Relaxed).to_ne_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> SharedText<2> {
        SharedText { len: AtomicU64::new(0), words: [const { AtomicU64::new(0) }; 2] }
    }

    #[test]
    fn too_long_a_text_is_cut_at_a_character() {
        let text = Text::<8>::format(format_args!("{}-{}", "ab", "\u{e4}\u{e4}\u{e4}"));
        assert_eq!(text.as_str(), "ab-\u{e4}\u{e4}");
        let text = Text::<8>::format(format_args!("{}{}", "12345678", "9"));
        assert_eq!(text.as_str(), "12345678");
    }

    #[test]
    fn a_shared_text_comes_back() {
        let slot = shared();
        for text in ["", "sort", "sixteen bytes it", "now seventeen byte"] {
            slot.store(text);
            assert_eq!(slot.load::<16>().as_str(), &text[..text.len().min(16)]);
            assert_eq!(slot.load::<5>().as_str(), &text[..text.len().min(5)]);
        }
    }

    #[test]
    fn rubbish_in_shared_memory_is_read_as_what_is_text_of_it() {
        let slot = shared();
        slot.len.store(u64::MAX, Ordering::Relaxed);
        slot.words[0].store(u64::from_ne_bytes(*b"ab\xff\xff\xff\xff\xff\xff"), Ordering::Relaxed);
        assert_eq!(slot.load::<16>().as_str(), "ab");
    }
}
