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

    /// One of so many of its pages, from the first on, or from the last if the stride is negative. It is not 0.
    pub fn pages_by(self, stride: i16) -> impl Iterator<Item = u32> {
        let step = usize::from(stride.unsigned_abs().max(1));
        let (first, last) = (self.first, self.end() - 1);
        let distance = move |page: u32| if stride < 0 { last - (page - first) } else { page };
        self.pages().step_by(step).map(distance)
    }

    /// Its pages, one by one.
    pub fn pages(self) -> std::ops::Range<u32> {
        self.first..self.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_gone_through_either_way() {
        let span = Span::new(10, 5);
        let by = |stride| span.pages_by(stride).collect::<Vec<_>>();
        assert_eq!((by(1), by(-1)), (vec![10, 11, 12, 13, 14], vec![14, 13, 12, 11, 10]));
        assert_eq!((by(2), by(-3), by(9)), (vec![10, 12, 14], vec![14, 11], vec![10]));
    }
}
