//! A complete coherent device: a bank of memory that its device shares with the CPU. What is in one of its frames the program
//! has mapped, and accesses without a fault. It passes the suite; see "Writing a device" in `CONTRIBUTING.md`.
//!
//! Here it is memory of this process and no more. Bound to the node of an accelerator's memory or of a CXL card (`mbind(2)`
//! on [`Device::memory`]'s range) it is that.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hmm::core::driver::Select;
use hmm::core::notifier::Owner;
use hmm::device::{Caps, Device, DeviceError, DevicePfn, Fetch, MemKind, PAGE_SIZE, Store, Transfer, Usage};
use hmm::uapi::Mapping;

/// The device.
#[derive(Debug)]
pub(crate) struct Bank {
    memory: Mapping,
    free: Mutex<Vec<DevicePfn>>,
    nr_frames: usize,
}

impl Bank {
    /// A device of so many frames.
    pub(crate) fn new(nr_frames: u32) -> Self {
        let memory = Mapping::anonymous(nr_frames as usize * PAGE_SIZE).expect("the system has memory");
        let free = (0..nr_frames).rev().map(DevicePfn).collect();
        Self { memory, free: Mutex::new(free), nr_frames: nr_frames as usize }
    }

    fn free(&self) -> MutexGuard<'_, Vec<DevicePfn>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a frame is, while it is not mapped by the program.
    fn frame(&self, pfn: DevicePfn) -> Result<*mut u8, DeviceError> {
        let index = pfn.0 as usize;
        let is_there = index < self.nr_frames;
        is_there.then(|| self.memory.as_ptr().wrapping_add(index * PAGE_SIZE)).ok_or(DeviceError::Unsupported)
    }
}

/// Does page after page, as far as it goes.
fn each<P>(
    pages: impl Iterator<Item = (Result<*mut u8, DeviceError>, P)>,
    copy: impl Fn(*mut u8, P),
) -> Transfer {
    let mut done = 0;
    for (frame, page) in pages {
        match frame {
            Ok(frame) => copy(frame, page),
            Err(why) => return Transfer::stopped(done, why),
        }
        done += 1;
    }
    Transfer::complete(done)
}

impl Device for Bank {
    fn caps(&self) -> Caps {
        Caps {
            kind: MemKind::Coherent,
            capacity_pages: self.nr_frames as u64,
            preferred_run_pages: 16,
            store_page_ns: 500,
            fetch_page_ns: 500,
            keeps_copies: false,
        }
    }

    fn usage(&self) -> Usage {
        let used = (self.nr_frames - self.free().len()) as u64;
        let page = PAGE_SIZE as u64;
        Usage { frames: used, used_bytes: used * page, capacity_bytes: self.nr_frames as u64 * page }
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        let mut free = self.free();
        let granted = frames.len().min(free.len());
        frames[..granted].fill_with(|| free.pop().unwrap_or_default());
        granted
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        let frames = run.frames.iter().map(|pfn| self.frame(*pfn));
        each(frames.zip(run.bytes.as_chunks::<PAGE_SIZE>().0), |frame, page| {
            // SAFETY: the frame is inside of our mapping, and its one user's; nobody has a reference into it.
            unsafe { std::ptr::copy_nonoverlapping(page.as_ptr(), frame, PAGE_SIZE) };
        })
    }

    fn fetch(&self, run: Fetch<'_>) -> Transfer {
        let frames = run.frames.iter().map(|pfn| self.frame(*pfn));
        each(frames.zip(run.bytes.as_chunks_mut::<PAGE_SIZE>().0), |frame, page| {
            // SAFETY: as in `store`.
            unsafe { std::ptr::copy_nonoverlapping(frame, page.as_mut_ptr(), PAGE_SIZE) };
        })
    }

    fn free(&self, frames: &[DevicePfn]) {
        self.free().extend_from_slice(frames);
    }

    fn memory(&self) -> Option<Range<u64>> {
        let range = self.memory.range();
        Some(range.start..range.end)
    }
}

#[cfg_attr(test, expect(dead_code, reason = "the suite is run instead"))]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (space, owner) = (hmm::AddressSpace::builder().build()?, Owner(1));
    let bank = Arc::new(Bank::new(1024));
    let id = space.add_device(Arc::clone(&bank) as _, owner)?;
    let mut memory = space.alloc(1 << 20)?;
    memory.as_mut_slice::<u64>().fill(42);
    let start = memory.as_slice::<u64>().as_ptr().expose_provenance() as u64;
    let range = hmm::core::addr::PageRange::of_bytes(start, start + (1 << 20));
    let mut migration = space.migrate_setup(range, Select::SYSTEM, owner)?;
    migration.store(id)?;
    let went = migration.pages().finalize();
    // Read and written where they are.
    let is_right = memory.as_slice::<u64>().iter().all(|word| *word == 42);
    memory.as_mut_slice::<u64>().fill(43);
    if went != 256 || !is_right || bank.usage().frames != 256 {
        return Err(format!("the device does not work: {went} pages went, {:?}", bank.usage()).into());
    }
    space.remove_device(id)?;
    let is_right = memory.as_slice::<u64>().iter().all(|word| *word == 43);
    if is_right { Ok(()) } else { Err("a page was lost when the device was removed".into()) }
}
