//! Addresses, page numbers, slots and runs of them. Conversions between units live here and nowhere else.

/// log2 of the page size.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// Pages in a block.
pub const BLOCK_PAGES: usize = 512;

/// log2 of the pages of a huge page, which is a block.
pub const HUGE_ORDER: u8 = 9;

const BLOCK_SHIFT: u32 = HUGE_ORDER as u32;

/// Number of a virtual page: an address without its lowest twelve bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vpn(pub u64);

impl Vpn {
    /// The page that holds the byte at `addr`.
    pub const fn of_addr(addr: u64) -> Self {
        Self(addr >> PAGE_SHIFT)
    }

    /// Address of the page's first byte.
    pub const fn addr(self) -> u64 {
        self.0 << PAGE_SHIFT
    }

    /// The block the page is in.
    pub const fn block(self) -> BlockId {
        BlockId(self.0 >> BLOCK_SHIFT)
    }

    /// The page's place in its block.
    #[expect(clippy::cast_possible_truncation, reason = "masked to nine bits")]
    pub const fn index(self) -> usize {
        (self.0 & (BLOCK_PAGES as u64 - 1)) as usize
    }

    /// The page `nr_pages` behind this one.
    pub const fn add(self, nr_pages: u64) -> Self {
        Self(self.0 + nr_pages)
    }
}

/// Number of a block: an aligned run of [`BLOCK_PAGES`] pages, 2 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u64);

impl BlockId {
    /// The block's page number `index`.
    pub const fn page(self, index: usize) -> Vpn {
        Vpn((self.0 << BLOCK_SHIFT) + index as u64)
    }

    /// All of the block's pages.
    pub const fn pages(self) -> PageRange {
        PageRange { start: self.page(0), end: self.page(BLOCK_PAGES) }
    }
}

/// Half-open run of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageRange {
    /// First page.
    pub start: Vpn,
    /// Page behind the last.
    pub end: Vpn,
}

impl PageRange {
    /// The run of `nr_pages` from `start`.
    pub const fn new(start: Vpn, nr_pages: u64) -> Self {
        Self { start, end: start.add(nr_pages) }
    }

    /// The pages that a run of bytes touches, `end` exclusive.
    pub const fn of_bytes(start: u64, end: u64) -> Self {
        Self { start: Vpn::of_addr(start), end: Vpn::of_addr(end + PAGE_SIZE as u64 - 1) }
    }

    /// Number of pages.
    pub const fn nr_pages(self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether there is no page in it.
    pub const fn is_empty(self) -> bool {
        self.end.0 <= self.start.0
    }

    /// Whether the page is in it.
    pub const fn contains(self, page: Vpn) -> bool {
        self.start.0 <= page.0 && page.0 < self.end.0
    }

    /// At most `len` pages of the run, `page` among them, as much as possible from `page` on.
    pub const fn cut_around(self, page: Vpn, len: usize) -> Self {
        let (ahead, len) = (self.end.0 - page.0, len as u64);
        if self.nr_pages() <= len {
            self
        } else if ahead >= len {
            Self::new(page, len)
        } else {
            Self { start: Vpn(self.end.0 - len), end: self.end }
        }
    }

    /// The common part of two runs, possibly empty.
    pub fn intersect(self, other: Self) -> Self {
        let start = self.start.max(other.start);
        Self { start, end: self.end.min(other.end).max(start) }
    }

    /// The blocks that it touches, each with the indices of its pages in the run.
    pub fn blocks(self) -> impl Iterator<Item = (BlockId, std::ops::Range<usize>)> {
        let last = if self.is_empty() { self.start.block().0 } else { Vpn(self.end.0 - 1).block().0 + 1 };
        (self.start.block().0..last).map(move |id| {
            let block = BlockId(id);
            let part = self.intersect(block.pages());
            let first = part.start.index();
            #[expect(clippy::cast_possible_truncation, reason = "at most a block's pages")]
            let nr_pages = part.nr_pages() as usize;
            (block, first..first + nr_pages)
        })
    }

    /// Its pages, one by one.
    pub fn iter(self) -> impl Iterator<Item = Vpn> {
        (self.start.0..self.end.0).map(Vpn)
    }
}

/// Number of a page of staging memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

impl Slot {
    /// The slot `nr_slots` behind this one.
    #[expect(clippy::cast_possible_truncation, reason = "staging has fewer than 2^20 slots")]
    pub const fn add(self, nr_slots: usize) -> Self {
        Self(self.0 + nr_slots as u32)
    }

    /// The bay the slot is in.
    pub const fn bay(self) -> Bay {
        Bay(self.0 >> BLOCK_SHIFT)
    }

    /// The slot's place in its bay.
    pub const fn index(self) -> usize {
        self.0 as usize & (BLOCK_PAGES - 1)
    }
}

/// Number of a bay: an aligned run of [`BLOCK_PAGES`] slots, which takes the pages of one block at the same places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bay(pub u32);

impl Bay {
    /// The bay's slot number `index`.
    pub const fn slot(self, index: usize) -> Slot {
        Slot(self.0 << BLOCK_SHIFT).add(index)
    }
}

/// Half-open run of slots inside one bay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRun {
    /// First slot.
    pub start: Slot,
    /// Number of slots.
    pub len: usize,
}
