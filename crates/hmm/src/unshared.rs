//! Blocks of which is known that no page is shared with a child of a fork, so that all of them can be written to.
//!
//! Whether a page is shared is told by reading the pagemap, page by page, which costs ten times what a scan costs. So it
//! is done once for a block: pages of registered memory come in no other way than by our hand, and ours alone, so what
//! was found stays true until the program forks, moves something here, or unmaps the place. Of forks we have to hear
//! ([`Files::reports_forks`](crate::mm::Files::reports_forks)); each is noted before drivers are told of it. What the kernel
//! merges by itself (KSM) is not noticed: a write to such a page makes another one at the same address.
//!
//! A table of fixed size, by the block's number; two blocks that meet in it forget each other.

use std::sync::atomic::{AtomicU64, Ordering};

use hmm_core::addr::{BlockId, PageRange};

/// Covers 8 GiB of neighbouring blocks.
const NR_ENTRIES: usize = 4096;
/// An entry holds the block's number above the number of forks that there were.
const BLOCK_SHIFT: u32 = 37;
const FORKS_MASK: u64 = (1 << BLOCK_SHIFT) - 1;

/// See the module.
#[derive(Debug)]
pub(crate) struct Unshared {
    entries: Box<[AtomicU64]>,
    /// Never zero, as an empty entry is.
    forks: AtomicU64,
}

impl Default for Unshared {
    fn default() -> Self {
        Self { entries: (0..NR_ENTRIES).map(|_| AtomicU64::new(0)).collect(), forks: AtomicU64::new(1) }
    }
}

impl Unshared {
    /// To be asked before the pagemap is read, for [`note`](Self::note).
    pub(crate) fn begin(&self) -> u64 {
        self.forks.load(Ordering::SeqCst)
    }

    #[expect(clippy::cast_possible_truncation, reason = "of what is left any part will do")]
    fn entry(&self, block: BlockId) -> &AtomicU64 {
        &self.entries[block.0 as usize % NR_ENTRIES]
    }

    const fn word(block: BlockId, forks: u64) -> u64 {
        block.0 << BLOCK_SHIFT | forks & FORKS_MASK
    }

    /// All pages of the block that are present are the process's alone, as was read after [`begin`](Self::begin).
    pub(crate) fn note(&self, block: BlockId, begin: u64) {
        self.entry(block).store(Self::word(block, begin), Ordering::SeqCst);
    }

    /// Whether that is known of the block now.
    pub(crate) fn knows(&self, block: BlockId) -> bool {
        self.entry(block).load(Ordering::SeqCst) == Self::word(block, self.begin())
    }

    /// A fork shares everything.
    pub(crate) fn forked(&self) {
        self.forks.fetch_add(1, Ordering::SeqCst);
    }

    /// Other pages may come to the range, or have come.
    pub(crate) fn forget(&self, range: PageRange) {
        for (block, _) in range.blocks().take(NR_ENTRIES) {
            let entry = self.entry(block);
            // Of a long range the first blocks reach every entry, so all of those that may be meant go.
            if range.nr_pages() >> 9 >= NR_ENTRIES as u64
                || entry.load(Ordering::SeqCst) >> BLOCK_SHIFT == block.0
            {
                entry.store(0, Ordering::SeqCst);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_known_until_something_happens() {
        let unshared = Unshared::default();
        let (one, two, far) = (BlockId(7), BlockId(8), BlockId(7 + NR_ENTRIES as u64));
        assert!(!unshared.knows(one) && !unshared.knows(BlockId(0)));
        unshared.note(one, unshared.begin());
        unshared.note(two, unshared.begin());
        assert!(unshared.knows(one) && unshared.knows(two) && !unshared.knows(far));
        unshared.forget(far.pages());
        assert!(unshared.knows(one), "another one's entry");
        unshared.forget(PageRange { start: one.page(511), end: two.page(1) });
        assert!(!unshared.knows(one) && !unshared.knows(two));
        let begin = unshared.begin();
        unshared.forked();
        unshared.note(one, begin);
        assert!(!unshared.knows(one), "read before the fork");
        unshared.note(one, unshared.begin());
        unshared.note(far, unshared.begin());
        assert!(unshared.knows(far) && !unshared.knows(one));
        unshared.forget(PageRange { start: BlockId(0).page(0), end: BlockId(1 << 20).page(0) });
        assert!(!unshared.knows(far));
    }
}
