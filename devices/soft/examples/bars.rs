//! What the device costs: a hit, a slice, a fault, and too little memory. Figures are printed, nothing is asserted.
//!
//! `cargo run --release -p hmm-soft --example bars`

#![expect(clippy::print_stdout, reason = "figures are what it is for")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hmm::AddressSpace;
use hmm::core::hints::{Advice, Preferred};
use hmm_soft::{DeviceFault, Ptr, Soft, Unit};

/// The program's allocator, so that the device may have any pointer.
#[global_allocator]
static ALLOCATOR: hmm::Heap = hmm::Heap;

const MIB: usize = 1 << 20;

/// Runs a kernel on the device, and gives the time back that it says it took.
fn timed(
    soft: &Soft,
    kernel: impl Fn(&Unit<'_>) -> Result<Duration, DeviceFault> + Sync,
) -> Result<Duration> {
    let took = std::sync::Mutex::new(Duration::ZERO);
    // SAFETY: the kernels here access memory that nobody else accesses while they run.
    unsafe {
        soft.launch(|unit| {
            let time = kernel(unit)?;
            *took.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = time;
            Ok(())
        })
    }?;
    Ok(took.into_inner()?)
}

/// A ring of indices in no order.
fn ring(nr: usize) -> Vec<u64> {
    let mut order: Vec<u64> = (0..nr as u64).collect();
    let mut seed = 1_u64;
    for last in (1..nr).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(last, (seed >> 33) as usize % last);
    }
    order
}

#[expect(clippy::cast_possible_truncation, reason = "addresses have 64 bits here")]
fn hits(space: &AddressSpace, soft: &Soft, nr_bytes: usize) -> Result<()> {
    let steps = 10_000_000;
    let mut words = ring(nr_bytes / 8);
    let base = Ptr::<u64>::of(&words).addr();
    words.iter_mut().for_each(|word| *word = base + *word * 8);
    let per_step = |took: Duration| took.as_nanos() as f64 / f64::from(steps);
    let begin = Instant::now();
    let mut at = base;
    for _ in 0..steps {
        // SAFETY: a word of the vector.
        at = unsafe { std::ptr::with_exposed_provenance::<u64>(at as usize).read_volatile() };
    }
    let plain = per_step(begin.elapsed());
    std::hint::black_box(at);
    let chain = |unit: &Unit<'_>| {
        let mut at = Ptr::<u64>::new(base);
        // Once for the faults.
        for page in 0..nr_bytes / 4096 {
            unit.load(Ptr::<u64>::new(base).add(page * 512))?;
        }
        let begin = Instant::now();
        for _ in 0..steps {
            at = Ptr::new(unit.load(at)?);
        }
        std::hint::black_box(at);
        Ok(begin.elapsed())
    };
    let in_place = per_step(timed(soft, chain)?);
    space.advise(hmm::mirror::pages(&words), Advice::Preferred(Some(Preferred::Device(soft.index()))));
    soft.prefetch(base, nr_bytes);
    let frames = per_step(timed(soft, chain)?);
    println!(
        "dependent loads in {} KiB: plain {plain:.2} ns, device in place {in_place:.2} ns ({:.1}x), in frames \
         {frames:.2} ns ({:.1}x)",
        nr_bytes / 1024,
        in_place / plain,
        frames / plain
    );
    Ok(())
}

fn slices(space: &AddressSpace, soft: &Soft) -> Result<()> {
    let words: Vec<u64> = (0..(128 * MIB / 8) as u64).collect();
    let speed = |took: Duration| words.len() as f64 * 8.0 / took.as_nanos() as f64;
    let expected: u64 = words.iter().sum();
    let begin = Instant::now();
    std::hint::black_box(std::hint::black_box(&words[..]).iter().sum::<u64>());
    let plain = speed(begin.elapsed());
    let from = Ptr::of(&words);
    let pass = |unit: &Unit<'_>| {
        let mut sum = 0_u64;
        let begin = Instant::now();
        unit.chunks(from, words.len(), |_, words| sum += words.iter().sum::<u64>())?;
        assert_eq!(sum, expected);
        Ok(begin.elapsed())
    };
    let faults = soft.stats().faults;
    let first = timed(soft, pass)?;
    let nr_faults = soft.stats().faults - faults;
    let in_place = timed(soft, pass)?;
    let per_fault = first.saturating_sub(in_place).as_nanos() as f64 / nr_faults as f64;
    println!("faults of resident pages, in batches: {per_fault:.0} ns each ({nr_faults} faults)");
    space.advise(hmm::mirror::pages(&words), Advice::Preferred(Some(Preferred::Device(soft.index()))));
    soft.prefetch(from.addr(), 128 * MIB);
    timed(soft, pass)?;
    let frames = speed(timed(soft, pass)?);
    let in_place = speed(in_place);
    println!(
        "sum by pages: plain {plain:.1} GB/s, device in place {in_place:.1} GB/s, in frames {frames:.1} GB/s"
    );
    Ok(())
}

fn overcommit(space: &AddressSpace, by_words: bool) -> Result<()> {
    let soft = Soft::builder(space)?.memory(64 * MIB).build()?;
    let mut speeds = Vec::new();
    for mib in [48, 128] {
        let mut words = vec![1_u64; mib * MIB / 8];
        let (at, nr) = (Ptr::of_mut(&mut words), mib * MIB / 8);
        let pass = |unit: &Unit<'_>| {
            let begin = Instant::now();
            if by_words {
                for index in 0..nr {
                    unit.store(at.add(index), unit.load(at.add(index))? + 1)?;
                }
            } else {
                unit.chunks_mut(at, nr, |_, words| words.iter_mut().for_each(|word| *word += 1))?;
            }
            Ok(begin.elapsed())
        };
        timed(&soft, pass)?;
        let took = timed(&soft, pass)? + timed(&soft, pass)?;
        ensure!(words.iter().all(|word| *word == 4), "wrong data");
        speeds.push(2.0 * nr as f64 * 8.0 / took.as_nanos() as f64);
    }
    println!(
        "read, add, write in order, by {}: fits {:.2} GB/s, twice the memory {:.2} GB/s: {:.2}; {:?}",
        if by_words { "words" } else { "pages" },
        speeds[0],
        speeds[1],
        speeds[1] / speeds[0],
        soft.stats()
    );
    Ok(())
}

fn main() -> Result<()> {
    let space = AddressSpace::builder().build()?;
    let soft = Soft::builder(&space)?.memory(256 * MIB).build()?;
    for nr_bytes in [16 << 10, 256 << 10, 2 * MIB] {
        hits(&space, &soft, nr_bytes)?;
    }
    slices(&space, &soft)?;
    overcommit(&space, true)?;
    overcommit(&space, false)
}
