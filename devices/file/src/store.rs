//! The way out: pages are made into units, units are given places, and what has a place is written.
//!
//! A batch is packed into a lane without a lock. Then the table says where the units go: side by side where there is room,
//! so that all are one request. Then they are written, and only then do frames hold them.
//!
//! A unit is as many consecutive pages as fit into one block when they are compressed together. So a page that is read by
//! itself takes one block, as if it were there alone, and no block holds less than without compression. Where not even two pages fit,
//! those of a stream are tried in [`WIDE_BLOCKS`] side by side, unless the file is nearly full or has no such room. What fits
//! into neither is stored as it is, a page in a block: a store is refused when no block is free, and not before.
//!
//! How many pages will fit is guessed by what fitted last, and how well; whether it is tried at all, by how that went.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use hmm_codec::content::same_filled;
use hmm_device::{Access, DeviceError, DevicePfn, PAGE_SIZE, Store, Transfer};
use rustix::fd::AsFd;

use crate::BLOCK_BYTES;
use crate::device::FileDevice;
use crate::entry::{MAX_UNIT_PAGES, Unit};
use crate::flight::fly;
use crate::lane::Lane;
use crate::table::Load;
use crate::transfer::{BATCH, Piece, Pieces, Requests, Side, Stretch};

/// Blocks of a unit of pages that do not shrink to a half.
const WIDE_BLOCKS: usize = 4;
/// Pages that a unit can have for each of its blocks.
const PAGES_PER_BLOCK: usize = 16;
const _: () = assert!(PAGES_PER_BLOCK <= MAX_UNIT_PAGES);
/// After so many failures in a row one in so many units is tried.
const RARELY: u32 = 8;
/// Pages that are stored as they are where it is not.
const SKIPPED_PAGES: usize = 16;
/// Units for which it is remembered that a page more did not fit.
const CONTENT_UNITS: u32 = 32;

/// Why a batch ends early.
enum Stop {
    /// There are no blocks side by side.
    Scattered,
    Because(DeviceError),
}

/// How well pages could be compressed of late into units of so many blocks.
#[derive(Debug, Default)]
struct Luck {
    nr_failures: AtomicU32,
    /// Pages that should fit.
    fitted: AtomicUsize,
    /// Units for which there is no use in trying more.
    content: AtomicU32,
}

impl Luck {
    /// Whether it should be tried: always, but rarely where it has not been of use for long.
    fn tries(&self) -> bool {
        let nr_failures = self.nr_failures.load(Ordering::Relaxed);
        if nr_failures < RARELY || nr_failures.is_multiple_of(RARELY) {
            return true;
        }
        self.nr_failures.fetch_add(1, Ordering::Relaxed);
        false
    }

    fn failed(&self) {
        self.nr_failures.fetch_add(1, Ordering::Relaxed);
        self.fitted.store(0, Ordering::Relaxed);
        self.content.store(0, Ordering::Relaxed);
    }

    /// Pages became so many of `room` bytes, after `more` of them had not fitted. As many more will fit next time as there
    /// is room for; when that is nearly one, it is tried now and then, because more pages compress better.
    fn succeeded(&self, nr_pages: usize, (len, room): (usize, usize), more: bool) {
        let content = self.content.load(Ordering::Relaxed);
        let (optimism, next) = match (more, content) {
            (true, _) => (0, CONTENT_UNITS),
            (false, 0) => (room / 8, 0),
            (false, _) => (0, content - 1),
        };
        let fit = (room + optimism) * nr_pages / len.max(1);
        let most = room / BLOCK_BYTES * PAGES_PER_BLOCK;
        self.fitted.store(if more { nr_pages } else { fit.min(most) }, Ordering::Relaxed);
        self.content.store(next, Ordering::Relaxed);
        self.nr_failures.store(0, Ordering::Relaxed);
    }
}

/// The luck with units of one block, and with wide ones.
#[derive(Debug, Default)]
pub(crate) struct Lucks {
    single: Luck,
    wide: Luck,
}

/// Pages as loads.
struct Batch {
    loads: [Load; BATCH],
    len: usize,
    /// For each page.
    tags: [u64; BATCH],
    nr_pages: usize,
    /// Where the next load's bytes are in the lane.
    at: usize,
    /// Whether nothing was compressed.
    is_raw: bool,
}

impl Batch {
    const fn new() -> Self {
        let load = Load { unit: None, first: 0, at: 0 };
        Self { loads: [load; BATCH], len: 0, tags: [0; BATCH], nr_pages: 0, at: 0, is_raw: true }
    }

    fn push(&mut self, unit: Option<Unit>) {
        let load = Load { unit, first: self.nr_pages, at: self.at };
        self.loads[self.len] = load;
        self.len += 1;
        self.nr_pages += load.nr_pages();
        self.at += load.nr_blocks() * BLOCK_BYTES;
        self.is_raw &= unit.is_none_or(Unit::is_raw);
    }

    /// Pages as they are, and those of one word.
    fn push_raw(&mut self, bytes: &[u8]) {
        for page in bytes.chunks_exact(PAGE_SIZE) {
            match same_filled(page) {
                Some(word) => {
                    self.tags[self.nr_pages] = word;
                    self.push(None);
                }
                None => self.push(Some(Unit { nr_pages: 1, ..Unit::default() })),
            }
        }
    }
}

impl FileDevice {
    pub(crate) fn store_run(&self, run: &Store<'_>) -> Transfer {
        self.take_back(false);
        let room = self.table().room(run.frames);
        let mut may_be_wide = run.access == Access::Stream && !room.is_scarce;
        let mut lane = self.lanes.enter();
        let mut done = 0;
        while done < room.nr_empty {
            let end = room.nr_empty.min(done + BATCH);
            let bytes = &run.bytes[done * PAGE_SIZE..end * PAGE_SIZE];
            let (moved, stop) = self.store_batch(&mut lane, &run.frames[done..end], bytes, may_be_wide);
            done += moved;
            match stop {
                None => {}
                Some(Stop::Scattered) => may_be_wide = false,
                Some(Stop::Because(why)) => return Transfer::stopped(done, why),
            }
        }
        if done < run.frames.len() {
            // The next must not be stored to.
            return Transfer::stopped(done, DeviceError::Unsupported);
        }
        Transfer::complete(done)
    }

    /// Stores pages from the front of a batch; says how many, and why not more. All, some, or it is said why none.
    fn store_batch(
        &self,
        lane: &mut Lane,
        frames: &[DevicePfn],
        bytes: &[u8],
        may_be_wide: bool,
    ) -> (usize, Option<Stop>) {
        let mut batch = self.pack(lane, bytes, may_be_wide);
        let mut placed = self.table().place(&mut batch.loads[..batch.len]);
        if placed == 0 && self.take_back(true) > 0 {
            placed = self.table().place(&mut batch.loads[..batch.len]);
        }
        if placed == 0 {
            let is_single = batch.loads[0].nr_blocks() == 1;
            let full = Stop::Because(DeviceError::OutOfMemory);
            return (0, Some(if is_single { full } else { Stop::Scattered }));
        }
        let loads = &batch.loads[..placed];
        let failed = self.write(lane, &batch, loads, bytes);
        let nr_written = failed.map_or(placed, |(load, _)| load);
        let mut table = self.table();
        for load in &loads[..nr_written] {
            table.publish(load, &frames[load.pages()], &batch.tags[load.pages()]);
        }
        loads[nr_written..].iter().for_each(|load| table.give_up(load));
        let nr_pages = loads[..nr_written].iter().map(Load::nr_pages).sum();
        (nr_pages, failed.map(|(_, why)| Stop::Because(why)))
    }

    /// Makes units of pages, in the lane.
    fn pack(&self, lane: &mut Lane, bytes: &[u8], may_be_wide: bool) -> Batch {
        let mut batch = Batch::new();
        for (tag, page) in batch.tags.iter_mut().zip(bytes.chunks_exact(PAGE_SIZE)) {
            *tag = self.fingerprint.of(page);
        }
        while batch.nr_pages * PAGE_SIZE < bytes.len() {
            let rest = &bytes[batch.nr_pages * PAGE_SIZE..];
            let (page, behind) = rest.split_at(PAGE_SIZE);
            if behind.is_empty() || same_filled(page).is_some() {
                batch.push_raw(page);
                continue;
            }
            match self.pack_unit(lane, batch.at, rest, may_be_wide) {
                Ok(unit) => batch.push(Some(unit)),
                Err(nr_pages) => batch.push_raw(&rest[..rest.len().min(nr_pages * PAGE_SIZE)]),
            }
        }
        batch
    }

    /// Compresses some pages, from the front.
    ///
    /// # Errors
    /// It is of no use; for so many pages it need not be tried once more.
    fn pack_unit(&self, lane: &mut Lane, at: usize, bytes: &[u8], may_be_wide: bool) -> Result<Unit, usize> {
        let mut in_vain = SKIPPED_PAGES;
        let wide = may_be_wide.then_some((&self.lucks.wide, WIDE_BLOCKS));
        for (luck, nr_blocks) in [(&self.lucks.single, 1)].into_iter().chain(wide) {
            // At the end there are fewer pages, which need fewer blocks.
            let nr_blocks = nr_blocks.min(bytes.len() / PAGE_SIZE - 1);
            if self.config.compresses() && luck.tries() {
                if let Some(unit) = pack_into(lane, at, bytes, (nr_blocks, luck)) {
                    return Ok(unit);
                }
                in_vain = nr_blocks + 1;
            }
        }
        Err(in_vain)
    }

    /// Writes loads that have a place. Returns the first that could not be written, and why.
    fn write(
        &self,
        lane: &mut Lane,
        batch: &Batch,
        loads: &[Load],
        bytes: &[u8],
    ) -> Option<(usize, DeviceError)> {
        // Where nothing was compressed, what the caller has is written as it is.
        let side = if batch.is_raw && self.is_usable(bytes) { Side::Caller } else { Side::Lane };
        let mut pieces = Pieces::of_at_most(usize::MAX);
        let mut stretches = [Stretch::default(); BATCH];
        for (stretch, load) in stretches.iter_mut().zip(loads) {
            let Some(unit) = load.unit else { continue };
            let page = load.first * PAGE_SIZE;
            if side == Side::Lane && unit.is_raw() {
                lane.blocks[load.at..load.at + PAGE_SIZE].copy_from_slice(&bytes[page..page + PAGE_SIZE]);
            }
            let at = if side == Side::Lane { load.at } else { page };
            let len = unit.nr_blocks() * BLOCK_BYTES;
            *stretch = pieces
                .push(Piece { file: unit.file, offset: unit.offset(), side, at, len })
                .unwrap_or(Stretch::NONE);
        }
        let requests = Requests::write(self.as_fd(), &pieces, bytes, &lane.blocks);
        fly(&mut lane.queue, requests, |flight| {
            let mut written =
                stretches[..loads.len()].iter().map(|stretch| flight.wait(*stretch)).enumerate();
            written.find_map(|(load, outcome)| Some((load, outcome.err()?)))
        })
    }
}

/// Compresses as many pages, from the front, as fit into so many blocks. `None`: not even one more than there are blocks.
fn pack_into(lane: &mut Lane, at: usize, bytes: &[u8], (nr_blocks, luck): (usize, &Luck)) -> Option<Unit> {
    let least = nr_blocks + 1;
    let most = (bytes.len() / PAGE_SIZE).min(MAX_UNIT_PAGES);
    let first = luck.fitted.load(Ordering::Relaxed).clamp(least, most);
    let room = nr_blocks * BLOCK_BYTES;
    for nr_pages in (least..=first).rev() {
        let blocks = &mut lane.blocks[at..at + room];
        if let Some(len) = lane.encoder.compress(&bytes[..nr_pages * PAGE_SIZE], blocks) {
            luck.succeeded(nr_pages, (len, room), nr_pages < first);
            let (len, nr_pages) = (u32::try_from(len).ok()?, u8::try_from(nr_pages).ok()?);
            return Some(Unit { len, nr_pages, ..Unit::default() });
        }
    }
    luck.failed();
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_no_use_is_tried_rarely() {
        let luck = Luck::default();
        let mut tried = 0;
        for _ in 0..80 {
            if luck.tries() {
                tried += 1;
                luck.failed();
            }
        }
        assert_eq!(tried, 8 + 9);
        luck.succeeded(2, (4000, 4096), false);
        assert!((0..4).all(|_| luck.tries()), "as at the start");
    }

    #[test]
    fn the_next_guess_is_what_would_have_fitted() {
        let luck = Luck::default();
        let guess = |nr_pages, len, more| {
            luck.succeeded(nr_pages, (len, 4096), more);
            luck.fitted.load(Ordering::Relaxed)
        };
        assert_eq!(guess(2, 1000, false), 9);
        assert_eq!((guess(2, 2800, false), guess(3, 4000, false)), (3, 3));
        assert_eq!(guess(3, 3500, false), 3, "nearly four");
        assert_eq!(guess(3, 3450, false), 4);
        // Four did not fit: that is not tried again for a while.
        assert_eq!(guess(3, 3450, true), 3);
        assert!((0..CONTENT_UNITS).all(|_| guess(3, 3450, false) == 3));
        assert_eq!(guess(3, 3450, false), 4);
        assert_eq!(guess(16, 10, false), 16);
        luck.failed();
        assert_eq!(luck.fitted.load(Ordering::Relaxed), 0);
    }
}
