//! Whether memory holds what it must after the work, to the last byte.
//!
//! Everything is predicted from the seed: the pages are made again and compared. A sorted working set cannot be, so it is
//! checked for order and for holding the same words as before.

use crate::data::{Generator, PAGE_WORDS, Page, mix};
use crate::workload::{Part, RMW_STEP, Workload, sum};
use anyhow::{Result, bail, ensure};

/// Compares memory, and what was read from it, with the prediction.
///
/// # Errors
/// The first page that is wrong.
pub(crate) fn verify(
    workload: Workload,
    pages: &[Page],
    generator: &Generator,
    (passes, threads): (u64, u32),
    read_sums: &[u64],
) -> Result<()> {
    let parts = Part::of(pages.len(), threads);
    ensure!(parts.len() == read_sums.len(), "{} parts have {} sums", parts.len(), read_sums.len());
    parts.into_iter().zip(read_sums).try_for_each(|(part, read_sum)| {
        verify_part(workload, &pages[part.first..][..part.nr_pages], (part, generator), passes, *read_sum)
    })
}

fn verify_part(
    workload: Workload,
    pages: &[Page],
    (part, generator): (Part, &Generator),
    passes: u64,
    read_sum: u64,
) -> Result<()> {
    match workload {
        Workload::Seqread => {
            let once = sums(part, generator).into_iter().fold(0, u64::wrapping_add);
            ensure!(
                read_sum == once.wrapping_mul(passes),
                "wrong bytes: a sequential read saw other bytes than were written"
            );
            unchanged(pages, part, generator)
        }
        Workload::Seqrmw => {
            let added = RMW_STEP.wrapping_mul(passes);
            compare(pages, (part, generator), |_| 0, |word| word.wrapping_add(added))
        }
        Workload::Randread | Workload::Rand2 => {
            let sums = sums(part, generator);
            let predicted =
                part.picks(passes).fold(0, |sum: u64, page| sum.rotate_left(1).wrapping_add(sums[page]));
            ensure!(read_sum == predicted, "wrong bytes: a random read saw other bytes than were written");
            unchanged(pages, part, generator)
        }
        Workload::Randwrite => {
            let mut generations = vec![0; pages.len()];
            for (nr_before, page) in part.picks(passes).enumerate() {
                generations[page] = nr_before as u64 + 1;
            }
            compare(pages, (part, generator), |page| generations[page], |word| word)
        }
        Workload::Mergesort | Workload::Quicksort => sorted(pages, generator),
    }
}

fn sums(part: Part, generator: &Generator) -> Vec<u64> {
    let mut page = [0; PAGE_WORDS];
    (part.first..part.first + part.nr_pages)
        .map(|number| {
            generator.fill(number, 0, &mut page);
            sum(&page)
        })
        .collect()
}

fn unchanged(pages: &[Page], part: Part, generator: &Generator) -> Result<()> {
    compare(pages, (part, generator), |_| 0, |word| word)
}

fn compare(
    pages: &[Page],
    (part, generator): (Part, &Generator),
    generation: impl Fn(usize) -> u64,
    change: impl Fn(u64) -> u64,
) -> Result<()> {
    let mut predicted = [0; PAGE_WORDS];
    for (number, page) in pages.iter().enumerate() {
        generator.fill(part.first + number, generation(number), &mut predicted);
        predicted.iter_mut().for_each(|word| *word = change(*word));
        let wrong = page.iter().zip(&predicted).position(|(found, wanted)| found != wanted);
        if let Some(at) = wrong {
            let (found, wanted) = (page[at], predicted[at]);
            bail!(
                "wrong bytes: word {at} of page {} is {found:#018x}, not {wanted:#018x}",
                part.first + number
            );
        }
    }
    Ok(())
}

fn sorted(pages: &[Page], generator: &Generator) -> Result<()> {
    let words = pages.as_flattened();
    if let Some(at) = words.windows(2).position(|pair| pair[0] > pair[1]) {
        bail!("wrong bytes: word {at} of the sorted working set is greater than the next");
    }
    let mut page = [0; PAGE_WORDS];
    let before = (0..pages.len()).fold((0, 0), |marks, number| {
        generator.fill(number, 0, &mut page);
        mark(&page, marks)
    });
    let after = pages.iter().fold((0, 0), |marks, page| mark(page, marks));
    ensure!(before == after, "wrong bytes: the sorted working set holds other words than the unsorted one");
    Ok(())
}

/// Two sums that do not depend on the words' order, and that no small change leaves as they are.
fn mark(page: &Page, marks: (u64, u64)) -> (u64, u64) {
    page.iter()
        .fold(marks, |(plain, mixed), word| (plain.wrapping_add(*word), mixed.wrapping_add(mix(*word))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Data;
    use crate::latency::Touches;
    use crate::working_set::WorkingSet;

    const PASSES: u64 = 3;

    /// Runs the workload on a small working set, then lets `spoil` do its worst, and verifies.
    fn run(workload: Workload, data: Data, spoil: impl FnOnce(&mut [Page], &mut u64)) -> Result<()> {
        run_by(1, workload, data, spoil)
    }

    fn run_by(
        threads: u32,
        workload: Workload,
        data: Data,
        spoil: impl FnOnce(&mut [Page], &mut u64),
    ) -> Result<()> {
        let generator = Generator::new(data, 5);
        let mut set = WorkingSet::new(50);
        let pages = set.pages_mut();
        for (number, page) in pages.iter_mut().enumerate() {
            generator.fill(number, 0, page);
        }
        let how = (workload.passes(PASSES), workload.threads(threads));
        let mut read_sums = workload.run(pages, &generator, how, &mut Touches::calibrate());
        assert_eq!(read_sums.len(), how.1 as usize);
        spoil(pages, read_sums.last_mut().unwrap());
        verify(workload, pages, &generator, how, &read_sums)
    }

    #[test]
    fn right_bytes_pass() {
        for workload in Workload::ALL {
            for data in [Data::Compressible, Data::Incompressible] {
                run(workload, data, |_, _| ()).unwrap();
            }
        }
    }

    #[test]
    fn what_several_threads_do_is_checked_to_the_last_part() {
        for workload in Workload::ALL {
            run_by(3, workload, Data::Compressible, |_, _| ()).unwrap();
            let error = run_by(3, workload, Data::Compressible, |pages, _| pages[49][511] ^= 1).unwrap_err();
            assert!(error.to_string().starts_with("wrong bytes"), "{workload:?}: {error}");
        }
        let error = run_by(3, Workload::Randread, Data::Compressible, |_, sum| *sum ^= 1).unwrap_err();
        assert!(error.to_string().contains("random read"), "{error}");
    }

    #[test]
    fn a_single_wrong_bit_is_found() {
        for workload in Workload::ALL {
            let error = run(workload, Data::Compressible, |pages, _| pages[17][300] ^= 1).unwrap_err();
            assert!(error.to_string().starts_with("wrong bytes"), "{workload:?}: {error}");
        }
    }

    #[test]
    fn stale_and_exchanged_pages_are_found() {
        for workload in [Workload::Seqread, Workload::Seqrmw, Workload::Randread, Workload::Randwrite] {
            assert!(run(workload, Data::Compressible, |pages, _| pages.swap(3, 4)).is_err(), "{workload:?}");
        }
        let stale =
            |pages: &mut [Page], _: &mut u64| Generator::new(Data::Compressible, 5).fill(9, 0, &mut pages[9]);
        assert!(run(Workload::Seqrmw, Data::Compressible, stale).is_err());
        assert!(run(Workload::Randwrite, Data::Compressible, stale).is_err());
    }

    #[test]
    fn wrong_reads_of_right_pages_are_found() {
        for workload in [Workload::Seqread, Workload::Randread] {
            assert!(run(workload, Data::Compressible, |_, sum| *sum ^= 1 << 40).is_err(), "{workload:?}");
        }
    }
}
