//! The memory of a device that computes: words that its unit reads and writes while its page table says so.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hmm::device::{Caps, Device, DeviceError, DevicePfn, Fetch, MemKind, PAGE_SIZE, Store, Transfer, Usage};

const WORDS: usize = PAGE_SIZE / 8;
/// What a frame is filled with when it is freed: whoever reads that has read what he must not.
const GARBAGE: u64 = u64::MAX;

/// See the module.
#[derive(Debug)]
pub(crate) struct Vram {
    words: Box<[AtomicU64]>,
    /// The one that was freed last is handed out first: stale entries are found soon.
    free: Mutex<Vec<DevicePfn>>,
}

impl Vram {
    pub(crate) fn new(nr_frames: usize) -> Self {
        let frames = 0..u32::try_from(nr_frames).expect("few frames");
        Self {
            words: (0..nr_frames * WORDS).map(|_| AtomicU64::new(GARBAGE)).collect(),
            free: Mutex::new(frames.map(DevicePfn).collect()),
        }
    }

    fn free_list(&self) -> MutexGuard<'_, Vec<DevicePfn>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn frame(&self, pfn: DevicePfn) -> &[AtomicU64] {
        &self.words[pfn.0 as usize * WORDS..][..WORDS]
    }

    /// A word of a frame. The caller holds the lock of the table that names the frame.
    pub(crate) fn word(&self, pfn: DevicePfn, word: usize) -> &AtomicU64 {
        &self.frame(pfn)[word]
    }
}

impl Device for Vram {
    fn caps(&self) -> Caps {
        Caps {
            kind: MemKind::Private,
            capacity_pages: (self.words.len() / WORDS) as u64,
            preferred_run_pages: 1,
            store_page_ns: 500,
            fetch_page_ns: 500,
            keeps_copies: false,
        }
    }

    fn usage(&self) -> Usage {
        let nr_frames = self.words.len() / WORDS;
        let (frames, page) = ((nr_frames - self.free_list().len()) as u64, PAGE_SIZE as u64);
        Usage { frames, used_bytes: frames * page, capacity_bytes: nr_frames as u64 * page }
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        let mut free = self.free_list();
        let granted = frames.len().min(free.len());
        frames[..granted].iter_mut().for_each(|frame| *frame = free.pop().unwrap_or_default());
        granted
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        for (pfn, page) in run.frames.iter().zip(run.bytes.chunks_exact(PAGE_SIZE)) {
            for (word, bytes) in self.frame(*pfn).iter().zip(page.chunks_exact(8)) {
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
            for (word, bytes) in self.frame(*pfn).iter().zip(page.chunks_exact_mut(8)) {
                bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
            }
        }
        Transfer::complete(run.frames.len())
    }

    fn free(&self, frames: &[DevicePfn]) {
        for pfn in frames {
            self.frame(*pfn).iter().for_each(|word| word.store(GARBAGE, Ordering::Relaxed));
            self.free_list().push(*pfn);
        }
    }
}
