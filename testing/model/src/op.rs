//! The operations.

use crate::content::Pattern;
use crate::span::Span;

/// One thing that the program does to its memory, or that the engine does on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `mmap(MAP_FIXED)` of fresh memory, managed from the start. What was mapped there is unmapped first.
    Map {
        /// Where.
        span: Span,
    },
    /// The same, but the program touches some of it before it is managed: the engine finds resident pages.
    Adopt {
        /// Where.
        span: Span,
        /// Decides which pages are found, and their bytes.
        stamp: u64,
    },
    /// `munmap`. Pages of the range that are not mapped do not matter.
    Unmap {
        /// Where.
        span: Span,
    },
    /// `madvise(MADV_DONTNEED)`: the pages read as zeroes from then on.
    DontNeed {
        /// Where.
        span: Span,
    },
    /// `mremap(MREMAP_MAYMOVE | MREMAP_FIXED)`: the pages appear at another address, what was there is unmapped.
    Remap {
        /// First page of the source.
        from: u32,
        /// First page of the destination.
        to: u32,
        /// Number of pages.
        len: u32,
        /// `MREMAP_DONTUNMAP`: the source stays mapped, and reads as zeroes.
        keep_source: bool,
    },
    /// `mprotect`.
    Protect {
        /// Where.
        span: Span,
        /// Whether it can be written then.
        writable: bool,
    },
    /// Writes one word.
    Write {
        /// To which page.
        page: u32,
        /// Which word of it.
        word: u16,
        /// What.
        value: u64,
    },
    /// Writes whole pages, one after the other. Every page gets bytes of its own.
    Fill {
        /// Which pages.
        span: Span,
        /// With what.
        pattern: Pattern,
        /// Page `i` of the span is filled with [`page_stamp`](Op::page_stamp)`(stamp, i)`.
        stamp: u64,
    },
    /// Reads one word.
    Read {
        /// Of which page.
        page: u32,
        /// Which word of it.
        word: u16,
    },
    /// Reads whole pages, one after the other.
    Scan {
        /// Of which pages.
        span: Span,
        /// So many pages on each time; from the last one if negative. Not 0.
        stride: i16,
    },
    /// I/O, or a fork, holds the pages: they cannot be taken out of the program.
    Hold {
        /// Which pages.
        span: Span,
    },
    /// Ends every hold on the pages.
    Release {
        /// Which pages.
        span: Span,
    },
    /// The engine reclaims memory.
    Reclaim {
        /// So many times.
        steps: u8,
    },
    /// The engine fetches ahead of need.
    ReadAhead {
        /// So many times.
        steps: u8,
    },
}

/// How programs scan: mostly page by page, up or down.
pub(crate) const STRIDES: [i16; 8] = [1, 1, -1, 1, -1, 2, 13, -40];

impl Op {
    /// Reads all of the pages, from the first to the last.
    pub const fn scan(span: Span) -> Self {
        Self::Scan { span, stride: 1 }
    }

    /// The stamp of page number `index` of a [`Fill`](Op::Fill). A stamp of 0 stays 0: such pages are zero pages when
    /// the pattern is [`Pattern::Same`].
    pub const fn page_stamp(stamp: u64, index: u32) -> u64 {
        if stamp == 0 { 0 } else { crate::content::mix(stamp.wrapping_add(index as u64)) | 1 }
    }

    /// Whether [`Adopt`](Op::Adopt) finds page number `index` resident: runs of pages are, other runs are not.
    pub const fn is_found(stamp: u64, index: u32) -> bool {
        crate::content::mix(stamp ^ (index / 5) as u64) & 1 == 1
    }

    /// The pages that a program operation is about; for [`Remap`](Op::Remap) its source.
    pub const fn span(&self) -> Option<Span> {
        match *self {
            Self::Map { span }
            | Self::Adopt { span, .. }
            | Self::Unmap { span }
            | Self::DontNeed { span }
            | Self::Protect { span, .. }
            | Self::Fill { span, .. }
            | Self::Scan { span, .. }
            | Self::Hold { span }
            | Self::Release { span } => Some(span),
            Self::Remap { from, len, .. } => Some(Span::new(from, len)),
            Self::Write { page, .. } | Self::Read { page, .. } => Some(Span::new(page, 1)),
            Self::Reclaim { .. } | Self::ReadAhead { .. } => None,
        }
    }

    /// Whether the program reads or writes the memory itself, page by page.
    pub const fn is_access(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Fill { .. } | Self::Read { .. } | Self::Scan { .. })
    }

    /// Whether it writes to pages.
    pub const fn is_write(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Fill { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_a_fill_differ_unless_they_are_zero() {
        assert_ne!(Op::page_stamp(9, 0), Op::page_stamp(9, 1));
        assert_ne!(Op::page_stamp(9, 0), 0);
        assert_eq!(Op::page_stamp(0, 17), 0);
    }

    #[test]
    fn adoption_finds_some_pages_and_not_others() {
        let found = (0..512).filter(|index| Op::is_found(3, *index)).count();
        assert!((100..412).contains(&found), "{found} of 512");
    }
}
