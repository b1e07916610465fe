//! What the machine can do at best: the floors under every figure of a measurement, taken in the same run.

use crate::data::{Data, Generator, PAGE_BYTES, PAGE_WORDS};
use crate::fault_floor::FaultFloor;
use anyhow::{Context, Result};
use hmm_lz4::codec;
use std::hint::black_box;
use std::time::Instant;

/// Memory that bandwidths are measured over: more than the caches hold.
const SPAN_BYTES: usize = 64 << 20;
const BLOCK_BYTES: usize = 2 << 20;
/// Pages that lz4 is measured on.
const LZ4_PAGES: usize = 4096;
/// Each floor is the best of so many tries: a floor is what nothing disturbed.
const TRIES: usize = 3;

/// Speed of lz4 on one kind of data, on one core, in units of 4 KiB.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Lz4Floor {
    /// The data.
    pub(crate) data: Data,
    /// Size before over size after.
    pub(crate) ratio: f64,
    /// Bytes compressed in a second, in 10^9.
    pub(crate) compress_gb_per_s: f64,
    /// Bytes decompressed in a second, in 10^9.
    pub(crate) decompress_gb_per_s: f64,
}

/// All floors.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Floors {
    /// Bytes copied in a second by blocks of 2 MiB that are in no cache, in 10^9.
    pub(crate) memcpy_gb_per_s: f64,
    /// What the first touch of a page of fresh memory costs, without hmm.
    pub(crate) first_touch_ns: f64,
    /// A fault that userland serves.
    pub(crate) fault: Option<FaultFloor>,
    /// Why there is none: what this user lacks to have a userfaultfd.
    pub(crate) fault_skipped: Option<String>,
    /// lz4 on every kind of data in use.
    pub(crate) lz4: Vec<Lz4Floor>,
}

impl Floors {
    /// Measures for about a second.
    ///
    /// # Errors
    /// lz4 does not give back what it was given.
    pub(crate) fn measure(data: &[Data]) -> Result<Self> {
        let lz4 = data.iter().map(|data| lz4(*data)).collect::<Result<_>>()?;
        let (fault, fault_skipped) = match FaultFloor::measure() {
            Ok(fault) => (Some(fault), None),
            Err(why) => (None, Some(format!("{why:#}"))),
        };
        let (memcpy_gb_per_s, first_touch_ns) = (memcpy(), first_touch());
        Ok(Self { memcpy_gb_per_s, first_touch_ns, fault, fault_skipped, lz4 })
    }
}

/// Shortest time in seconds that `action` takes.
fn best(mut action: impl FnMut()) -> f64 {
    let time = |()| {
        let start = Instant::now();
        action();
        start.elapsed().as_secs_f64()
    };
    std::iter::repeat_n((), TRIES).map(time).fold(f64::INFINITY, f64::min)
}

fn gb_per_s(bytes: usize, seconds: f64) -> f64 {
    bytes as f64 / seconds / 1e9
}

fn memcpy() -> f64 {
    let from = vec![1_u8; SPAN_BYTES];
    let mut to = vec![2_u8; SPAN_BYTES];
    let seconds = best(|| {
        for (to, from) in to.chunks_mut(BLOCK_BYTES).zip(from.chunks(BLOCK_BYTES)) {
            black_box(to).copy_from_slice(black_box(from));
        }
    });
    gb_per_s(SPAN_BYTES, seconds)
}

fn first_touch() -> f64 {
    let seconds = best(|| {
        let mut fresh = vec![0_u8; SPAN_BYTES];
        black_box(&mut fresh).iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
        black_box(&fresh);
    });
    seconds * 1e9 / (SPAN_BYTES / PAGE_BYTES) as f64
}

fn lz4(data: Data) -> Result<Lz4Floor> {
    let generator = Generator::new(data, 1);
    let mut page = [0; PAGE_WORDS];
    let mut plain = Vec::with_capacity(LZ4_PAGES * PAGE_BYTES);
    for number in 0..LZ4_PAGES {
        generator.fill(number, 0, &mut page);
        plain.extend(page.iter().flat_map(|word| word.to_ne_bytes()));
    }
    // lz4 makes a page that it cannot compress larger by less than a hundredth.
    let slot_bytes = PAGE_BYTES + PAGE_BYTES / 64;
    let mut encoder = codec::Encoder::new();
    let mut packed = vec![0; LZ4_PAGES * slot_bytes];
    let mut lens = vec![0; LZ4_PAGES];
    let compress_seconds = best(|| {
        for ((page, slot), len) in plain.chunks(PAGE_BYTES).zip(packed.chunks_mut(slot_bytes)).zip(&mut lens)
        {
            *len = encoder.compress(page, slot).expect("the slot holds any compressed page");
        }
    });
    let mut back = vec![0; plain.len()];
    let mut failed = None;
    let decompress_seconds = best(|| {
        for ((page, slot), len) in back.chunks_mut(PAGE_BYTES).zip(packed.chunks(slot_bytes)).zip(&lens) {
            failed = codec::decompress(&slot[..*len], page).err().or(failed.take());
        }
    });
    failed.map_or(Ok(()), Err).context("lz4 cannot read what it has written")?;
    anyhow::ensure!(back == plain, "lz4 gives back other bytes than it was given");
    Ok(Lz4Floor {
        data,
        ratio: plain.len() as f64 / lens.iter().sum::<usize>() as f64,
        compress_gb_per_s: gb_per_s(plain.len(), compress_seconds),
        decompress_gb_per_s: gb_per_s(plain.len(), decompress_seconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_are_of_the_right_size() {
        let floors = Floors::measure(&[Data::Compressible, Data::Incompressible]).unwrap();
        assert!((0.5..500.0).contains(&floors.memcpy_gb_per_s), "{floors:?}");
        assert!((10.0..100_000.0).contains(&floors.first_touch_ns), "{floors:?}");
        assert_eq!(floors.lz4.len(), 2);
        assert!((2.8..3.3).contains(&floors.lz4[0].ratio), "{floors:?}");
        assert!(floors.lz4.iter().all(|lz4| lz4.compress_gb_per_s > 0.01 && lz4.decompress_gb_per_s > 0.01));
    }
}
