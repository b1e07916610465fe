//! What hmm asks of a device: anything that owns frames and can hold the bytes of a page.
//!
//! A device sees frames and buffers, never addresses (I8). All calls are made in batches, from any thread, several at
//! a time; none of them may touch memory that hmm manages, because the caller may be the thread that has to serve the
//! resulting fault (I6).
//!
//! The protocol of a frame: [`Device::alloc`] hands out a descriptor, [`Device::store`] fills it (or says why not: the
//! bytes are still in the caller's buffer, nothing is lost), [`Device::fetch`] reads it any number of times,
//! [`Device::free`] ends it exactly once. A frame may be freed without ever having been stored.

#![forbid(unsafe_code)]

mod caps;
mod error;
mod forward;
mod null;
mod pfn;
mod ram;
mod rng;

use std::time::Duration;

pub mod conformance;
pub mod decorate;

pub use caps::{Caps, MemKind, Usage};
pub use error::DeviceError;
pub use null::Null;
pub use pfn::DevicePfn;
pub use ram::Ram;

/// Bytes in a page: the unit of state, and of every device transfer.
pub const PAGE_SIZE: usize = 4096;

/// Frames of a large run, which a huge page is moved to as one: 2 MiB.
pub const LARGE_PAGES: usize = 512;

/// How the pages of a batch are used, as far as the caller can tell. A device may choose its unit by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Access {
    /// Single pages, in no order.
    #[default]
    Random,
    /// Long runs, one after the other.
    Stream,
}

/// Pages to be written to frames of the device: `bytes` holds page `i` of the run for `frames[i]`.
#[derive(Debug)]
pub struct Store<'a> {
    /// Frames from [`Device::alloc`], not yet stored to.
    pub frames: &'a [DevicePfn],
    /// The pages' bytes, [`PAGE_SIZE`] for each frame. Consecutive pages of the program, in order.
    pub bytes: &'a [u8],
    /// How the program uses these pages.
    pub access: Access,
}

/// Frames to be read into `bytes`: page `i` of the buffer receives `frames[i]`.
#[derive(Debug)]
pub struct Fetch<'a> {
    /// Frames that were stored to.
    pub frames: &'a [DevicePfn],
    /// Where the bytes go, [`PAGE_SIZE`] for each frame.
    pub bytes: &'a mut [u8],
}

/// Outcome of a transfer: the first `done` pages of the run are transferred; `stop` says why the next one was not.
/// The caller decides whether to go on behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "pages behind `done` were not transferred"]
pub struct Transfer {
    /// How many pages, from the start of the run, were transferred.
    pub done: usize,
    /// Why page number `done` was not, `None` when the whole run was.
    pub stop: Option<DeviceError>,
}

impl Transfer {
    /// The whole run of `nr_pages` was transferred.
    pub const fn complete(nr_pages: usize) -> Self {
        Self { done: nr_pages, stop: None }
    }

    /// The run stopped in front of page `done`.
    pub const fn stopped(done: usize, why: DeviceError) -> Self {
        Self { done, stop: Some(why) }
    }
}

/// A memory that can be the home of pages.
pub trait Device: Send + Sync + std::fmt::Debug {
    /// What the device is and what it costs. Constant over its life.
    fn caps(&self) -> Caps;

    /// How full it is now.
    fn usage(&self) -> Usage;

    /// Hands out up to `frames.len()` descriptors, from the front, and returns how many. Fewer means: full.
    /// A device whose frames differ in size may still refuse the [`store`](Device::store) for lack of room.
    fn alloc(&self, frames: &mut [DevicePfn]) -> usize;

    /// Hands out a *large run*: [`LARGE_PAGES`] frames side by side, the first's number a multiple of that. `None`: there is
    /// none, or the device knows of no such thing. A large run is stored to and fetched from in transfers of any size, and
    /// its frames are [freed](Device::free) one by one or together, like any others.
    fn alloc_large(&self) -> Option<DevicePfn> {
        None
    }

    /// Copies pages into frames.
    fn store(&self, run: Store<'_>) -> Transfer;

    /// Copies frames into a buffer. On an error the buffer of that page holds nothing of meaning.
    fn fetch(&self, run: Fetch<'_>) -> Transfer;

    /// Ends frames, stored to or not. Never fails: a lost device has nothing left to free.
    fn free(&self, frames: &[DevicePfn]);

    /// Whether the stored frame certainly holds exactly these bytes, decided faster than a store would take.
    /// A page that came home keeps its frame; when it leaves again unchanged, this saves the store.
    /// `false` is always a correct answer.
    fn holds(&self, _frame: DevicePfn, _bytes: &[u8]) -> bool {
        false
    }

    /// Whether a frame is worth keeping when its page has come home, in case that leaves again [unchanged](Device::holds). Not
    /// where it takes as much RAM as the page, which is there twice then. `true` if nothing is said.
    fn is_worth_keeping(&self, _frame: DevicePfn) -> bool {
        true
    }

    /// Where a coherent device's frames are: addresses in this process, frame 0 first, one frame behind the other, as many as
    /// [`Caps::capacity_pages`]. Private anonymous memory that is the device's alone; a frame may lie in a part that cannot
    /// be accessed while it is not handed out.
    ///
    /// Of a page that is in a frame and mapped by the program, the memory is at the program's address meanwhile, and there is
    /// nothing at the frame's own: the engine never has such a frame stored to or fetched, and the device must not touch it.
    /// `None`, as it is for private devices: the CPU cannot map a frame.
    fn memory(&self) -> Option<std::ops::Range<u64>> {
        None
    }

    /// How long a transfer may take before it is given up, where the device waits for something that may never answer: a disk, a
    /// network. `None`: its calls return by themselves.
    ///
    /// When a [`fetch`](Device::fetch) has not returned in that time, the page that was asked for is poison, and its frame is
    /// freed; the frames of the others may be, too, and stored to anew, before the call returns. What it brings is dropped.
    /// The buffer stays the call's until then. Frames of a [`store`](Device::store) stay with it. Constant over its life.
    fn patience(&self) -> Option<Duration> {
        None
    }

    /// Returns when everything stored before is as durable as the device makes it.
    ///
    /// # Errors
    /// [`DeviceError::Lost`] or [`DeviceError::Io`]: what was stored before may be gone.
    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}
