//! What the machine can do at best: the floors under every figure of a measurement, taken in the same run.

mod fault;
mod file;
mod lz4;
mod verbs;

pub(crate) use fault::FaultFloor;
pub(crate) use file::FileFloor;
pub(crate) use lz4::Lz4Floor;
pub(crate) use verbs::VerbFloors;

use crate::data::{Data, PAGE_BYTES};
use anyhow::Result;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

/// Memory that bandwidths are measured over: more than the caches hold.
const SPAN_BYTES: usize = 64 << 20;
const BLOCK_BYTES: usize = 2 << 20;
/// Each floor is the best of so many tries: a floor is what nothing disturbed.
const TRIES: usize = 3;

/// A floor, or why it cannot be measured here.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Floor<T> {
    /// It was measured.
    Measured(T),
    /// What is missing.
    Skipped(String),
}

impl<T> Floor<T> {
    fn of(result: Result<T>) -> Self {
        result.map_or_else(|why| Self::Skipped(format!("{why:#}")), Self::Measured)
    }

    /// What was measured.
    pub(crate) const fn get(&self) -> Option<&T> {
        match self {
            Self::Measured(floor) => Some(floor),
            Self::Skipped(_) => None,
        }
    }
}

/// All floors.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Floors {
    /// Bytes copied in a second by blocks of 2 MiB that are in no cache, in 10^9.
    pub(crate) memcpy_gb_per_s: f64,
    /// What the first touch of a page of fresh memory costs, without hmm.
    pub(crate) first_touch_ns: f64,
    /// A fault that userland serves.
    pub(crate) fault: Floor<FaultFloor>,
    /// Calls that move and copy pages.
    pub(crate) verbs: Floor<VerbFloors>,
    /// lz4 on every kind of data in use, by units of each size.
    pub(crate) lz4: Vec<Lz4Floor>,
    /// The file of a file device; `None` without one.
    pub(crate) file: Option<Floor<FileFloor>>,
}

impl Floors {
    /// Measures for about two seconds.
    ///
    /// # Errors
    /// lz4 does not give back what it was given.
    pub(crate) fn measure(data: &[Data], file_dir: Option<&Path>) -> Result<Self> {
        let lz4 = data.iter().map(|data| lz4::measure(*data)).collect::<Result<Vec<_>>>()?.concat();
        Ok(Self {
            memcpy_gb_per_s: memcpy(),
            first_touch_ns: first_touch(),
            fault: Floor::of(FaultFloor::measure()),
            verbs: Floor::of(VerbFloors::measure()),
            lz4,
            file: file_dir.map(|dir| Floor::of(FileFloor::measure(dir))),
        })
    }

    /// The codec on such data in units of so many bytes.
    pub(crate) fn lz4(&self, data: Data, unit_bytes: usize) -> Option<&Lz4Floor> {
        self.lz4.iter().find(|floor| (floor.data, floor.unit_bytes) == (data, unit_bytes))
    }
}

/// The parts of a fault that brings memory home, where they are needed by themselves.
///
/// # Errors
/// There is no userfaultfd to be had.
pub(crate) fn userland_floors() -> Result<(FaultFloor, VerbFloors)> {
    Ok((FaultFloor::measure()?, VerbFloors::measure()?))
}

/// lz4 on such data, by units of each size.
///
/// # Errors
/// It does not give back what it was given.
pub(crate) fn lz4_floors(data: Data) -> Result<Vec<Lz4Floor>> {
    lz4::measure(data)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_are_of_the_right_size() {
        let floors = Floors::measure(&[Data::Compressible, Data::Incompressible], None).unwrap();
        assert!((0.5..500.0).contains(&floors.memcpy_gb_per_s), "{floors:?}");
        assert!((10.0..100_000.0).contains(&floors.first_touch_ns), "{floors:?}");
        let page = floors.lz4(Data::Compressible, PAGE_BYTES).unwrap();
        let block = floors.lz4(Data::Compressible, BLOCK_BYTES).unwrap();
        assert!((2.8..3.3).contains(&page.ratio), "{floors:?}");
        assert!((page.ratio..9.0).contains(&block.ratio), "{floors:?}");
        assert!(floors.lz4(Data::Incompressible, 64 << 10).is_some(), "{floors:?}");
        assert!(floors.lz4.iter().all(|lz4| lz4.compress_gb_per_s > 0.01 && lz4.decompress_gb_per_s > 0.01));
    }
}
