//! A complete device: a memory of so many frames, each with a checksum. It passes the suite; see "Writing a device" in
//! `CONTRIBUTING.md`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hmm::device::{Caps, Device, DeviceError, DevicePfn, Fetch, MemKind, PAGE_SIZE, Store, Transfer, Usage};

/// What a frame is.
#[derive(Debug)]
enum Frame {
    Free,
    /// Handed out, not stored to.
    Empty,
    Full {
        bytes: Box<[u8]>,
        sum: u64,
    },
}

/// The device.
#[derive(Debug)]
pub(crate) struct Shelf {
    frames: Mutex<Vec<Frame>>,
}

impl Shelf {
    /// A device of so many frames.
    pub(crate) fn new(nr_frames: usize) -> Self {
        Self { frames: Mutex::new((0..nr_frames).map(|_| Frame::Free).collect()) }
    }

    /// One lock for all frames. Whoever holds it calls nobody.
    fn lock(&self) -> MutexGuard<'_, Vec<Frame>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store_page(&self, pfn: DevicePfn, page: &[u8]) -> Result<(), DeviceError> {
        match self.lock().get_mut(pfn.0 as usize) {
            Some(frame @ Frame::Empty) => {
                *frame = Frame::Full { bytes: page.into(), sum: sum(page) };
                Ok(())
            }
            // A frame is stored to once: whoever does otherwise has mixed frames up.
            Some(Frame::Free | Frame::Full { .. }) | None => Err(DeviceError::Unsupported),
        }
    }

    fn fetch_page(&self, pfn: DevicePfn, page: &mut [u8]) -> Result<(), DeviceError> {
        match self.lock().get(pfn.0 as usize) {
            // Wrong bytes are never delivered.
            Some(Frame::Full { bytes, sum: stored }) if sum(bytes) == *stored => {
                page.copy_from_slice(bytes);
                Ok(())
            }
            Some(Frame::Full { .. }) => Err(DeviceError::Corrupt),
            Some(Frame::Free | Frame::Empty) | None => Err(DeviceError::Unsupported),
        }
    }
}

fn sum(page: &[u8]) -> u64 {
    page.iter()
        .fold(0xCBF2_9CE4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3))
}

/// Does page after page, as far as it goes.
fn each(pages: impl Iterator<Item = Result<(), DeviceError>>, nr_pages: usize) -> Transfer {
    match pages.enumerate().find_map(|(done, page)| page.err().map(|why| (done, why))) {
        None => Transfer::complete(nr_pages),
        Some((done, why)) => Transfer::stopped(done, why),
    }
}

impl Device for Shelf {
    fn caps(&self) -> Caps {
        Caps {
            kind: MemKind::Private,
            capacity_pages: self.lock().len() as u64,
            preferred_run_pages: 1,
            store_page_ns: 5_000,
            fetch_page_ns: 5_000,
            keeps_copies: false,
        }
    }

    fn usage(&self) -> Usage {
        let frames = self.lock();
        let used = frames.iter().filter(|frame| !matches!(frame, Frame::Free)).count() as u64;
        let page = PAGE_SIZE as u64;
        Usage { frames: used, used_bytes: used * page, capacity_bytes: frames.len() as u64 * page }
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        let mut all = self.lock();
        let free = all.iter_mut().zip(0u32..).filter(|(frame, _)| matches!(frame, Frame::Free));
        let mut granted = 0;
        for (to, (frame, number)) in frames.iter_mut().zip(free) {
            *frame = Frame::Empty;
            *to = DevicePfn(number);
            granted += 1;
        }
        granted
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        let pages = run.frames.iter().zip(run.bytes.chunks_exact(PAGE_SIZE));
        each(pages.map(|(pfn, page)| self.store_page(*pfn, page)), run.frames.len())
    }

    fn fetch(&self, run: Fetch<'_>) -> Transfer {
        let pages = run.frames.iter().zip(run.bytes.chunks_exact_mut(PAGE_SIZE));
        each(pages.map(|(pfn, page)| self.fetch_page(*pfn, page)), run.frames.len())
    }

    fn free(&self, frames: &[DevicePfn]) {
        let mut all = self.lock();
        for pfn in frames {
            if let Some(frame) = all.get_mut(pfn.0 as usize) {
                *frame = Frame::Free;
            }
        }
    }
}

#[cfg_attr(test, expect(dead_code, reason = "the suite is run instead"))]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Where pages go that do not fit in 16 MiB.
    let shelf = Arc::new(Shelf::new(16 * 1024));
    let space = hmm::AddressSpace::builder().ram(16 << 20).device(shelf).build()?;
    let mut memory = space.alloc(32 << 20)?;
    memory.as_mut_slice::<u64>().fill(42);
    let is_right = memory.as_slice::<u64>().iter().all(|word| *word == 42);
    let stats = space.stats();
    if !is_right || stats.stored == 0 {
        return Err(format!("the device does not work: {stats:?}").into());
    }
    Ok(())
}
