//! The work that is measured, on plain memory that knows of nothing.

use crate::data::{Generator, Page, Random};
use crate::latency::Touches;
use std::hint::black_box;
use std::thread;

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
    /// The same by two threads, each in its half.
    Rand2,
    /// Write whole pages, uniformly at random.
    Randwrite,
    /// Sort all 64-bit words by merging, with half as much memory again to merge into.
    Mergesort,
    /// Sort all 64-bit words in place.
    #[value(alias = "sort")]
    Quicksort,
}

/// In what order work touches pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// From front to back.
    Sequential,
    /// Each page as likely as any.
    Random,
}

impl Workload {
    pub(crate) const ALL: [Self; 7] = [
        Self::Seqread,
        Self::Seqrmw,
        Self::Randread,
        Self::Rand2,
        Self::Randwrite,
        Self::Mergesort,
        Self::Quicksort,
    ];

    /// The name on the command line and in the report.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Seqread => "seqread",
            Self::Seqrmw => "seqrmw",
            Self::Randread => "randread",
            Self::Rand2 => "rand2",
            Self::Randwrite => "randwrite",
            Self::Mergesort => "mergesort",
            Self::Quicksort => "quicksort",
        }
    }

    /// In what order it touches pages; `None` when that is a matter of its own.
    pub(crate) const fn order(self) -> Option<Order> {
        match self {
            Self::Seqread | Self::Seqrmw => Some(Order::Sequential),
            Self::Randread | Self::Rand2 | Self::Randwrite => Some(Order::Random),
            Self::Mergesort | Self::Quicksort => None,
        }
    }

    /// Whether it writes to the pages that it touches.
    pub(crate) const fn writes(self) -> bool {
        !matches!(self, Self::Seqread | Self::Randread | Self::Rand2)
    }

    /// How often the work is done when `passes` are asked for: sorted once, there is nothing left to sort.
    pub(crate) const fn passes(self, passes: u64) -> u64 {
        if self.order().is_some() { passes } else { 1 }
    }

    /// How many threads work when `threads` are asked for.
    pub(crate) const fn threads(self, threads: u32) -> u32 {
        match self {
            Self::Rand2 => 2,
            Self::Mergesort | Self::Quicksort => 1,
            Self::Seqread | Self::Seqrmw | Self::Randread | Self::Randwrite => threads,
        }
    }

    /// How much memory beside the working set it needs, in bytes.
    pub(crate) const fn beside_bytes(self, size_bytes: u64) -> u64 {
        if matches!(self, Self::Mergesort) { size_bytes / 2 } else { 0 }
    }

    /// Does the work, each thread in a part of the pages, and returns for each part a sum over everything that was read,
    /// which only the right bytes give.
    pub(crate) fn run(
        self,
        pages: &mut [Page],
        generator: &Generator,
        (passes, threads): (u64, u32),
        touches: &mut Touches,
    ) -> Vec<u64> {
        let parts = Part::of(pages.len(), threads);
        let part_pages = parts[0].nr_pages;
        if parts.len() == 1 {
            return vec![self.run_part(pages, parts[0], generator, passes, touches)];
        }
        thread::scope(|scope| {
            let work = |(part, pages): (Part, &mut [Page]), touches: &mut Touches| {
                self.run_part(pages, part, generator, passes, touches)
            };
            let workers: Vec<_> = parts
                .into_iter()
                .zip(pages.chunks_mut(part_pages))
                .map(|mine| {
                    let mut touches = touches.fresh();
                    scope.spawn(move || (work(mine, &mut touches), touches))
                })
                .collect();
            let done = workers.into_iter().map(|worker| worker.join().expect("it does not panic"));
            done.map(|(sum, more)| {
                touches.merge(&more);
                sum
            })
            .collect()
        })
    }

    fn run_part(
        self,
        pages: &mut [Page],
        part: Part,
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
            Self::Randread | Self::Rand2 => part
                .picks(passes)
                .map(|page| read_page(&pages[page], touches))
                .fold(0, |sum: u64, page_sum| sum.rotate_left(1).wrapping_add(page_sum)),
            Self::Randwrite => {
                for (nr_before, page) in part.picks(passes).enumerate() {
                    let generation = nr_before as u64 + 1;
                    write_page(&mut pages[page], part.first + page, generator, generation, touches);
                }
                0
            }
            Self::Mergesort => {
                pages.as_flattened_mut().sort();
                0
            }
            Self::Quicksort => {
                pages.as_flattened_mut().sort_unstable();
                0
            }
        }
    }
}

/// What one thread works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Number of its first page.
    pub(crate) first: usize,
    /// Pages in it.
    pub(crate) nr_pages: usize,
    /// Which part it is.
    number: u64,
}

impl Part {
    /// Divides so many pages between so many threads. Where there are fewer pages, there are fewer parts; never none.
    pub(crate) fn of(nr_pages: usize, threads: u32) -> Vec<Self> {
        let most = nr_pages.div_ceil(threads.max(1) as usize).max(1);
        let part = |(number, first)| Self { first, nr_pages: most.min(nr_pages - first), number };
        (0_u64..).zip((0..nr_pages.max(1)).step_by(most)).map(part).collect()
    }

    /// The pages, counted from its first, that the random workloads touch, in order: in a pass as many as there are, each as
    /// likely as any. Every part has picks of its own.
    pub(crate) fn picks(self, passes: u64) -> impl Iterator<Item = usize> {
        let mut random = Random::new(PICK_SEED ^ self.number << 40);
        (0..passes * self.nr_pages as u64).map(move |_| random.below(self.nr_pages))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_go_everywhere_and_repeat() {
        let part = Part::of(64, 1)[0];
        assert!(part.picks(2).eq(part.picks(2)));
        let mut seen = vec![0; 64];
        part.picks(100).for_each(|page| seen[page] += 1);
        assert!(seen.iter().all(|count| (50..200).contains(count)), "{seen:?}");
    }

    #[test]
    fn parts_are_all_pages_once() {
        for (nr_pages, threads, nr_parts) in [(64, 1, 1), (64, 2, 2), (65, 4, 4), (3, 8, 3), (1, 2, 1)] {
            let parts = Part::of(nr_pages, threads);
            assert_eq!(parts.len(), nr_parts, "{nr_pages} for {threads}");
            let end = parts.iter().fold(0, |at, part| {
                assert_eq!(part.first, at);
                at + part.nr_pages
            });
            assert_eq!(end, nr_pages);
        }
        let parts = Part::of(64, 2);
        assert!(!parts[0].picks(1).eq(parts[1].picks(1)), "threads go the same way");
    }
}
