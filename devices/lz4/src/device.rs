//! The device: pages in, pages out.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use hmm_codec::content::{Fingerprint, fill_same, same_filled};
use hmm_codec::lanes::Lanes;
use hmm_codec::lz4::{Encoder, decompress, decompress_front};
use hmm_device::{
    Access, Caps, Device, DeviceError, DevicePfn, Fetch, MemKind, PAGE_SIZE, Store, Transfer, Usage,
};

use crate::budget::Budget;
use crate::classes::MAX_SLOT_BYTES;
use crate::config::{Lz4Config, Lz4Error};
use crate::pool::{Mapped, Pool, PoolMemory};
use crate::slabs::Slabs;
use crate::stats::Lz4Stats;
use crate::vault::{COUNTER_BYTES, Content, Pinned, Vault};
use crate::word::Unit;

/// Pages in a stream unit.
const STREAM_PAGES: usize = 4;
/// Bytes in a stream unit before compression.
const STREAM_BYTES: usize = STREAM_PAGES * PAGE_SIZE;
/// A compressed page that would save less than a 16th is stored as it is: it is fetched twice as fast.
const PAGE_LIMIT: usize = PAGE_SIZE / 16 * 15;
/// Likewise for stream units, which also have to fit into a slot: a fifth.
const STREAM_LIMIT: usize = MAX_SLOT_BYTES - COUNTER_BYTES;

/// Working memory of a store.
#[derive(Debug)]
struct Lane {
    encoder: Encoder,
    output: [u8; STREAM_LIMIT],
}

impl Lane {
    /// Compresses to at most `limit` bytes, if it can be done.
    fn compress(&mut self, bytes: &[u8], limit: usize) -> Option<&[u8]> {
        let len = self.encoder.compress(bytes, &mut self.output[..limit])?;
        Some(&self.output[..len])
    }
}

/// Compressed RAM.
#[derive(Debug)]
pub struct Lz4 {
    config: Lz4Config,
    vault: Vault,
    fingerprint: Fingerprint,
    lanes: Lanes<Lane>,
    /// For fetches of single pages of stream units.
    scratch: Lanes<[u8; STREAM_BYTES]>,
}

impl Lz4 {
    /// A device in memory of its own, which the system must not page out to a device of this process.
    ///
    /// # Errors
    /// See [`Lz4Error`].
    pub fn new(config: Lz4Config) -> Result<Self, Lz4Error> {
        config.check()?;
        let len_bytes = config.pool_bytes();
        let memory = Mapped::new(len_bytes).map_err(|_| Lz4Error::Map(len_bytes))?;
        Self::in_memory(memory, config)
    }

    /// A device in the memory given, of at least [`Lz4Config::pool_bytes`]. Apart from that it allocates working
    /// memory and a table of slabs, once, here: 400 KiB, and an eighth of a percent of the capacity of which only what
    /// is used is touched.
    ///
    /// # Errors
    /// See [`Lz4Error`].
    pub fn in_memory(memory: impl PoolMemory + 'static, config: Lz4Config) -> Result<Self, Lz4Error> {
        config.check()?;
        let (needed, given) = (config.pool_bytes(), memory.len_bytes());
        let seed = seed(&memory);
        let region_bytes = config.region_bytes();
        let pool = Pool::new(Box::new(memory), config.nr_frames(), region_bytes)
            .ok_or(Lz4Error::PoolTooSmall { needed, given })?;
        let fixed_bytes =
            Lanes::<Lane>::total_bytes() + Lanes::<[u8; STREAM_BYTES]>::total_bytes() + size_of::<Self>();
        let budget = Budget::new(config.capacity_bytes as u64, fixed_bytes as u64);
        Ok(Self {
            config,
            vault: Vault::new(pool, budget, Slabs::new(region_bytes)),
            fingerprint: Fingerprint::new(seed),
            lanes: Lanes::new(|| Lane { encoder: Encoder::new(), output: [0; STREAM_LIMIT] }),
            scratch: Lanes::new(|| [0; STREAM_BYTES]),
        })
    }

    /// What is in it, and what that takes.
    pub fn stats(&self) -> Lz4Stats {
        let (tally, slots) = (self.vault.tally(), self.vault.slot_usage());
        Lz4Stats {
            same_pages: tally.same_pages.load(Ordering::Relaxed),
            raw_pages: tally.raw_pages.load(Ordering::Relaxed),
            compressed_pages: tally.compressed_pages.load(Ordering::Relaxed),
            stored_bytes: tally.stored_bytes.load(Ordering::Relaxed).min(slots.slot_bytes),
            slot_bytes: slots.slot_bytes,
            slab_bytes: slots.touched_bytes,
            resident_bytes: self.vault.budget().charged(),
            capacity_bytes: self.vault.budget().capacity(),
        }
    }

    fn store_page(&self, lane: &mut Lane, frame: DevicePfn, page: &[u8]) -> Result<(), DeviceError> {
        if let Some(word) = same_filled(page) {
            return self.vault.put_same(frame, word);
        }
        let bytes = lane.compress(page, PAGE_LIMIT).unwrap_or(page);
        self.vault.put_page(frame, bytes, self.fingerprint.of(page))
    }

    /// Stores the pages of a stream unit, together if that pays, and returns how many, from the front.
    fn store_unit(&self, lane: &mut Lane, frames: &[DevicePfn], bytes: &[u8]) -> Result<usize, DeviceError> {
        let pages = || bytes.chunks_exact(PAGE_SIZE);
        if pages().all(|page| same_filled(page).is_none())
            && let Some(stored) = lane.compress(bytes, STREAM_LIMIT)
        {
            let mut tags = [0; STREAM_PAGES];
            tags.iter_mut().zip(pages()).for_each(|(tag, page)| *tag = self.fingerprint.of(page));
            // If there is no room for all of them together, there may be for some of them alone.
            if let Ok(filled) = self.vault.put_stream(frames, stored, &tags) {
                return Ok(filled);
            }
        }
        self.store_pages(lane, frames, bytes)
    }

    /// Stores pages one by one, and returns how many, if not none.
    fn store_pages(&self, lane: &mut Lane, frames: &[DevicePfn], bytes: &[u8]) -> Result<usize, DeviceError> {
        for (done, (frame, page)) in frames.iter().zip(bytes.chunks_exact(PAGE_SIZE)).enumerate() {
            match self.store_page(lane, *frame, page) {
                Ok(()) => {}
                Err(why) if done == 0 => return Err(why),
                Err(_) => return Ok(done),
            }
        }
        Ok(frames.len())
    }

    /// Fetches a frame, and those behind it if they are of the same unit; returns how many.
    fn fetch_unit(&self, frames: &[DevicePfn], bytes: &mut [u8]) -> Result<usize, DeviceError> {
        let page = &mut bytes[..PAGE_SIZE];
        let pinned = match self.vault.read(frames[0]).ok_or(DeviceError::Unsupported)? {
            Content::Same(word) => {
                fill_same(page, word);
                return Ok(1);
            }
            Content::Unit(pinned) => pinned,
        };
        match pinned.unit().part {
            Some(part) => self.fetch_parts(&pinned, part, frames, bytes),
            None => {
                match pinned.bytes() {
                    raw if raw.len() == PAGE_SIZE => page.copy_from_slice(raw),
                    stored => decompress(stored, page)?,
                }
                self.verify(pinned.tag, page).map(|()| 1)
            }
        }
    }

    /// Fetches as many pages of one stream unit as the run asks for next to each other.
    fn fetch_parts(
        &self,
        first: &Pinned<'_>,
        part: usize,
        frames: &[DevicePfn],
        bytes: &mut [u8],
    ) -> Result<usize, DeviceError> {
        let mut tags = [first.tag; STREAM_PAGES];
        let wanted = frames.iter().take(STREAM_PAGES - part).enumerate().take_while(|(step, frame)| {
            let Some(Content::Unit(next)) = self.vault.read(**frame) else { return false };
            tags[*step] = next.tag;
            next.unit().offset == first.unit().offset && next.unit().part == Some(part + step)
        });
        let nr_pages = wanted.count();
        let bytes = &mut bytes[..nr_pages * PAGE_SIZE];
        if nr_pages == STREAM_PAGES {
            // All of it takes less time than as large a front of something larger.
            decompress(first.bytes(), bytes)?;
        } else if part == 0 {
            decompress_front(first.bytes(), bytes)?;
        } else {
            let mut scratch = self.scratch.enter();
            let front = &mut scratch[..part * PAGE_SIZE + bytes.len()];
            decompress_front(first.bytes(), front)?;
            bytes.copy_from_slice(&front[part * PAGE_SIZE..]);
        }
        bytes.chunks_exact(PAGE_SIZE).zip(tags).try_for_each(|(page, tag)| self.verify(tag, page))?;
        Ok(nr_pages)
    }

    fn verify(&self, tag: u64, page: &[u8]) -> Result<(), DeviceError> {
        let good = !self.config.verify || self.fingerprint.of(page) == tag;
        good.then_some(()).ok_or(DeviceError::Corrupt)
    }
}

/// A number that differs from process to process, and from device to device.
fn seed(memory: &impl PoolMemory) -> u64 {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let place = memory.base().addr().get() as u64;
    place.rotate_left(32)
        ^ u64::from(now.subsec_nanos()).rotate_left(20)
        ^ now.as_secs()
        ^ u64::from(std::process::id())
}

impl Device for Lz4 {
    fn caps(&self) -> Caps {
        Caps {
            kind: MemKind::Private,
            capacity_pages: self.config.nr_frames() as u64,
            preferred_run_pages: 4,
            store_page_ns: 4600,
            fetch_page_ns: 1900,
            keeps_copies: true,
        }
    }

    fn usage(&self) -> Usage {
        let budget = self.vault.budget();
        Usage {
            frames: self.vault.live_frames(),
            used_bytes: budget.charged(),
            capacity_bytes: budget.capacity(),
        }
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        self.vault.alloc(frames)
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        let unit_pages = match run.access {
            Access::Random => 1,
            Access::Stream => STREAM_PAGES,
        };
        let mut lane = self.lanes.enter();
        let mut done = 0;
        while done < run.frames.len() {
            let frames = &run.frames[done..run.frames.len().min(done + unit_pages)];
            let bytes = &run.bytes[done * PAGE_SIZE..][..frames.len() * PAGE_SIZE];
            let outcome = if frames.len() == STREAM_PAGES {
                self.store_unit(&mut lane, frames, bytes)
            } else {
                self.store_pages(&mut lane, frames, bytes)
            };
            match outcome {
                Ok(0) => return Transfer::stopped(done, DeviceError::Unsupported),
                Ok(stored) => done += stored,
                Err(why) => return Transfer::stopped(done, why),
            }
        }
        Transfer::complete(run.frames.len())
    }

    fn fetch(&self, run: Fetch<'_>) -> Transfer {
        let mut done = 0;
        while done < run.frames.len() {
            match self.fetch_unit(&run.frames[done..], &mut run.bytes[done * PAGE_SIZE..]) {
                Ok(fetched) => done += fetched,
                Err(why) => return Transfer::stopped(done, why),
            }
        }
        Transfer::complete(run.frames.len())
    }

    fn free(&self, frames: &[DevicePfn]) {
        self.vault.free(frames);
    }

    fn is_worth_keeping(&self, frame: DevicePfn) -> bool {
        match self.vault.read(frame) {
            None => false,
            Some(Content::Same(_)) => true,
            // What could not be compressed would be in RAM twice.
            Some(Content::Unit(pinned)) => !matches!(pinned.unit(), Unit { len: PAGE_SIZE, part: None, .. }),
        }
    }

    fn holds(&self, frame: DevicePfn, bytes: &[u8]) -> bool {
        match self.vault.read(frame) {
            None => false,
            Some(Content::Same(word)) => same_filled(bytes) == Some(word),
            Some(Content::Unit(pinned)) => pinned.tag == self.fingerprint.of(bytes),
        }
    }
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
