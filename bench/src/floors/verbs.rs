//! The floor under every page that moves: what the kernel takes to move pages, and to copy one, when nobody waits for them
//! and nothing else is done.
//!
//! One thread, and no other of this process at work: a second one would make every MOVE flush its CPU's TLB.

use crate::data::PAGE_BYTES;
use crate::mirror::memory::{Memory, PageKind};
use crate::report::median;
use anyhow::{Context, Result, ensure};
use hmm_uapi::Userfaultfd;
use hmm_uapi::uffd::{Access, CopyMode, Features, Modes, MoveMode, Outcome};
use std::time::Instant;

/// Memory that is moved for each figure.
const SPAN_BYTES: usize = 32 << 20;

/// Median time of one call, in nanoseconds.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct VerbFloors {
    /// `UFFDIO_MOVE` of a page.
    pub(crate) move_4k_ns: f64,
    /// Of 16 pages.
    pub(crate) move_64k_ns: f64,
    /// Of 512 pages.
    pub(crate) move_2m_ns: f64,
    /// `UFFDIO_COPY` of a page.
    pub(crate) copy_4k_ns: f64,
}

impl VerbFloors {
    /// Measures for a tenth of a second.
    ///
    /// # Errors
    /// There is no userfaultfd to be had, or none that moves; or wrong bytes.
    pub(crate) fn measure() -> Result<Self> {
        Ok(Self {
            move_4k_ns: median_ns(Verb::Move, PAGE_BYTES)?,
            move_64k_ns: median_ns(Verb::Move, 64 << 10)?,
            move_2m_ns: median_ns(Verb::Move, 2 << 20)?,
            copy_4k_ns: median_ns(Verb::Copy, PAGE_BYTES)?,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Move,
    Copy,
}

/// Takes filled memory to where there is none, a unit in each call.
fn median_ns(verb: Verb, unit_bytes: usize) -> Result<f64> {
    const GENERATION: u64 = 7;
    let mut from = Memory::filled(SPAN_BYTES, PageKind::Small, GENERATION)?;
    let to = Memory::new(SPAN_BYTES, PageKind::Small)?;
    let uffd = Userfaultfd::open(Access::UserModeOnly)?;
    uffd.enable(if verb == Verb::Move { Features::MOVE } else { Features::empty() })?;
    // SAFETY:
    // 1. there are no references into the memory, which is new.
    // 2. nobody touches it before all of it is filled.
    // 3. nothing was taken out of it.
    unsafe { uffd.register(to.addrs(), Modes::MISSING) }.context("cannot register memory")?;
    let mut times = Vec::with_capacity(SPAN_BYTES / unit_bytes);
    for at in (0..SPAN_BYTES as u64).step_by(unit_bytes) {
        let begin = Instant::now();
        let outcome = carry(&uffd, verb, (&mut from, &to), (at, unit_bytes as u64));
        times.push(begin.elapsed().as_nanos() as f64);
        ensure!(outcome.is_complete(), "{verb:?} of {unit_bytes} bytes stopped: {outcome:?}");
    }
    to.verify(GENERATION, 0)?;
    median(times.into_iter()).context("no time was taken")
}

/// One call.
fn carry(
    uffd: &Userfaultfd,
    verb: Verb,
    (from, to): (&mut Memory, &Memory),
    (at, len): (u64, u64),
) -> Outcome {
    let (src, dst) = (from.addrs().start + at, to.addrs().start + at);
    match verb {
        Verb::Copy => uffd.copy(src, dst, len, CopyMode::empty()),
        // SAFETY: the source is borrowed mutably, so nobody has a reference into it, and what is read there afterwards is
        // zeroes, which are words as good as any.
        Verb::Move => unsafe { uffd.r#move(dst, src, len, MoveMode::empty()) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_moves_take_longer_but_less_a_page() {
        let floors = match VerbFloors::measure() {
            Ok(floors) => floors,
            Err(why) => {
                assert!(Userfaultfd::open(Access::UserModeOnly).is_err(), "{why:#}");
                return eprintln!("SKIPPED: {why:#}");
            }
        };
        assert!((100.0..1e6).contains(&floors.move_4k_ns), "{floors:?}");
        assert!((100.0..1e6).contains(&floors.copy_4k_ns), "{floors:?}");
        assert!(floors.move_4k_ns < floors.move_2m_ns, "{floors:?}");
        assert!(floors.move_2m_ns / 512.0 < floors.move_4k_ns, "{floors:?}");
        assert!(floors.move_64k_ns / 16.0 < floors.move_4k_ns, "{floors:?}");
    }
}
