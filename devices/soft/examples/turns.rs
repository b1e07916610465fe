//! The CPU and a device take turns on one structure: each adds to what the other left.
//!
//! `cargo run --release -p hmm-soft --example turns [number of turns]`

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};
use hmm::AddressSpace;
use hmm_soft::{Ptr, Soft, Unit};

/// The program's allocator, so that the device may have any pointer.
#[global_allocator]
static ALLOCATOR: hmm::Heap = hmm::Heap;

/// Words that each turn adds to, over many pages.
const NR_WORDS: usize = 16 << 10;

fn turns(nr_turns: usize) -> Result<()> {
    let space = AddressSpace::builder().build()?;
    let soft = Soft::builder(&space)?.memory(1 << 20).build()?;
    let turn = AtomicU64::new(0);
    let words: Vec<AtomicU64> = (0..NR_WORDS).map(|_| AtomicU64::new(0)).collect();
    let (turn_at, words_at) =
        (Ptr::<u64>::from_raw(turn.as_ptr()), Ptr::<u64>::from_raw(words.as_ptr().cast()));
    let kernel = |unit: &Unit<'_>| {
        for mine in (0..nr_turns).step_by(2) {
            while unit.fetch_add(turn_at, 0)? != mine as u64 {
                std::thread::yield_now();
            }
            for index in (mine % 64..NR_WORDS).step_by(64) {
                let at = words_at.add(index);
                unit.store(at, unit.load(at)? + mine as u64)?;
            }
            unit.fetch_add(turn_at, 1)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| -> Result<()> {
        // SAFETY: both sides access these words atomically only.
        let device = scope.spawn(|| unsafe { soft.launch(kernel) });
        for mine in (1..nr_turns).step_by(2) {
            while turn.load(Ordering::Acquire) != mine as u64 {
                if device.is_finished() && turn.load(Ordering::Acquire) != mine as u64 {
                    break;
                }
                std::thread::yield_now();
            }
            // A word that the device changes in other turns, and one that it never changes.
            for index in (mine % 64 - 1..NR_WORDS).step_by(64) {
                let before = words[index].load(Ordering::Relaxed);
                words[index].store(before + mine as u64, Ordering::Relaxed);
            }
            turn.fetch_add(1, Ordering::AcqRel);
        }
        device.join().map_err(|_| anyhow::anyhow!("the launch panicked"))??;
        Ok(())
    })?;
    let mut expected = vec![0_u64; 64];
    (0..nr_turns).for_each(|turn| expected[turn % 64 - turn % 2] += turn as u64);
    let is_right = |(index, word): (usize, &AtomicU64)| word.load(Ordering::Relaxed) == expected[index % 64];
    ensure!(words.iter().enumerate().all(is_right), "a turn was lost");
    let stats = soft.stats();
    ensure!(stats.migrated > 0, "the device worked in place only: {stats:?}");
    Ok(())
}

fn main() -> Result<()> {
    let nr = std::env::args().nth(1).map_or(Ok(10_000), |nr| nr.parse())?;
    turns(nr)
}

#[cfg(test)]
mod tests {
    #[cfg_attr(thread_sanitizer, ignore = "the device has what the sanitizer keeps beside the heap")]
    #[test]
    fn no_turn_is_lost() {
        super::turns(300).unwrap();
    }
}
