//! A histogram over an ordinary vector: the CPU and two devices count into the same words at the same time.
//!
//! `cargo run --release -p hmm-soft --example histogram [number of elements]`

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};
use hmm::AddressSpace;
use hmm_soft::{DeviceFault, Ptr, Soft, Unit};

/// The program's allocator, so that the device may have any pointer.
#[global_allocator]
static ALLOCATOR: hmm::Heap = hmm::Heap;

const NR_BINS: usize = 256;

fn histogram(nr: usize) -> Result<()> {
    let space = AddressSpace::builder().build()?;
    let build = || -> Result<Soft> { Ok(Soft::builder(&space)?.memory(8 << 20).units(2).build()?) };
    let (one, two) = (build()?, build()?);
    let data: Vec<u8> =
        (0..nr as u64).map(|index| (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    let bins: Vec<AtomicU64> = (0..NR_BINS).map(|_| AtomicU64::new(0)).collect();
    let mut expected = [0_u64; NR_BINS];
    data.iter().for_each(|byte| expected[usize::from(*byte)] += 1);

    let counts = Ptr::<u64>::from_raw(bins.as_ptr().cast());
    let (first, rest) = data.split_at(nr / 3);
    let (second, third) = rest.split_at(rest.len() / 2);
    let count = |unit: &Unit<'_>, data: &[u8]| -> Result<(), DeviceFault> {
        let share = unit.share(data.len());
        let mut buffer = [0_u8; 4096];
        for start in share.clone().step_by(buffer.len()) {
            let part = &mut buffer[..(share.end - start).min(4096)];
            unit.read(Ptr::of(data).add(start), part)?;
            for byte in part {
                unit.fetch_add(counts.add(usize::from(*byte)), 1)?;
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| -> Result<()> {
        // SAFETY: nobody writes the data; the counts are changed atomically only.
        let one = scope.spawn(|| unsafe { one.launch(|unit| count(unit, first)) });
        // SAFETY: as above.
        let two = scope.spawn(|| unsafe { two.launch(|unit| count(unit, second)) });
        for byte in third {
            bins[usize::from(*byte)].fetch_add(1, Ordering::Relaxed);
        }
        for launched in [one, two] {
            launched.join().map_err(|_| anyhow::anyhow!("a launch panicked"))??;
        }
        Ok(())
    })?;
    let counted: Vec<u64> = bins.iter().map(|bin| bin.load(Ordering::Relaxed)).collect();
    ensure!(counted == expected, "the devices and the CPU do not agree");
    Ok(())
}

fn main() -> Result<()> {
    let nr = std::env::args().nth(1).map_or(Ok(64 << 20), |nr| nr.parse())?;
    histogram(nr)
}

#[cfg(test)]
mod tests {
    #[cfg_attr(thread_sanitizer, ignore = "the device has what the sanitizer keeps beside the heap")]
    #[test]
    fn nothing_is_counted_twice_or_not_at_all() {
        super::histogram(400_000).unwrap();
    }
}
