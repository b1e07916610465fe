//! Matrix multiplication with three times the device's memory: what does not fit is evicted and comes back.
//!
//! `cargo run --release -p hmm-soft --example matmul [rows and columns]`

use anyhow::{Result, ensure};
use hmm::AddressSpace;
use hmm::core::hints::{Advice, Preferred};
use hmm_soft::{Ptr, Soft, Unit};

/// The program's allocator, so that the device may have any pointer.
#[global_allocator]
static ALLOCATOR: hmm::Heap = hmm::Heap;

fn matmul(nr: usize) -> Result<()> {
    let space = AddressSpace::builder().build()?;
    let bytes = 3 * nr * nr * size_of::<f64>();
    let soft = Soft::builder(&space)?.memory(bytes / 3).units(2).build()?;
    let a: Vec<f64> = (0..nr * nr).map(|index| (index % 7) as f64).collect();
    let b: Vec<f64> = (0..nr * nr).map(|index| (index % 5) as f64 - 2.0).collect();
    let mut c = vec![0.0; nr * nr];
    // All of it has to be on the device to be used.
    for matrix in [&a, &b, &c] {
        space.advise(hmm::mirror::pages(matrix), Advice::Preferred(Some(Preferred::Device(soft.index()))));
    }
    let (from_a, from_b, to) = (Ptr::of(&a), Ptr::of(&b), Ptr::of_mut(&mut c));
    let kernel = |unit: &Unit<'_>| {
        let mut row = vec![0.0; nr];
        let mut sums = vec![0.0; nr];
        for line in unit.share(nr) {
            unit.read(from_a.add(line * nr), &mut row)?;
            sums.fill(0.0);
            for (inner, factor) in row.iter().enumerate() {
                unit.chunks(from_b.add(inner * nr), nr, |first, words| {
                    sums[first..].iter_mut().zip(words).for_each(|(sum, word)| *sum += factor * word);
                })?;
            }
            unit.write(to.add(line * nr), &sums)?;
        }
        Ok(())
    };
    // SAFETY: nobody writes the factors, and nobody else accesses the product while the kernel runs.
    unsafe { soft.launch(kernel) }?;
    let stats = soft.stats();
    ensure!(stats.evicted > 0, "everything fitted: {stats:?}");
    for line in 0..nr {
        let mut sums = vec![0.0; nr];
        for inner in 0..nr {
            let factor = a[line * nr + inner];
            let words = &b[inner * nr..(inner + 1) * nr];
            sums.iter_mut().zip(words).for_each(|(sum, word)| *sum += factor * word);
        }
        ensure!(c[line * nr..][..nr] == sums, "line {line} is not what the CPU computes");
    }
    Ok(())
}

fn main() -> Result<()> {
    let nr = std::env::args().nth(1).map_or(Ok(512), |nr| nr.parse())?;
    matmul(nr)
}

#[cfg(test)]
mod tests {
    #[cfg_attr(thread_sanitizer, ignore = "the device has what the sanitizer keeps beside the heap")]
    #[test]
    fn the_product_is_the_cpus() {
        super::matmul(128).unwrap();
    }
}
