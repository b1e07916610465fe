//! The floor under every fault: how long a thread waits for a page that a handler thread copies in at once.
//!
//! Nothing is decided, decompressed or fetched: what is measured are the kernel's delivery, two wake-ups, and one copy of
//! 4 KiB. Where the handler runs decides the figure, so both places are measured.

use crate::clock::{TickRate, ticks};
use crate::data::PAGE_BYTES;
use anyhow::{Context, Result, ensure};
use hmm_uapi::uffd::{Access, CopyMode, Event, EventBuffer, Features, Modes};
use hmm_uapi::{Errno, Mapping, Userfaultfd, sys};
use rustix::thread::{CpuSet, sched_getaffinity};
use std::thread;

const NR_FAULTS: usize = 2000;

/// Median time of a touch of a missing page, until the thread runs on, in nanoseconds.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct FaultFloor {
    /// The handler runs on the CPU of the faulting thread.
    pub(crate) same_cpu_ns: f64,
    /// The handler runs on another CPU, which sleeps when there is nothing to do; `None` with only one CPU.
    pub(crate) other_cpu_ns: Option<f64>,
}

impl FaultFloor {
    /// Measures both.
    ///
    /// # Errors
    /// There is no userfaultfd to be had; the message says what is missing.
    pub(crate) fn measure() -> Result<Self> {
        let allowed = sched_getaffinity(None).context("cannot ask for the CPUs to run on")?;
        let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        let first = cpus.next().context("there is no CPU to run on")?;
        Ok(Self {
            same_cpu_ns: median_ns(first, first)?,
            other_cpu_ns: cpus.next().map(|second| median_ns(first, second)).transpose()?,
        })
    }
}

fn median_ns(toucher_cpu: usize, handler_cpu: usize) -> Result<f64> {
    let memory = Mapping::anonymous(NR_FAULTS * PAGE_BYTES).context("no memory to fault on")?;
    let uffd = Userfaultfd::open(Access::UserModeOnly)?;
    uffd.enable(Features::empty())?;
    uffd.set_nonblocking(false)?;
    // SAFETY:
    // 1. there are no references into the mapping, which is new.
    // 2. only the thread that touches it does; the handler waits for nobody.
    // 3. nothing was taken out of it.
    unsafe { uffd.register(memory.range(), Modes::MISSING) }.context("cannot register memory")?;
    let mut times = thread::scope(|scope| {
        // The handler owns the descriptor: should it fail, the kernel closes that, and nobody waits for ever.
        let handler = scope.spawn(move || serve(&uffd, handler_cpu));
        let toucher = scope.spawn(|| touch_all(&memory, toucher_cpu));
        let times = toucher.join().expect("it does not panic");
        handler.join().expect("it does not panic").and(times)
    })?;
    times.sort_unstable();
    Ok(TickRate::calibrate().to_ns(times[times.len() / 2]))
}

/// Answers as many faults as there will be.
fn serve(uffd: &Userfaultfd, cpu: usize) -> Result<()> {
    pin_to(cpu)?;
    let page = vec![1_u8; PAGE_BYTES];
    let mut buffer = EventBuffer::new();
    let mut nr_served = 0;
    while nr_served < NR_FAULTS {
        let events = match uffd.read_events(&mut buffer) {
            Err(Errno::INTR) => continue,
            other => other.context("cannot read faults")?,
        };
        for event in events {
            let Event::Fault { addr, .. } = event else { continue };
            let start = addr & !(PAGE_BYTES as u64 - 1);
            let outcome = uffd.copy(page.as_ptr().addr() as u64, start, PAGE_BYTES as u64, CopyMode::empty());
            ensure!(outcome.is_complete(), "cannot fill a page: {outcome:?}");
            nr_served += 1;
        }
    }
    Ok(())
}

/// Touches every page once and times it.
fn touch_all(memory: &Mapping, cpu: usize) -> Result<Vec<u64>> {
    pin_to(cpu)?;
    let touch = |page: usize| {
        let first_byte = memory.as_ptr().wrapping_add(page * PAGE_BYTES);
        let start = ticks();
        // SAFETY: the byte is inside of the mapping, which outlives this thread; nobody has a reference to it.
        unsafe { first_byte.read_volatile() };
        ticks().wrapping_sub(start)
    };
    Ok((0..NR_FAULTS).map(touch).collect())
}

fn pin_to(cpu: usize) -> Result<()> {
    sys::pin_to(cpu).context("cannot choose the CPU to run on")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_takes_microseconds() {
        match FaultFloor::measure() {
            Ok(floor) => {
                assert!((1e3..1e7).contains(&floor.same_cpu_ns), "{floor:?}");
                assert!(floor.other_cpu_ns.is_none_or(|ns| (1e3..1e7).contains(&ns)), "{floor:?}");
            }
            Err(why) => {
                assert!(Userfaultfd::open(Access::UserModeOnly).is_err(), "{why:#}");
                eprintln!("SKIPPED: {why:#}");
            }
        }
    }
}
