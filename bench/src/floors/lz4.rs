//! What the codec takes, without a device around it: one core, units of the sizes in which memory is moved.

use super::{best, gb_per_s};
use crate::data::{Data, Generator, PAGE_BYTES, PAGE_WORDS};
use anyhow::{Context, Result, ensure};
use hmm_lz4::codec;

/// Pages that lz4 is measured on.
const NR_PAGES: usize = 4096;
/// A page by itself, four as the device keeps streams, what one fault may bring, and a huge page.
const UNITS: [usize; 4] = [PAGE_BYTES, 16 << 10, 64 << 10, 2 << 20];

/// Speed of lz4 on one kind of data, on one core, in units of one size.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Lz4Floor {
    /// The data.
    pub(crate) data: Data,
    /// Bytes compressed together.
    pub(crate) unit_bytes: usize,
    /// Size before over size after.
    pub(crate) ratio: f64,
    /// Bytes compressed in a second, in 10^9.
    pub(crate) compress_gb_per_s: f64,
    /// Bytes decompressed in a second, in 10^9.
    pub(crate) decompress_gb_per_s: f64,
}

/// Measures all units.
///
/// # Errors
/// lz4 does not give back what it was given.
pub(super) fn measure(data: Data) -> Result<Vec<Lz4Floor>> {
    let generator = Generator::new(data, 1);
    let mut page = [0; PAGE_WORDS];
    let mut plain = Vec::with_capacity(NR_PAGES * PAGE_BYTES);
    for number in 0..NR_PAGES {
        generator.fill(number, 0, &mut page);
        plain.extend(page.iter().flat_map(|word| word.to_ne_bytes()));
    }
    UNITS.iter().map(|unit_bytes| one_size(data, &plain, *unit_bytes)).collect()
}

fn one_size(data: Data, plain: &[u8], unit_bytes: usize) -> Result<Lz4Floor> {
    // lz4 makes a unit that it cannot compress larger by less than a hundredth.
    let slot_bytes = unit_bytes + unit_bytes / 64;
    let nr_units = plain.len() / unit_bytes;
    let mut encoder = codec::Encoder::new();
    let mut packed = vec![0; nr_units * slot_bytes];
    let mut lens = vec![0; nr_units];
    let compress_seconds = best(|| {
        for ((unit, slot), len) in plain.chunks(unit_bytes).zip(packed.chunks_mut(slot_bytes)).zip(&mut lens)
        {
            *len = encoder.compress(unit, slot).expect("the slot holds any compressed unit");
        }
    });
    let mut back = vec![0; plain.len()];
    let mut failed = None;
    let decompress_seconds = best(|| {
        for ((unit, slot), len) in back.chunks_mut(unit_bytes).zip(packed.chunks(slot_bytes)).zip(&lens) {
            failed = codec::decompress(&slot[..*len], unit).err().or(failed.take());
        }
    });
    failed.map_or(Ok(()), Err).context("lz4 cannot read what it has written")?;
    ensure!(back == plain, "lz4 gives back other bytes than it was given");
    Ok(Lz4Floor {
        data,
        unit_bytes,
        ratio: plain.len() as f64 / lens.iter().sum::<usize>() as f64,
        compress_gb_per_s: gb_per_s(plain.len(), compress_seconds),
        decompress_gb_per_s: gb_per_s(plain.len(), decompress_seconds),
    })
}
