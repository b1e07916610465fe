//! The memory of a device: frames in chunks that are made when they are needed, all in one range of addresses that was
//! set aside before any memory was managed (I6).

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hmm_device::{Caps, Device, DeviceError, DevicePfn, Fetch, MemKind, PAGE_SIZE, Store, Transfer, Usage};
use hmm_uapi::Mapping;
use hmm_uapi::mapping::Advice;

use crate::abi::Number;

/// Bytes that a device's memory grows by. A coherent device has one chunk and no more.
pub const CHUNK_BYTES: usize = 256 << 20;

/// The memory of one device.
#[derive(Debug)]
pub struct Memory {
    kind: MemKind,
    chunk_bytes: usize,
    range: Mapping,
    frames: Mutex<Frames>,
}

#[derive(Debug, Default)]
struct Frames {
    /// Chunks that can be used.
    nr_chunks: usize,
    /// Frames below this one have been handed out at some time.
    next: u32,
    free: Vec<DevicePfn>,
    nr_used: usize,
    /// Frames in use that may not be written: what was shared or read-only when it migrated.
    read_only: BTreeSet<DevicePfn>,
}

impl Memory {
    /// The memory of a device in `range`, which is reserved and becomes the device's.
    ///
    /// # Panics
    /// When the range is not of whole chunks, or of more frames than have numbers.
    pub fn new(device: Number, range: Mapping) -> Self {
        Self::with_chunks(device, range, CHUNK_BYTES)
    }

    fn with_chunks(device: Number, range: Mapping, chunk_bytes: usize) -> Self {
        assert!(!range.is_empty() && range.len().is_multiple_of(chunk_bytes), "memory of whole chunks");
        assert!(u32::try_from(range.len() / PAGE_SIZE).is_ok(), "frames have 32 bits");
        Self { kind: device.kind(), chunk_bytes, range, frames: Mutex::default() }
    }

    /// Gives the memory of all chunks back to the system. Does nothing while frames are in use.
    pub fn remove_chunks(&self) {
        let mut frames = self.lock();
        if frames.nr_used > 0 || frames.nr_chunks == 0 {
            return;
        }
        let bytes = frames.nr_chunks * self.chunk_bytes;
        // If that fails the memory stays resident; nobody reads it before it is stored to again.
        let _ = self.range.advise(0, bytes, Advice::DontNeedLocked);
        let _ = self.range.protect(0, bytes);
        *frames = Frames::default();
    }

    /// Says whether a device may write to a frame in use. Every frame that is handed out may be written.
    pub fn allow_writes(&self, pfn: DevicePfn, allow: bool) {
        let mut frames = self.lock();
        if allow {
            frames.read_only.remove(&pfn);
        } else {
            frames.read_only.insert(pfn);
        }
    }

    /// No device may write to what is in the memory now.
    pub fn forbid_writes(&self) {
        let mut frames = self.lock();
        frames.read_only = (0..frames.next).map(DevicePfn).collect();
        let Frames { free, read_only, .. } = &mut *frames;
        for pfn in free.iter() {
            read_only.remove(pfn);
        }
    }

    /// Whether a device may write to the frame, as far as that is the frame's matter and not its mapping's.
    pub fn allows_writes(&self, pfn: DevicePfn) -> bool {
        !self.lock().read_only.contains(&pfn)
    }

    fn lock(&self) -> MutexGuard<'_, Frames> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn one(&self, frames: &mut Frames) -> Option<DevicePfn> {
        let pfn = match frames.free.pop() {
            Some(pfn) => pfn,
            None => {
                if frames.next as usize == frames.nr_chunks * self.chunk_bytes / PAGE_SIZE {
                    self.add_chunk(frames)?;
                }
                frames.next += 1;
                DevicePfn(frames.next - 1)
            }
        };
        frames.nr_used += 1;
        Some(pfn)
    }

    fn add_chunk(&self, frames: &mut Frames) -> Option<()> {
        self.range.commit(frames.nr_chunks * self.chunk_bytes, self.chunk_bytes).ok()?;
        frames.nr_chunks += 1;
        Some(())
    }

    fn frame(&self, pfn: DevicePfn) -> Result<*mut u8, DeviceError> {
        let offset = pfn.0 as usize * PAGE_SIZE;
        if offset >= self.range.len() {
            return Err(DeviceError::Lost);
        }
        Ok(self.range.as_ptr().wrapping_add(offset))
    }
}

impl Device for Memory {
    fn caps(&self) -> Caps {
        Caps {
            kind: self.kind,
            capacity_pages: (self.range.len() / PAGE_SIZE) as u64,
            preferred_run_pages: 1,
            store_page_ns: 500,
            fetch_page_ns: 500,
            keeps_copies: false,
        }
    }

    fn memory(&self) -> Option<std::ops::Range<u64>> {
        let range = self.range.range();
        (self.kind == MemKind::Coherent).then_some(range.start..range.end)
    }

    fn usage(&self) -> Usage {
        let nr_used = self.lock().nr_used as u64;
        let used_bytes = nr_used * PAGE_SIZE as u64;
        Usage { frames: nr_used, used_bytes, capacity_bytes: self.range.len() as u64 }
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        let mut inner = self.lock();
        let mut granted = 0;
        for place in frames {
            let Some(pfn) = self.one(&mut inner) else { break };
            *place = pfn;
            granted += 1;
        }
        granted
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        for (done, (pfn, page)) in run.frames.iter().zip(run.bytes.as_chunks::<PAGE_SIZE>().0).enumerate() {
            let frame = match self.frame(*pfn) {
                Ok(frame) => frame,
                Err(error) => return Transfer::stopped(done, error),
            };
            // SAFETY:
            // 1. the frame is in a chunk that was committed when it was handed out, and stays so while it is in use.
            // 2. it is one owner's, who stores once before anybody fetches; a device's writes come under its table's lock.
            // 3. the page is the caller's and elsewhere: no reference into this range is ever made.
            unsafe { std::ptr::copy_nonoverlapping(page.as_ptr(), frame, PAGE_SIZE) };
        }
        Transfer::complete(run.frames.len())
    }

    fn fetch(&self, run: Fetch<'_>) -> Transfer {
        for (done, (pfn, page)) in run.frames.iter().zip(run.bytes.as_chunks_mut::<PAGE_SIZE>().0).enumerate()
        {
            let frame = match self.frame(*pfn) {
                Ok(frame) => frame,
                Err(error) => return Transfer::stopped(done, error),
            };
            // SAFETY: as in `store`.
            unsafe { std::ptr::copy_nonoverlapping(frame, page.as_mut_ptr(), PAGE_SIZE) };
        }
        Transfer::complete(run.frames.len())
    }

    fn free(&self, frames: &[DevicePfn]) {
        let mut inner = self.lock();
        inner.nr_used -= frames.len();
        for pfn in frames {
            inner.read_only.remove(pfn);
        }
        inner.free.extend_from_slice(frames);
    }
}

#[cfg(test)]
mod tests {
    use hmm_device::Access;

    use super::*;

    const PAGES: usize = 256;

    fn memory(number: u8, chunks: usize) -> Memory {
        let range = Mapping::reserve(chunks * PAGES * PAGE_SIZE).expect("addresses");
        Memory::with_chunks(Number::new(number).expect("a device"), range, PAGES * PAGE_SIZE)
    }

    fn store(memory: &Memory, pfn: DevicePfn, byte: u8) -> Transfer {
        memory.store(Store { frames: &[pfn], bytes: &[byte; PAGE_SIZE], access: Access::Random })
    }

    fn fetch(memory: &Memory, pfn: DevicePfn) -> u8 {
        let mut bytes = [0; PAGE_SIZE];
        assert_eq!(memory.fetch(Fetch { frames: &[pfn], bytes: &mut bytes }), Transfer::complete(1));
        assert!(bytes.iter().all(|byte| *byte == bytes[0]));
        bytes[0]
    }

    #[test]
    fn it_grows_by_chunks_up_to_its_range() {
        let memory = memory(0, 2);
        let mut frames = vec![DevicePfn(0); 2 * PAGES + 1];
        assert_eq!(memory.alloc(&mut frames), 2 * PAGES, "two chunks");
        let (first, last) = (frames[0], frames[2 * PAGES - 1]);
        assert_eq!(store(&memory, first, 1), Transfer::complete(1));
        assert_eq!(store(&memory, last, 2), Transfer::complete(1));
        assert_eq!((fetch(&memory, first), fetch(&memory, last)), (1, 2));
        memory.free(&[last]);
        let mut again = [DevicePfn(0)];
        assert_eq!((memory.alloc(&mut again), again[0]), (1, last));
    }

    #[test]
    fn chunks_go_when_nothing_is_in_them() {
        let memory = memory(2, 1);
        let mut frames = [DevicePfn(0)];
        assert_eq!(memory.alloc(&mut frames), 1);
        memory.remove_chunks();
        assert_eq!(store(&memory, frames[0], 7), Transfer::complete(1), "it is in use");
        memory.free(&frames);
        memory.remove_chunks();
        assert_eq!(memory.lock().nr_chunks, 0);
        assert_eq!(memory.alloc(&mut frames), 1);
        assert_eq!(fetch(&memory, frames[0]), 0, "fresh memory");
        assert_eq!(memory.caps().kind, MemKind::Coherent);
    }

    hmm_conformance::suite!(conforms, || memory(0, 1024 / PAGES));
}
