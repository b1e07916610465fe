//! Memory of a measurement's own: filled with words that say where they belong, and checked for them.
//!
//! It is mapped between guard pages, so that the kernel never joins it with a mapping of somebody else's.

use crate::data::PAGE_BYTES;
use anyhow::{Context, Result, ensure};
use hmm::core::addr::PageRange;
use hmm_uapi::mapping::Advice;
use hmm_uapi::pagemap::{Categories, PageRegion, Pagemap, ScanArgs};
use hmm_uapi::{AddrRange, Mapping};

const HUGE_BYTES: usize = 2 << 20;

/// Of which pages memory is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageKind {
    Small,
    Huge,
}

/// Readable and writable memory, aligned to huge pages.
#[derive(Debug)]
pub(crate) struct Memory {
    mapping: Mapping,
    nr_bytes: usize,
}

/// The word at `index` in generation `generation`.
const fn word(index: usize, generation: u64) -> u64 {
    (index as u64 ^ generation << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Memory {
    /// Maps memory; nothing of it is touched yet.
    ///
    /// # Errors
    /// The kernel has none to give.
    pub(crate) fn new(nr_bytes: usize, kind: PageKind) -> Result<Self> {
        let nr_bytes = nr_bytes.next_multiple_of(HUGE_BYTES);
        let mapping = Mapping::reserve_aligned(nr_bytes + 2 * HUGE_BYTES, HUGE_BYTES)
            .context("no addresses to measure on")?;
        mapping.commit(HUGE_BYTES, nr_bytes).context("no memory to measure on")?;
        let advice = match kind {
            PageKind::Small => Advice::NoHugePage,
            PageKind::Huge => Advice::HugePage,
        };
        mapping.advise(HUGE_BYTES, nr_bytes, advice).context("the kernel cannot choose the size of pages")?;
        Ok(Self { mapping, nr_bytes })
    }

    /// As [`new`](Self::new), and every word is written to.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn filled(nr_bytes: usize, kind: PageKind, generation: u64) -> Result<Self> {
        let mut memory = Self::new(nr_bytes, kind)?;
        memory.fill(generation);
        Ok(memory)
    }

    /// Writes every word.
    pub(crate) fn fill(&mut self, generation: u64) {
        self.words_mut().iter_mut().enumerate().for_each(|(index, at)| *at = word(index, generation));
    }

    /// Whether every word is what [`fill`](Self::fill) wrote, plus `added`.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn verify(&self, generation: u64, added: u64) -> Result<()> {
        let is_wrong = |(index, at): &(usize, &u64)| **at != word(*index, generation).wrapping_add(added);
        let wrong = self.words().iter().enumerate().find(is_wrong);
        ensure!(
            wrong.is_none(),
            "wrong bytes: word and value {wrong:x?}, not {:#x}",
            wrong.map_or(0, |(index, _)| word(index, generation).wrapping_add(added))
        );
        Ok(())
    }

    fn start(&self) -> *mut u8 {
        self.mapping.as_ptr().wrapping_add(HUGE_BYTES)
    }

    /// Its words.
    pub(crate) fn words(&self) -> &[u64] {
        // SAFETY:
        // 1. the part was made readable, is page aligned, and lives as long as `self`.
        // 2. any bytes are words; where they are is not seen by who reads them.
        // 3. only `&mut self` gives write access; kernels write while no slice is in use.
        unsafe { std::slice::from_raw_parts(self.start().cast(), self.nr_bytes / 8) }
    }

    /// Its words.
    pub(crate) fn words_mut(&mut self) -> &mut [u64] {
        // SAFETY: as for `words`, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start().cast(), self.nr_bytes / 8) }
    }

    /// Its bytes.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `words_mut`.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.nr_bytes) }
    }

    /// Bytes in it.
    pub(crate) const fn len(&self) -> usize {
        self.nr_bytes
    }

    /// Pages in it.
    pub(crate) const fn nr_pages(&self) -> usize {
        self.nr_bytes / PAGE_BYTES
    }

    /// Its addresses.
    pub(crate) fn addrs(&self) -> AddrRange {
        AddrRange::new(self.start().expose_provenance() as u64, self.nr_bytes as u64)
    }

    /// Its pages.
    pub(crate) fn pages(&self) -> PageRange {
        PageRange::of_bytes(self.addrs().start, self.addrs().end)
    }

    /// Which part of it is mapped huge, from 0 to 1.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub(crate) fn huge_share(&self) -> Result<f64> {
        let pagemap = Pagemap::open().context("cannot open /proc/self/pagemap")?;
        let mut nr_huge_bytes = 0;
        let mut at = self.addrs();
        while at.start < at.end {
            let mut regions = [PageRegion::default(); 64];
            let args = ScanArgs::any(Categories::HUGE);
            let scanned = pagemap.scan(at, args, &mut regions).context("PAGEMAP_SCAN")?;
            let found = regions[..scanned.nr_regions].iter().map(|region| region.range());
            nr_huge_bytes += found.map(|range| range.end - range.start).sum::<u64>();
            at.start = scanned.walk_end;
        }
        Ok(nr_huge_bytes as f64 / self.nr_bytes as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_words_are_found() {
        let mut memory = Memory::filled(HUGE_BYTES, PageKind::Small, 3).unwrap();
        memory.verify(3, 0).unwrap();
        assert!(memory.verify(2, 0).is_err() && memory.verify(3, 1).is_err());
        memory.words_mut()[1000] ^= 1;
        let error = memory.verify(3, 0).unwrap_err().to_string();
        assert!(error.contains("3e8"), "{error}");
        assert_eq!(memory.huge_share().unwrap(), 0.0);
    }
}
