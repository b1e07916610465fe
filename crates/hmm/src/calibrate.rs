//! Which way home is cheaper on this machine.
//!
//! A move takes a staged page out of our page table and has to flush the TLBs of all CPUs that our threads run on; a copy
//! has the kernel allocate a page and later free another. On bare metal and with idle CPUs the move wins; in a virtual
//! machine with several busy CPUs the flush costs more than the rest. So both are tried on memory of our own, under the
//! conditions of now, and the faster is taken.

use std::time::{Duration, Instant};

use hmm_core::HomeBy;
use hmm_uapi::mapping::{Advice, Mapping};
use hmm_uapi::uffd::{Access, CopyMode, Features, Modes, MoveMode, Userfaultfd};
use rustix::io::Errno;

const PAGE: usize = 4096;
/// Pages of one trial: what a fetch brings at a time.
const RUN_PAGES: usize = 32;
const TRIALS: usize = 16;

/// What was measured, for a page of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calibration {
    /// Filling a staging page that is there, and moving it.
    pub move_page: Duration,
    /// Copying a page, and giving one back.
    pub copy_page: Duration,
}

impl Calibration {
    /// The cheaper way.
    pub fn choice(&self) -> HomeBy {
        if self.move_page <= self.copy_page { HomeBy::Move } else { HomeBy::Copy }
    }
}

/// The way home that is cheaper here; a move if it cannot be measured.
pub fn home_by(access: Access) -> HomeBy {
    let measured = Userfaultfd::open(access).ok().and_then(|uffd| {
        let features = Features::MOVE | Features::PAGEFAULT_FLAG_WP;
        uffd.enable(features).ok()?;
        calibrate(&uffd).ok()
    });
    measured.map_or(HomeBy::Move, |measured| measured.choice())
}

/// Measures both ways on memory of our own, in about a millisecond. The userfaultfd is one without events, so that
/// nobody has to read it.
///
/// # Errors
/// What mapping or registering memory says.
pub fn calibrate(uffd: &Userfaultfd) -> Result<Calibration, Errno> {
    let len = RUN_PAGES * PAGE;
    let (program, staging) = (Mapping::anonymous(len)?, Mapping::anonymous(len)?);
    for mapping in [&program, &staging] {
        mapping.advise(0, len, Advice::NoHugePage)?;
        // SAFETY: the mapping is ours alone, is touched by nobody but this function, and unregistered before it goes.
        unsafe { uffd.register(mapping.range(), Modes::WRITE_PROTECT) }?;
    }
    let mut moves = [Duration::ZERO; TRIALS];
    let mut copies = [Duration::ZERO; TRIALS];
    for (a_move, a_copy) in moves.iter_mut().zip(&mut copies) {
        staging.advise(0, len, Advice::PopulateWrite)?;
        program.advise(0, len, Advice::DontNeed)?;
        let start = Instant::now();
        // SAFETY: nobody holds a reference into either mapping.
        let moved = unsafe {
            uffd.r#move(program.range().start, staging.range().start, len as u64, MoveMode::empty())
        };
        *a_move = start.elapsed();
        if let Some(errno) = moved.stop {
            return Err(errno);
        }
        // A copy has to free a page elsewhere for the one it takes.
        let start = Instant::now();
        program.advise(0, len, Advice::DontNeed)?;
        let copied = uffd.copy(staging.range().start, program.range().start, len as u64, CopyMode::empty());
        *a_copy = start.elapsed();
        if let Some(errno) = copied.stop {
            return Err(errno);
        }
    }
    uffd.unregister(program.range())?;
    uffd.unregister(staging.range())?;
    Ok(Calibration { move_page: median(&mut moves), copy_page: median(&mut copies) })
}

fn median(times: &mut [Duration; TRIALS]) -> Duration {
    times.sort_unstable();
    times[TRIALS / 2] / u32::try_from(RUN_PAGES).unwrap_or(1)
}
