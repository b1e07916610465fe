//! The memory of a device that computes: words that its unit reads and writes while its page table says so. If it is private
//! the CPU does not know where it is; if it is coherent the program has what is in it mapped.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hmm::device::{Caps, Device, DeviceError, DevicePfn, Fetch, MemKind, PAGE_SIZE, Store, Transfer, Usage};
use hmm::uapi::Mapping;

const WORDS: usize = PAGE_SIZE / 8;
/// What a private frame is filled with when it is freed: whoever reads that has read what he must not.
const GARBAGE: u64 = u64::MAX;

/// See the module.
#[derive(Debug)]
pub(crate) struct Vram {
    kind: MemKind,
    nr_frames: usize,
    memory: Mapping,
    /// The one that was freed last is handed out first: stale entries are found soon.
    free: Mutex<Vec<DevicePfn>>,
}

impl Vram {
    pub(crate) fn new(kind: MemKind, nr_frames: usize) -> Self {
        let frames = 0..u32::try_from(nr_frames).expect("few frames");
        let this = Self {
            kind,
            nr_frames,
            memory: Mapping::anonymous(nr_frames * PAGE_SIZE).expect("there is memory"),
            free: Mutex::new(frames.clone().map(DevicePfn).collect()),
        };
        frames.for_each(|pfn| this.spoil(DevicePfn(pfn)));
        this
    }

    fn free_list(&self) -> MutexGuard<'_, Vec<DevicePfn>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn frame(&self, pfn: DevicePfn) -> impl Iterator<Item = &AtomicU64> {
        (0..WORDS).map(move |word| self.word(pfn, word))
    }

    /// A word of a frame. The caller holds the lock of the table that names the frame.
    pub(crate) fn word(&self, pfn: DevicePfn, word: usize) -> &AtomicU64 {
        let index = pfn.0 as usize;
        assert!(index < self.nr_frames && word < WORDS);
        let at = self.memory.as_ptr().wrapping_add(index * PAGE_SIZE + word * 8).cast();
        // SAFETY: aligned, in our mapping, and everybody accesses it atomically; the engine moves nothing but whole pages,
        // which whoever has a frame does not use meanwhile.
        unsafe { AtomicU64::from_ptr(at) }
    }

    fn spoil(&self, pfn: DevicePfn) {
        // In a free coherent frame there need not be a page, and the next one is moved there.
        if self.kind == MemKind::Private {
            self.frame(pfn).for_each(|word| word.store(GARBAGE, Ordering::Relaxed));
        }
    }
}

impl Device for Vram {
    fn caps(&self) -> Caps {
        Caps {
            kind: self.kind,
            capacity_pages: self.nr_frames as u64,
            preferred_run_pages: 1,
            store_page_ns: 500,
            fetch_page_ns: 500,
            keeps_copies: false,
        }
    }

    fn usage(&self) -> Usage {
        let (frames, page) = ((self.nr_frames - self.free_list().len()) as u64, PAGE_SIZE as u64);
        Usage { frames, used_bytes: frames * page, capacity_bytes: self.nr_frames as u64 * page }
    }

    fn memory(&self) -> Option<Range<u64>> {
        let range = self.memory.range();
        (self.kind == MemKind::Coherent).then_some(range.start..range.end)
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        let mut free = self.free_list();
        let granted = frames.len().min(free.len());
        frames[..granted].iter_mut().for_each(|frame| *frame = free.pop().unwrap_or_default());
        granted
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        for (pfn, page) in run.frames.iter().zip(run.bytes.chunks_exact(PAGE_SIZE)) {
            for (word, bytes) in self.frame(*pfn).zip(page.chunks_exact(8)) {
                word.store(u64::from_ne_bytes(bytes.try_into().unwrap_or_default()), Ordering::Relaxed);
            }
        }
        Transfer::complete(run.frames.len())
    }

    fn fetch(&self, run: Fetch<'_>) -> Transfer {
        for (pfn, page) in run.frames.iter().zip(run.bytes.chunks_exact_mut(PAGE_SIZE)) {
            if self.word(*pfn, 0).load(Ordering::Relaxed) == GARBAGE {
                return Transfer::stopped(0, DeviceError::Corrupt);
            }
            for (word, bytes) in self.frame(*pfn).zip(page.chunks_exact_mut(8)) {
                bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
            }
        }
        Transfer::complete(run.frames.len())
    }

    fn free(&self, frames: &[DevicePfn]) {
        for pfn in frames {
            self.spoil(*pfn);
            self.free_list().push(*pfn);
        }
    }
}
