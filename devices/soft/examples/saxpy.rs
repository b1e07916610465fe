//! `y = a * x + y` over ordinary vectors, by a device.
//!
//! `cargo run --release -p hmm-soft --example saxpy [number of elements]`

use anyhow::{Result, ensure};
use hmm::AddressSpace;
use hmm_soft::{Ptr, Soft};

/// The program's allocator, so that the device may have any pointer.
#[global_allocator]
static ALLOCATOR: hmm::Heap = hmm::Heap;

fn saxpy(nr: usize) -> Result<()> {
    let space = AddressSpace::builder().build()?;
    let soft = Soft::builder(&space)?.memory(16 << 20).units(2).build()?;
    let a = 3.0_f32;
    let x: Vec<f32> = (0..nr).map(|index| index as f32).collect();
    let mut y: Vec<f32> = (0..nr).map(|index| 0.5 * index as f32).collect();
    let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| a * x + y).collect();

    let (from, to) = (Ptr::of(&x), Ptr::of_mut(&mut y));
    let kernel = |unit: &hmm_soft::Unit<'_>| {
        let mut part = [0.0; 1024];
        let share = unit.share(nr);
        for start in share.clone().step_by(part.len()) {
            let part = &mut part[..(share.end - start).min(1024)];
            unit.read(from.add(start), part)?;
            unit.chunks_mut(to.add(start), part.len(), |first, y| {
                for (y, x) in y.iter_mut().zip(&part[first..]) {
                    *y += a * x;
                }
            })?;
        }
        Ok(())
    };
    // SAFETY: while the kernel runs nobody else accesses `y`, or writes `x`; each unit has its own part.
    unsafe { soft.launch(kernel) }?;

    ensure!(y == expected, "the device and the CPU do not agree");
    let stats = soft.stats();
    ensure!(stats.migrated > 0 && stats.in_place > 0, "nothing happened on the device: {stats:?}");
    Ok(())
}

fn main() -> Result<()> {
    let nr = std::env::args().nth(1).map_or(Ok(16 << 20), |nr| nr.parse())?;
    saxpy(nr)
}

#[cfg(test)]
mod tests {
    #[cfg_attr(thread_sanitizer, ignore = "the device has what the sanitizer keeps beside the heap")]
    #[test]
    fn the_device_and_the_cpu_agree() {
        super::saxpy(300_000).unwrap();
    }
}
