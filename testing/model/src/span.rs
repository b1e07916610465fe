//! Runs of pages of an arena.

/// Half-open run of pages, numbered from the start of the arena.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    /// First page.
    pub first: u32,
    /// Number of pages.
    pub len: u32,
}

impl std::fmt::Debug for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Span::new({}, {})", self.first, self.len)
    }
}

impl Span {
    /// The run of `len` pages from `first`.
    pub const fn new(first: u32, len: u32) -> Self {
        Self { first, len }
    }

    /// The page behind the last.
    pub const fn end(self) -> u32 {
        self.first + self.len
    }

    /// Whether the page is in it.
    pub const fn contains(self, page: u32) -> bool {
        self.first <= page && page < self.end()
    }

    /// Whether the two have a page in common.
    pub const fn overlaps(self, other: Self) -> bool {
        self.first < other.end() && other.first < self.end()
    }

    /// Its pages, one by one.
    pub fn pages(self) -> std::ops::Range<u32> {
        self.first..self.end()
    }
}
