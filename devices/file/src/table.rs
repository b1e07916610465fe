//! Which frames are handed out and what each holds, and which blocks of the file are whose.
//!
//! Frames are descriptors, with no place in the file of their own: the lowest free numbers are handed out, so that the part
//! of the table that is in use stays small. A frame gets a place when it is stored to.
//!
//! [Blocks](crate::blocks) are taken for all units of a batch side by side, where there is room: they are one request then.
//! Frames that a process has from those that it was forked from are in files of theirs, of which no block is ever taken here, nor
//! given back.

use hmm_device::{DevicePfn, Usage};
use hmm_uapi::{AddrRange, Errno};

use crate::BLOCK_BYTES;
use crate::bits::Bits;
use crate::blocks::Blocks;
use crate::entry::{Content, NR_FILES, Unit};
use crate::share::Shared;
use crate::zeroed::Zeroed;

/// Words of the table for each frame.
const WORDS: usize = 2;
/// Frames for each block of the file. A unit has no more pages for a block, and pages of one word have none.
pub(crate) const FRAMES_PER_BLOCK: u64 = 16;
/// Frame numbers have 32 bits.
const MAX_FRAMES: u64 = 1 << 32;
/// With less than one in so many blocks free the file is nearly full.
const NEARLY_FULL: usize = 8;

/// What is to be stored in frames that follow each other in a batch.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// `None`: one page that is one word over and over.
    pub(crate) unit: Option<Unit>,
    /// The first page, in the batch.
    pub(crate) first: usize,
    /// Where its bytes are in the lane.
    pub(crate) at: usize,
}

impl Load {
    pub(crate) fn nr_blocks(&self) -> usize {
        self.unit.map_or(0, Unit::nr_blocks)
    }

    pub(crate) fn nr_pages(&self) -> usize {
        self.unit.map_or(1, |unit| unit.nr_pages.into())
    }

    /// Its pages, in the batch.
    pub(crate) fn pages(&self) -> std::ops::Range<usize> {
        self.first..self.first + self.nr_pages()
    }
}

/// How many frames of a run may be stored to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// From the front.
    pub(crate) nr_empty: usize,
    /// Whether there are few free blocks.
    pub(crate) is_scarce: bool,
}

/// See the module. All of it is made at the start; zeroed memory that is not used is not resident.
#[derive(Debug)]
pub(crate) struct Table {
    frames: Bits,
    /// In front of it no frame is free.
    lowest: usize,
    entries: Zeroed<u64>,
    /// Of the device's own file.
    blocks: Blocks,
    /// The number of that file.
    own: u8,
    /// For each file, the frames that hold something in it.
    nr_holding: [usize; NR_FILES as usize],
    /// With the parent, and with a child.
    pub(crate) shared: Shared,
}

impl Table {
    /// # Errors
    /// There are no addresses left.
    pub(crate) fn new(nr_blocks: u64) -> Result<Self, Errno> {
        let len = |number: u64| usize::try_from(number).map_err(|_| Errno::NOMEM);
        let nr_frames = len((nr_blocks * FRAMES_PER_BLOCK).min(MAX_FRAMES))?;
        Ok(Self {
            frames: Bits::new(nr_frames)?,
            lowest: 0,
            entries: Zeroed::new(nr_frames * WORDS)?,
            blocks: Blocks::new(len(nr_blocks)?)?,
            own: 0,
            nr_holding: [0; NR_FILES as usize],
            shared: Shared::default(),
        })
    }

    /// Where it is.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = AddrRange> {
        self.frames.ranges().into_iter().chain([self.entries.range()]).chain(self.blocks.ranges())
    }

    pub(crate) fn usage(&self) -> Usage {
        let bytes = |nr_blocks: usize| (nr_blocks * BLOCK_BYTES) as u64;
        Usage {
            frames: self.frames.nr_taken() as u64,
            used_bytes: bytes(self.blocks.nr_taken()),
            capacity_bytes: bytes(self.blocks.len()),
        }
    }

    /// Frames that there can be.
    pub(crate) const fn nr_frames(&self) -> usize {
        self.frames.len()
    }

    /// Hands out frames, from the front of `to`, and returns how many.
    pub(crate) fn alloc(&mut self, to: &mut [DevicePfn]) -> usize {
        for (granted, place) in to.iter_mut().enumerate() {
            let Some(frame) = self.frames.free_from(self.lowest) else { return granted };
            self.frames.take(frame);
            self.lowest = frame + 1;
            *place = pfn(frame);
        }
        to.len()
    }

    pub(crate) fn room(&self, frames: &[DevicePfn]) -> Room {
        let nr_free = self.blocks.len() - self.blocks.nr_taken();
        Room {
            nr_empty: frames.iter().position(|pfn| !self.is_empty(*pfn)).unwrap_or(frames.len()),
            is_scarce: nr_free < self.blocks.len() / NEARLY_FULL,
        }
    }

    /// Whether the frame is handed out and nothing was stored to it.
    fn is_empty(&self, pfn: DevicePfn) -> bool {
        self.frames.is_taken(pfn.0 as usize) && self.get(pfn).0 == Content::Empty
    }

    /// What the frame holds, and its tag.
    pub(crate) fn get(&self, DevicePfn(frame): DevicePfn) -> (Content, u64) {
        match self.entries.get(frame as usize * WORDS..).and_then(|words| words.first_chunk()) {
            Some([word, tag]) => (Content::of_word(*word), *tag),
            None => (Content::Empty, 0),
        }
    }

    fn set(&mut self, DevicePfn(frame): DevicePfn, content: Content, tag: u64) {
        if let Some(words) =
            self.entries.get_mut(frame as usize * WORDS..).and_then(|it| it.first_chunk_mut())
        {
            *words = [content.word(), tag];
        }
    }

    /// Takes blocks for the loads, from the front, and returns for how many there was room.
    pub(crate) fn place(&mut self, loads: &mut [Load]) -> usize {
        let nr_blocks = loads.iter().map(Load::nr_blocks).sum();
        let mut together = self.blocks.take_run(nr_blocks);
        for (placed, load) in loads.iter_mut().enumerate() {
            let Some(unit) = &mut load.unit else { continue };
            let nr_blocks = unit.nr_blocks();
            let Some(block) = together.or_else(|| self.blocks.take_run(nr_blocks)) else { return placed };
            together = together.map(|block| block + nr_blocks);
            (unit.file, unit.block) = (self.own, number(block));
        }
        loads.len()
    }

    /// Takes the blocks back of a load that was not written.
    pub(crate) fn give_up(&mut self, load: &Load) {
        if let Some(unit) = load.unit {
            self.blocks.give_run(unit);
        }
    }

    /// Makes a load that was written what its frames hold: those of them that are empty.
    pub(crate) fn publish(&mut self, load: &Load, frames: &[DevicePfn], tags: &[u64]) {
        let mut living = 0;
        for (part, (pfn, tag)) in (0..).zip(frames.iter().zip(tags)) {
            if self.is_empty(*pfn) {
                self.set(*pfn, load.unit.map_or(Content::Same, |unit| Content::Part(unit, part)), *tag);
                living += 1;
            }
        }
        match load.unit {
            Some(unit) if living == 0 => self.blocks.give_run(unit),
            Some(unit) => {
                self.blocks.begin(unit, living);
                self.nr_holding[usize::from(unit.file)] += usize::from(living);
            }
            None => {}
        }
    }

    /// Ends a frame. One that is not handed out stays so. Returns the file, as a bit, if it was the last in one of another
    /// process.
    pub(crate) fn free(&mut self, pfn: DevicePfn) -> u8 {
        let frame = pfn.0 as usize;
        if !self.frames.is_taken(frame) {
            return 0;
        }
        let mut left = 0;
        if let (Content::Part(unit, _), _) = self.get(pfn) {
            self.nr_holding[usize::from(unit.file)] -= 1;
            if unit.file == self.own {
                self.blocks.end_one(unit);
            } else if !self.is_held(unit.file) {
                left = 1 << unit.file;
            }
        }
        self.set(pfn, Content::Empty, 0);
        self.frames.give(frame);
        self.lowest = self.lowest.min(frame);
        left
    }
}

impl Table {
    /// Of the device's own file.
    pub(crate) const fn blocks(&mut self) -> &mut Blocks {
        &mut self.blocks
    }

    /// The number of the device's own file.
    pub(crate) const fn own(&self) -> u8 {
        self.own
    }

    /// What is shared, and the number of the device's own file.
    pub(crate) const fn sharing(&self) -> (Shared, u8) {
        (self.shared, self.own)
    }

    /// Whether a frame holds something in that file.
    pub(crate) fn is_held(&self, file: u8) -> bool {
        self.nr_holding.get(usize::from(file)).is_some_and(|nr_frames| *nr_frames > 0)
    }

    /// In a child: its own file is empty, and has that number.
    pub(crate) fn begin_anew(&mut self, own: u8) {
        self.blocks.begin_anew();
        self.own = own;
    }

    #[cfg(test)]
    pub(crate) fn copy_to(&self, other: &mut Self) {
        self.frames.copy_to(&mut other.frames);
        self.entries.copy_to(&mut other.entries);
        self.blocks.copy_to(&mut other.blocks);
        (other.lowest, other.own, other.nr_holding) = (self.lowest, self.own, self.nr_holding);
        other.shared = self.shared;
    }
}

#[expect(clippy::cast_possible_truncation, reason = "there are at most 2^32 frames")]
const fn pfn(frame: usize) -> DevicePfn {
    DevicePfn(frame as u32)
}

#[expect(clippy::cast_possible_truncation, reason = "there are at most 2^32 blocks")]
const fn number(block: usize) -> u32 {
    block as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(nr_pages: u8, nr_blocks: usize) -> Load {
        let len = u32::try_from(nr_blocks * BLOCK_BYTES).expect("small");
        Load { unit: Some(Unit { len, nr_pages, ..Unit::default() }), ..Load::default() }
    }

    fn frames(table: &mut Table, nr_frames: usize) -> Vec<DevicePfn> {
        let mut frames = vec![DevicePfn(0); nr_frames];
        assert_eq!(table.alloc(&mut frames), nr_frames);
        frames
    }

    fn blocks(loads: &[Load]) -> Vec<u32> {
        loads.iter().filter_map(|load| load.unit).map(|unit| unit.block).collect()
    }

    #[test]
    fn what_leaves_together_lies_together() {
        let mut table = Table::new(20).expect("addresses");
        let mut loads = [unit(16, 5), Load::default(), unit(16, 6), unit(4, 3)];
        assert_eq!(table.place(&mut loads), 4);
        assert_eq!((blocks(&loads), table.usage().used_bytes), (vec![0, 5, 11], 14 * 4096));
        // Six are left behind the last, and five of the first when it ends.
        table.give_up(&loads[0]);
        assert_eq!(table.place(&mut loads), 2, "there are no six side by side then");
        assert_eq!(blocks(&loads[..2]), [14]);
        assert_eq!(table.usage().used_bytes, 14 * 4096);
    }

    #[test]
    fn a_unit_ends_with_the_last_of_its_frames() {
        let mut table = Table::new(16).expect("addresses");
        let frames = frames(&mut table, 4);
        let mut loads = [unit(3, 2)];
        assert_eq!(table.place(&mut loads), 1);
        table.publish(&loads[0], &frames[..3], &[7, 8, 9]);
        assert_eq!(table.get(frames[1]), (Content::Part(loads[0].unit.expect("it is one"), 1), 8));
        assert_eq!(table.room(&frames), Room { nr_empty: 0, is_scarce: false });
        assert_eq!(table.room(&frames[3..]).nr_empty, 1);
        for (frame, used) in [(1, 2), (0, 2), (0, 2), (2, 0), (2, 0)] {
            table.free(frames[frame]);
            assert_eq!(table.usage().used_bytes, used * 4096);
        }
        assert_eq!(table.usage().frames, 1);
    }

    #[test]
    fn what_is_not_empty_is_not_filled() {
        let mut table = Table::new(16).expect("addresses");
        let frames = frames(&mut table, 2);
        let mut loads = [unit(2, 1), unit(2, 1)];
        assert_eq!(table.place(&mut loads), 2);
        table.publish(&loads[0], &frames, &[1, 2]);
        table.publish(&loads[1], &frames, &[3, 4]);
        assert_eq!((table.get(frames[1]).1, table.usage().used_bytes), (2, 4096));
        // The same frame twice, and one that has ended.
        table.free(frames[0]);
        table.free(frames[1]);
        let mut loads = [unit(2, 1)];
        assert_eq!((table.place(&mut loads), table.alloc(&mut [DevicePfn(0)])), (1, 1));
        table.publish(&loads[0], &[frames[0], frames[0]], &[5, 6]);
        table.free(frames[0]);
        assert_eq!(table.usage(), Usage { frames: 0, used_bytes: 0, capacity_bytes: 16 * 4096 });
    }

    #[test]
    fn frames_that_are_none_harm_nobody() {
        let mut table = Table::new(5).expect("addresses");
        for number in [0, 5 * 16, 127, u32::MAX] {
            let pfn = DevicePfn(number);
            table.free(pfn);
            table.publish(&Load::default(), &[pfn], &[7]);
            assert_eq!(table.get(pfn), (Content::Empty, 0));
            assert_eq!(table.room(&[pfn]).nr_empty, 0);
        }
        assert_eq!(table.usage().frames, 0);
    }

    #[test]
    fn the_lowest_frames_are_handed_out_first() {
        let mut table = Table::new(4).expect("addresses");
        let all = frames(&mut table, 64);
        assert!(all.iter().enumerate().all(|(index, pfn)| pfn.0 as usize == index));
        assert_eq!(table.alloc(&mut [DevicePfn(0)]), 0);
        table.free(all[40]);
        table.free(all[3]);
        assert_eq!(frames(&mut table, 2), [all[3], all[40]]);
    }
}
