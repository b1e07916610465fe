//! A device whose memory is RAM of small or huge pages, touched beforehand: the copy of the bytes is all that it costs.
//!
//! A lock for each 2 MiB, taken once for each run of frames that lie side by side.

use super::memory::{Memory, PageKind};
use crate::data::PAGE_BYTES;
use anyhow::Result;
use hmm::device::{
    Caps, Device, DeviceError, DevicePfn, Fetch, LARGE_PAGES, MemKind, Store, Transfer, Usage,
};
use hmm::heap::Inside;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Pages below one lock.
const CHUNK_PAGES: usize = LARGE_PAGES;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Empty,
    Full,
}

#[derive(Debug)]
struct Chunk {
    memory: Memory,
    states: Vec<State>,
}

/// The device.
#[derive(Debug)]
pub(crate) struct Flat {
    chunks: Vec<Mutex<Chunk>>,
    /// Frames that can be handed out, the next one last.
    free: Mutex<Vec<DevicePfn>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Splits frames into runs that lie side by side in one chunk: chunk, first page in it, number of pages.
fn runs(frames: &[DevicePfn]) -> impl Iterator<Item = (usize, usize, usize)> {
    let together = |one: &DevicePfn, next: &DevicePfn| {
        next.0 == one.0 + 1 && !(next.0 as usize).is_multiple_of(CHUNK_PAGES)
    };
    frames.chunk_by(together).map(|run| {
        let first = run[0].0 as usize;
        (first / CHUNK_PAGES, first % CHUNK_PAGES, run.len())
    })
}

impl Flat {
    /// A device of at least so many frames, all touched.
    ///
    /// # Errors
    /// There is no memory.
    pub(crate) fn new(nr_pages: usize, kind: PageKind) -> Result<Self> {
        let _inside = Inside::enter();
        let nr_chunks = nr_pages.div_ceil(CHUNK_PAGES);
        let chunk = |_| {
            let memory = Memory::filled(CHUNK_PAGES * PAGE_BYTES, kind, 1)?;
            Ok(Mutex::new(Chunk { memory, states: vec![State::Free; CHUNK_PAGES] }))
        };
        let nr_frames = u32::try_from(nr_chunks * CHUNK_PAGES).unwrap_or(u32::MAX);
        Ok(Self {
            chunks: (0..nr_chunks).map(chunk).collect::<Result<_>>()?,
            free: Mutex::new((0..nr_frames).rev().map(DevicePfn).collect()),
        })
    }

    /// Calls `copy` with the bytes of each run of frames that are in state `from`, and leaves them in state `to`.
    fn transfer(
        &self,
        frames: &[DevicePfn],
        (from, to): (State, State),
        mut copy: impl FnMut(usize, &mut [u8]),
    ) -> Transfer {
        let mut done = 0;
        for (chunk, first, nr) in runs(frames) {
            let Some(chunk) = self.chunks.get(chunk) else {
                return Transfer::stopped(done, DeviceError::Unsupported);
            };
            let mut chunk = locked(chunk);
            if chunk.states[first..first + nr].iter().any(|state| *state != from) {
                return Transfer::stopped(done, DeviceError::Unsupported);
            }
            copy(
                done * PAGE_BYTES,
                &mut chunk.memory.bytes_mut()[first * PAGE_BYTES..(first + nr) * PAGE_BYTES],
            );
            chunk.states[first..first + nr].fill(to);
            done += nr;
        }
        Transfer::complete(done)
    }

    fn set_state(&self, frames: &[DevicePfn], to: State) {
        for (chunk, first, nr) in runs(frames) {
            if let Some(chunk) = self.chunks.get(chunk) {
                locked(chunk).states[first..first + nr].fill(to);
            }
        }
    }

    fn nr_frames(&self) -> u64 {
        (self.chunks.len() * CHUNK_PAGES) as u64
    }
}

impl Device for Flat {
    fn caps(&self) -> Caps {
        Caps {
            kind: MemKind::Private,
            capacity_pages: self.nr_frames(),
            preferred_run_pages: 64,
            store_page_ns: 400,
            fetch_page_ns: 400,
            keeps_copies: false,
        }
    }

    fn usage(&self) -> Usage {
        let frames = self.nr_frames() - locked(&self.free).len() as u64;
        let page = PAGE_BYTES as u64;
        Usage { frames, used_bytes: frames * page, capacity_bytes: self.nr_frames() * page }
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        let mut free = locked(&self.free);
        let nr = frames.len().min(free.len());
        let rest = free.len() - nr;
        frames.iter_mut().zip(free.drain(rest..).rev()).for_each(|(slot, frame)| *slot = frame);
        self.set_state(&frames[..nr], State::Empty);
        nr
    }

    fn alloc_large(&self) -> Option<DevicePfn> {
        let mut free = locked(&self.free);
        // What is freed comes back in the order in which it was used, so large runs stay together.
        let is_run = |first: &usize| {
            let run = &free[first + 1 - LARGE_PAGES..=*first];
            run[LARGE_PAGES - 1].is_large_start()
                && run.iter().rev().zip(0..).all(|(frame, number)| *frame == run[LARGE_PAGES - 1].add(number))
        };
        let at = (LARGE_PAGES - 1..free.len()).rev().find(is_run)?;
        let first = free[at];
        free.drain(at + 1 - LARGE_PAGES..=at);
        let chunk = first.0 as usize / CHUNK_PAGES;
        locked(&self.chunks[chunk]).states.fill(State::Empty);
        Some(first)
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        self.transfer(run.frames, (State::Empty, State::Full), |at, frame| {
            frame.copy_from_slice(&run.bytes[at..at + frame.len()]);
        })
    }

    fn fetch(&self, run: Fetch<'_>) -> Transfer {
        self.transfer(run.frames, (State::Full, State::Full), |at, frame| {
            run.bytes[at..at + frame.len()].copy_from_slice(frame);
        })
    }

    fn free(&self, frames: &[DevicePfn]) {
        self.set_state(frames, State::Free);
        // In the order in which they were used, so that runs stay runs.
        locked(&self.free).extend(frames.iter().rev());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conforms() {
        hmm::device::conformance::check(|| Flat::new(1024, PageKind::Small).unwrap());
    }
}
