//! The software accelerator: what its accesses and its faults cost, against the same work of the CPU's.

use super::figure::Figure;
use super::memory::{Memory, PageKind};
use super::sample::{Found, Sampler, gb_per_s, time};
use super::space::{Lacking, space};
use crate::data::{PAGE_BYTES, PAGE_WORDS};
use anyhow::{Context, Result, ensure};
use hmm::AddressSpace;
use hmm::core::hints::{Advice, Preferred};
use hmm_soft::{DeviceFault, Ptr, Soft, Unit};
use std::hint::black_box;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Bytes of a ring of loads: the first-level cache has room for it, so that nothing hides what a load of the device
/// costs besides.
const RING_BYTES: usize = 16 << 10;
/// Words that are copied at a time.
const COPY_WORDS: usize = 1 << 18;

/// A device of so much memory, or why there is none.
fn soft(space: &AddressSpace, nr_bytes: usize) -> Result<Soft> {
    let built = Soft::builder(space).and_then(|builder| builder.memory(nr_bytes).build());
    built.map_err(|why| Lacking::new(why).into())
}

/// Runs a kernel, and gives back what it says.
fn run<T: Send>(soft: &Soft, kernel: impl Fn(&Unit<'_>) -> Result<T, DeviceFault> + Sync) -> Result<T> {
    let said = Mutex::new(None);
    // SAFETY: the kernels here access memory of this module's own, of which the thread that waits here holds references
    // only where the kernel reads; what they write are words, and any are valid.
    unsafe {
        soft.launch(|unit| {
            let value = kernel(unit)?;
            *said.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
            Ok(())
        })
    }?;
    said.into_inner().unwrap_or_else(PoisonError::into_inner).context("the kernel has run")
}

/// Takes memory to the device, to stay there.
fn bring(space: &AddressSpace, soft: &Soft, memory: &Memory) -> Result<()> {
    space.advise(memory.pages(), Advice::Preferred(Some(Preferred::Device(soft.index()))));
    let nr = soft.prefetch(memory.addrs().start, memory.len());
    ensure!(nr == memory.nr_pages(), "{nr} of {} pages came to the device", memory.nr_pages());
    Ok(())
}

/// Makes a ring of the first words: each holds the address of the next, in no order.
fn make_ring(memory: &mut Memory) -> u64 {
    let base = memory.addrs().start;
    let nr = RING_BYTES / 8;
    let mut order: Vec<u64> = (0..nr as u64).collect();
    let mut seed = 1_u64;
    for last in (1..nr).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(last, (seed >> 33) as usize % last);
    }
    memory.words_mut().iter_mut().zip(order).for_each(|(word, next)| *word = base + next * 8);
    base
}

/// Follows the ring on the CPU: where it ends, and the time of a step in nanoseconds.
fn chase_plainly(base: u64, nr_steps: u64) -> (u64, f64) {
    let mut at = base;
    let seconds = time(|| {
        for _ in 0..nr_steps {
            #[expect(clippy::cast_possible_truncation, reason = "addresses have 64 bits here")]
            let word = std::ptr::with_exposed_provenance::<u64>(at as usize);
            // SAFETY: the words of a ring are addresses of its words, see `make_ring`.
            at = unsafe { word.read_volatile() };
        }
    });
    (at, seconds * 1e9 / nr_steps as f64)
}

/// The same on the device.
fn chase(soft: &Soft, base: u64, nr_steps: u64) -> Result<(u64, f64)> {
    run(soft, |unit| {
        let mut at = Ptr::<u64>::new(base);
        for page in 0..RING_BYTES / PAGE_BYTES {
            // So that the TLB has it.
            unit.load(at.add(page * PAGE_WORDS))?;
        }
        let begin = Instant::now();
        for _ in 0..nr_steps {
            at = Ptr::new(unit.load(at)?);
        }
        Ok((at.addr(), begin.elapsed().as_secs_f64() * 1e9 / nr_steps as f64))
    })
}

/// Measures dependent loads that hit the TLB.
///
/// # Errors
/// The device ends at another word than the CPU.
pub(crate) fn loads(nr_steps: u64, rounds: u64) -> Result<Found> {
    let space = space()?;
    let soft = soft(&space, 16 << 20)?;
    let mut found = Sampler::default();
    let mut stays = Memory::new(RING_BYTES, PageKind::Small)?;
    let mut goes = Memory::filled(RING_BYTES, PageKind::Small, 1)?;
    let (stays_at, goes_at) = (make_ring(&mut stays), make_ring(&mut goes));
    let goes_end = chase_plainly(goes_at, nr_steps).0;
    bring(&space, &soft, &goes)?;
    for round in 0..=rounds {
        let (end, plain) = chase_plainly(stays_at, nr_steps);
        let (in_place_end, in_place) = chase(&soft, stays_at, nr_steps)?;
        let (frame_end, frame) = chase(&soft, goes_at, nr_steps)?;
        ensure!(in_place_end == end && frame_end == goes_end, "the device has loaded wrong words");
        if round > 0 {
            found.add(Figure::LoadInPlace, in_place, plain);
            found.add(Figure::LoadFrame, frame, plain);
        }
    }
    ensure!(soft.resident_pages() == goes.nr_pages() as u64, "pages have left the device meanwhile");
    Ok(found.end())
}

fn sum_of(words: &[u64]) -> u64 {
    words.iter().fold(0, |sum, word| sum.wrapping_add(*word))
}

/// Sums all words on the device: the sum, and seconds.
fn sum(soft: &Soft, memory: &Memory) -> Result<(u64, f64)> {
    let (from, nr) = (Ptr::of(memory.words()), memory.words().len());
    run(soft, |unit| {
        let mut sum = 0_u64;
        let begin = Instant::now();
        unit.chunks(from, nr, |_, words| sum = sum.wrapping_add(sum_of(words)))?;
        Ok((sum, begin.elapsed().as_secs_f64()))
    })
}

/// Copies all words from the device to memory of the CPU's, in parts: a sum over the parts' ends, and seconds.
fn copy(soft: &Soft, memory: &Memory) -> Result<(u64, f64)> {
    let (from, nr) = (Ptr::<u64>::of(memory.words()), memory.words().len());
    run(soft, |unit| {
        let mut into = vec![1_u64; COPY_WORDS];
        let mut ends = 0_u64;
        let begin = Instant::now();
        for at in (0..nr).step_by(COPY_WORDS) {
            let into = &mut into[..COPY_WORDS.min(nr - at)];
            unit.read(from.add(at), black_box(&mut *into))?;
            ends = ends.wrapping_add(into[into.len() - 1]);
        }
        Ok((ends, begin.elapsed().as_secs_f64()))
    })
}

fn copy_plainly(memory: &Memory, into: &mut [u64]) -> (u64, f64) {
    let mut ends = 0_u64;
    let seconds = time(|| {
        for part in memory.words().chunks(COPY_WORDS) {
            let into = &mut into[..part.len()];
            black_box(&mut *into).copy_from_slice(black_box(part));
            ends = ends.wrapping_add(into[into.len() - 1]);
        }
    });
    (ends, seconds)
}

/// Measures whole pages.
///
/// # Errors
/// The device sees other words than the CPU.
pub(crate) fn slices(nr_bytes: usize, rounds: u64) -> Result<Found> {
    let space = space()?;
    let soft = soft(&space, nr_bytes + (16 << 20))?;
    let mut found = Sampler::default();
    let stays = Memory::filled(nr_bytes, PageKind::Small, 1)?;
    let goes = Memory::filled(nr_bytes, PageKind::Small, 1)?;
    let mut into = vec![1_u64; COPY_WORDS];
    bring(&space, &soft, &goes)?;
    let nr_bytes = stays.len();
    for round in 0..=rounds {
        let mut plain_sum = 0;
        let plain = time(|| plain_sum = black_box(sum_of(black_box(stays.words()))));
        let (copied, plain_copy) = copy_plainly(&stays, &mut into);
        for (memory, sum_figure, copy_figure) in [
            (&stays, Figure::SumInPlace, Figure::CopyInPlace),
            (&goes, Figure::SumFrames, Figure::CopyFrames),
        ] {
            let (device_sum, sum_seconds) = sum(&soft, memory)?;
            let (device_copied, copy_seconds) = copy(&soft, memory)?;
            ensure!((device_sum, device_copied) == (plain_sum, copied), "the device has read wrong words");
            if round > 0 {
                let speed = |seconds| gb_per_s(nr_bytes, seconds);
                found.add(sum_figure, speed(sum_seconds), speed(plain));
                found.add(copy_figure, speed(copy_seconds), speed(plain_copy));
            }
        }
    }
    ensure!(soft.resident_pages() == goes.nr_pages() as u64, "pages have left the device meanwhile");
    Ok(found.end())
}

/// Measures faults on resident pages: a pass over memory that the device does not know yet. What reading the pages takes
/// is in the figure, so that no noise is subtracted from noise. A second pass shows that the first has entered them.
///
/// # Errors
/// There were not as many faults as pages, or not in batches.
pub(crate) fn faults(nr_bytes: usize, rounds: u64) -> Result<Found> {
    let space = space()?;
    let mut found = Sampler::default();
    for round in 0..=rounds {
        // The memory of the round before was never managed, so nobody tells the device that it is gone: one that knows
        // nothing takes its place.
        let soft = soft(&space, 16 << 20)?;
        let mut fresh = Memory::new(nr_bytes, PageKind::Small)?;
        let floor = time(|| fresh.words_mut().iter_mut().step_by(PAGE_WORDS).for_each(|word| *word = 1));
        drop(fresh);
        let memory = Memory::filled(nr_bytes, PageKind::Small, round)?;
        let expected = sum_of(memory.words());
        let before = soft.stats();
        let (first_sum, first) = sum(&soft, &memory)?;
        let after = soft.stats();
        let (second_sum, _) = sum(&soft, &memory)?;
        ensure!((first_sum, second_sum) == (expected, expected), "the device has read wrong words");
        ensure!(soft.stats().faults == after.faults, "the second pass has faults, too");
        let (nr, nr_batches) = (after.faults - before.faults, after.batches - before.batches);
        ensure!(
            nr >= memory.nr_pages() as u64 * 9 / 10 && nr_batches <= nr / 64,
            "{nr} faults in {nr_batches} batches for {} pages",
            memory.nr_pages()
        );
        if round > 0 {
            let us = |seconds: f64, nr: u64| seconds * 1e6 / nr as f64;
            found.add(Figure::Fault, us(first, nr), us(floor, memory.nr_pages() as u64));
        }
        if round == rounds {
            let text =
                format!("{nr} faults in {nr_batches} batches of neighbouring pages, which are read only");
            found.note(Figure::Fault, text);
        }
    }
    Ok(found.end())
}

/// Adds one to every word on the device, by words or by pages; seconds.
fn add_one(soft: &Soft, memory: &mut Memory, by_words: bool) -> Result<f64> {
    let (at, nr) = (Ptr::of_mut(memory.words_mut()), memory.len() / 8);
    run(soft, |unit| {
        let begin = Instant::now();
        if by_words {
            for index in 0..nr {
                unit.store(at.add(index), unit.load(at.add(index))?.wrapping_add(1))?;
            }
        } else {
            let add = |_, words: &mut [u64]| words.iter_mut().for_each(|word| *word = word.wrapping_add(1));
            unit.chunks_mut(at, nr, add)?;
        }
        Ok(begin.elapsed().as_secs_f64())
    })
}

/// Measures work in order on twice the device's memory, against the same work on a device that has room for all of it: as the
/// device likes, which is that a part stays in system memory, and with the hint that all of it is to be on the device.
///
/// # Errors
/// Wrong bytes, or a device that did not have to evict.
pub(crate) fn twice(nr_bytes: usize, rounds: u64) -> Result<Found> {
    let space = space()?;
    let mut found = Sampler::default();
    for (figure, by_words, moved) in [
        (Figure::TwiceByWords, true, false),
        (Figure::TwiceByPages, false, false),
        (Figure::TwiceMovedByWords, true, true),
        (Figure::TwiceMovedByPages, false, true),
    ] {
        let mut memory = Memory::filled(nr_bytes, PageKind::Small, 1)?;
        let mut added = 0;
        for _ in 0..rounds {
            // Twice, because the first pass brings what was never there.
            let mut second_pass = |soft: &Soft| {
                let here = moved.then_some(Preferred::Device(soft.index()));
                space.advise(memory.pages(), Advice::Preferred(here));
                add_one(soft, &mut memory, by_words)?;
                add_one(soft, &mut memory, by_words)
            };
            let roomy = soft(&space, nr_bytes + (16 << 20))?;
            let fits = second_pass(&roomy)?;
            ensure!(roomy.stats().evicted == 0, "a device with room for all of it has evicted");
            drop(roomy);
            let tight = soft(&space, nr_bytes / 2)?;
            let twice = second_pass(&tight)?;
            let nr_evicted = tight.stats().evicted;
            drop(tight);
            added += 4;
            let nr_half = (memory.nr_pages() / 2) as u64;
            ensure!(nr_evicted >= nr_half, "only {nr_evicted} pages were evicted, {nr_half} do not fit");
            found.add(figure, gb_per_s(memory.len(), twice), gb_per_s(memory.len(), fits));
        }
        memory.verify(1, added)?;
    }
    Ok(found.end())
}
