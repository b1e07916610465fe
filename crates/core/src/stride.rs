//! The stride of a stream: how many pages on its next touch is.

use crate::addr::{BLOCK_PAGES, PageRange, Vpn};

/// Pages from one touch of a stream to the next, less than none if it goes down. None where no stream is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stride(i64);

impl Stride {
    /// That of no stream.
    pub const NONE: Self = Self(0);
    /// From each page to the one behind it.
    pub const UP: Self = Self(1);
    /// From each page to the one in front of it.
    pub const DOWN: Self = Self(-1);

    /// From one page to the other.
    pub const fn between(from: Vpn, to: Vpn) -> Self {
        Self(to.0.cast_signed().wrapping_sub(from.0.cast_signed()))
    }

    /// Whether no page is left out.
    pub const fn is_dense(self) -> bool {
        self.nr_pages() == 1
    }

    /// Whether it goes from each page to the one behind it.
    pub const fn is_up(self) -> bool {
        self.0 == 1
    }

    /// Its length, whichever way it goes.
    pub const fn nr_pages(self) -> u64 {
        self.0.unsigned_abs()
    }

    /// So many steps on. Where the address space ends, it stays there.
    pub const fn on(self, page: Vpn, nr_steps: u64) -> Vpn {
        let distance = self.nr_pages().saturating_mul(nr_steps);
        Vpn(if self.0 < 0 { page.0.saturating_sub(distance) } else { page.0.saturating_add(distance) })
    }

    /// This one, or up if it is of no stream.
    pub const fn or_up(self) -> Self {
        if self.0 == 0 { Self::UP } else { self }
    }

    /// The first page from this one on that does not pass the test, or is in another block than `of`.
    pub fn first_beyond(self, page: Vpn, of: Vpn, passes: impl Fn(Vpn) -> bool) -> Vpn {
        let is_beyond = |page: &Vpn| page.block() != of.block() || !passes(*page);
        let steps = BLOCK_PAGES as u64;
        (0..steps).map(|nr| self.on(page, nr)).find(is_beyond).unwrap_or(self.on(page, steps))
    }

    /// Steps from one page to another. `None`: none lead there.
    pub const fn steps(self, from: Vpn, to: Vpn) -> Option<u64> {
        let back = self.0 < 0;
        let distance = if back { from.0.checked_sub(to.0) } else { to.0.checked_sub(from.0) };
        match distance {
            Some(0) => Some(0),
            Some(distance) if self.0 != 0 && distance % self.nr_pages() == 0 => {
                Some(distance / self.nr_pages())
            }
            Some(_) | None => None,
        }
    }

    /// Where a stream goes on that has come to all of the pages, of which there are some.
    pub const fn behind(self, pages: PageRange) -> Vpn {
        match self.0 {
            0 => pages.end,
            ..0 => self.on(pages.start, 1),
            1.. => self.on(Vpn(pages.end.0 - 1), 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_lead_where_they_say() {
        for stride in [Stride::UP, Stride::DOWN, Stride(7), Stride(-7)] {
            for nr_steps in 0..4 {
                let page = stride.on(Vpn(1000), nr_steps);
                assert_eq!(stride.steps(Vpn(1000), page), Some(nr_steps));
            }
            assert_eq!(stride.steps(stride.on(Vpn(1000), 1), Vpn(1000)), None, "it does not turn");
            assert_eq!(Stride::between(Vpn(1000), stride.on(Vpn(1000), 1)), stride);
        }
        assert_eq!(Stride(7).steps(Vpn(1000), Vpn(1003)), None);
        assert_eq!(Stride::NONE.steps(Vpn(1000), Vpn(1003)), None);
        assert_eq!((Stride(-7).on(Vpn(9), 2), Stride(7).on(Vpn(u64::MAX), 1)), (Vpn(0), Vpn(u64::MAX)));
    }

    #[test]
    fn what_is_beyond_a_run() {
        let below = |limit: u64| move |page: Vpn| page.0 < limit;
        let (page, block) = (Vpn(1030), Vpn(1024));
        assert_eq!(Stride::UP.first_beyond(page, block, below(1040)), Vpn(1040));
        assert_eq!(Stride::UP.first_beyond(page, block, below(9999)), Vpn(1536), "it ends with its block");
        assert_eq!(Stride::DOWN.first_beyond(page, block, below(9999)), Vpn(1023));
        assert_eq!(Stride(100).first_beyond(page, block, below(1200)), Vpn(1230));
        assert_eq!(Stride::UP.first_beyond(page, block, below(0)), page, "or at once");
        assert_eq!(Stride::UP.first_beyond(Vpn(1536), block, below(9999)), Vpn(1536), "another block");
        assert_eq!(
            Stride::DOWN.first_beyond(Vpn(0), Vpn(0), below(9999)),
            Vpn(0),
            "there is nothing in front"
        );
    }

    #[test]
    fn behind_is_where_the_next_touch_is() {
        let pages = PageRange::new(Vpn(100), 16);
        let behind = |stride: i64| Stride(stride).behind(pages).0;
        assert_eq!((behind(0), behind(1), behind(-1), behind(5), behind(-5)), (116, 116, 99, 120, 95));
    }
}
