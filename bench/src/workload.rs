//! The work that is measured, on plain memory that knows of nothing.

use crate::data::{Generator, PAGE_BYTES, PAGE_WORDS, Page, Random};
use crate::latency::Touches;
use std::hint::black_box;

/// What a pass of `seqrmw` adds to every word. Odd, so that no number of passes leaves a word as it was.
pub(crate) const RMW_STEP: u64 = 0x0123_4567_89ab_cdef;
const PICK_SEED: u64 = 0x7069_636b;

/// The kinds of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Workload {
    /// Read everything from front to back.
    Seqread,
    /// Read, change and write every 64-bit word from front to back.
    Seqrmw,
    /// Read whole pages, uniformly at random.
    Randread,
    /// Write whole pages, uniformly at random.
    Randwrite,
    /// Sort all 64-bit words.
    Sort,
}

impl Workload {
    pub(crate) const ALL: [Self; 5] =
        [Self::Seqread, Self::Seqrmw, Self::Randread, Self::Randwrite, Self::Sort];

    /// The name on the command line and in the report.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Seqread => "seqread",
            Self::Seqrmw => "seqrmw",
            Self::Randread => "randread",
            Self::Randwrite => "randwrite",
            Self::Sort => "sort",
        }
    }

    /// How often the work is done when `passes` are asked for: sorted once, there is nothing left to sort.
    pub(crate) const fn passes(self, passes: u64) -> u64 {
        match self {
            Self::Seqread | Self::Seqrmw | Self::Randread | Self::Randwrite => passes,
            Self::Sort => 1,
        }
    }

    /// Does the work, and returns a sum over everything it read that only the right bytes give.
    pub(crate) fn run(
        self,
        pages: &mut [Page],
        generator: &Generator,
        passes: u64,
        touches: &mut Touches,
    ) -> u64 {
        match self {
            Self::Seqread => (0..passes).map(|_| read_all(pages, touches)).fold(0, u64::wrapping_add),
            Self::Seqrmw => {
                (0..passes).for_each(|_| change_all(pages, touches));
                0
            }
            Self::Randread => picks(pages.len(), passes)
                .map(|page| read_page(&pages[page], touches))
                .fold(0, |sum: u64, page_sum| sum.rotate_left(1).wrapping_add(page_sum)),
            Self::Randwrite => {
                for (nr_before, page) in picks(pages.len(), passes).enumerate() {
                    write_page(&mut pages[page], page, generator, nr_before as u64 + 1, touches);
                }
                0
            }
            Self::Sort => {
                pages.as_flattened_mut().sort_unstable();
                0
            }
        }
    }
}

/// The pages that the random workloads touch, in order: in a pass as many as there are pages, each as likely as any.
pub(crate) fn picks(nr_pages: usize, passes: u64) -> impl Iterator<Item = usize> {
    let mut random = Random::new(PICK_SEED);
    (0..passes * nr_pages as u64).map(move |_| random.below(nr_pages))
}

/// Sum of a page's words.
pub(crate) fn sum(page: &Page) -> u64 {
    page.iter().fold(0, |sum, word| sum.wrapping_add(*word))
}

fn read_all(pages: &[Page], touches: &mut Touches) -> u64 {
    pages.iter().map(|page| read_page(page, touches)).fold(0, u64::wrapping_add)
}

/// `black_box` keeps the first access between the two readings of the clock.
#[inline]
fn read_page(page: &Page, touches: &mut Touches) -> u64 {
    touches.time(|| black_box(page)[0]);
    sum(page)
}

fn change_all(pages: &mut [Page], touches: &mut Touches) {
    for page in pages {
        let first = touches.time(|| {
            let first = &mut black_box(&mut *page)[0];
            *first = first.wrapping_add(RMW_STEP);
            black_box(*first)
        });
        page[0] = first;
        page[1..].iter_mut().for_each(|word| *word = word.wrapping_add(RMW_STEP));
    }
}

#[inline]
fn write_page(page: &mut Page, number: usize, generator: &Generator, generation: u64, touches: &mut Touches) {
    touches.time(|| black_box(&mut *page)[0] = generation);
    generator.fill(number, generation, page);
}

/// Private anonymous memory as any program gets it from its allocator, from a page boundary on.
#[derive(Debug)]
pub(crate) struct WorkingSet {
    words: Vec<u64>,
    skip_words: usize,
    nr_pages: usize,
}

impl WorkingSet {
    /// Asks for `nr_pages`; none of them is touched yet.
    pub(crate) fn new(nr_pages: usize) -> Self {
        let words = vec![0; (nr_pages + 1) * PAGE_WORDS];
        let skip_words = words.as_ptr().align_offset(PAGE_BYTES);
        Self { words, skip_words, nr_pages }
    }

    /// Its pages.
    pub(crate) fn pages_mut(&mut self) -> &mut [Page] {
        let words = &mut self.words[self.skip_words..][..self.nr_pages * PAGE_WORDS];
        words.as_chunks_mut().0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn working_set_is_made_of_pages() {
        let mut set = WorkingSet::new(3);
        let pages = set.pages_mut();
        assert_eq!(pages.len(), 3);
        assert_eq!(pages.as_ptr().addr() % PAGE_BYTES, 0);
    }

    #[test]
    fn picks_go_everywhere_and_repeat() {
        assert!(picks(100, 2).eq(picks(100, 2)));
        let mut seen = vec![0; 64];
        picks(64, 100).for_each(|page| seen[page] += 1);
        assert!(seen.iter().all(|count| (50..200).contains(count)), "{seen:?}");
    }
}
