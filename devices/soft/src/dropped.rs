//! Frames of copies whose entries are gone, and that units may still be reading.
//!
//! Copies are the device's own: the engine knows nothing of their frames. Their entries are taken away like others, by
//! whoever changes the page, under the table's lock. The frame is free when no unit is in an access window for the page
//! any more ([`tlb::wait`]).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hmm_core::addr::{PageRange, Vpn};
use hmm_device::{Device as _, DevicePfn};
use rustix::io::Errno;

use crate::memory::Memory;
use crate::own::OwnSlice;
use crate::tlb::{self, Core};

/// Frames that are freed at a time.
const NR_AT_ONCE: usize = 64;

#[derive(Debug)]
struct List {
    /// Page and frame.
    frames: OwnSlice<[u64; 2]>,
    nr: usize,
}

/// See the module. Its lock is taken under the table's, and only memory of the device's own is touched in it.
#[derive(Debug)]
pub(crate) struct Dropped {
    list: Mutex<List>,
    memory: Arc<Memory>,
}

impl Dropped {
    pub(crate) fn new(memory: Arc<Memory>) -> Result<Self, Errno> {
        let frames = OwnSlice::new(memory.nr_frames())?;
        Ok(Self { list: Mutex::new(List { frames, nr: 0 }), memory })
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entry of a copy was taken away.
    pub(crate) fn push(&self, page: Vpn, frame: u32) {
        let mut list = self.lock();
        let nr = list.nr;
        // There are as many places as frames, and each is in the list once.
        list.frames[nr] = [page.0, u64::from(frame)];
        list.nr += 1;
    }

    /// Frees the frames of pages of the range, that nobody reads any more, and of which no entry is made meanwhile.
    pub(crate) fn free(&self, range: PageRange) {
        let mut list = self.lock();
        let mut index = 0;
        while index < list.nr {
            let [page, frame] = list.frames[index];
            if range.contains(Vpn(page)) {
                list.nr -= 1;
                list.frames[index] = list.frames[list.nr];
                self.memory.free(&[pfn(frame)]);
            } else {
                index += 1;
            }
        }
    }

    /// Waits for units, and frees what was in the list.
    pub(crate) fn reap(&self, cores: &[Core]) {
        loop {
            let mut frames = [DevicePfn(0); NR_AT_ONCE];
            let mut hull = PageRange { start: Vpn(u64::MAX), end: Vpn(0) };
            let mut nr = 0;
            {
                let mut list = self.lock();
                while nr < NR_AT_ONCE && list.nr > 0 {
                    list.nr -= 1;
                    let [page, frame] = list.frames[list.nr];
                    hull.start = hull.start.min(Vpn(page));
                    hull.end = hull.end.max(Vpn(page + 1));
                    frames[nr] = pfn(frame);
                    nr += 1;
                }
            }
            if nr == 0 {
                return;
            }
            tlb::wait(cores, hull);
            self.memory.free(&frames[..nr]);
        }
    }
}

fn pfn(frame: u64) -> DevicePfn {
    #[expect(clippy::cast_possible_truncation, reason = "a frame number")]
    let frame = frame as u32;
    DevicePfn(frame)
}
