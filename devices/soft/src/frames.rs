//! Frames that can be handed out, in chunks of 512, so that a huge page finds a large run.
//!
//! Single frames come from chunks of which others are in use already, as long as there are any. They never make a large run
//! by chance: of a chunk the first frame is handed out last. So a block of small pages does not look like a huge page, and
//! comes home as small ones (`hmm_core::driver`: what a huge page is on a device is told by its frames alone).

use hmm_device::{DevicePfn, LARGE_PAGES};
use rustix::io::Errno;

use crate::own::OwnSlice;

/// Words of bits for a chunk's frames.
const WORDS: usize = LARGE_PAGES / 64;

/// See the module. All of it lies in memory of the device's own.
#[derive(Debug)]
pub(crate) struct Frames {
    /// A bit for each frame that is free.
    free: OwnSlice<[u64; WORDS]>,
    /// A bit for each chunk of which all frames are free.
    whole: OwnSlice<u64>,
    /// A bit for each chunk of which some are.
    part: OwnSlice<u64>,
    nr_free: usize,
}

impl Frames {
    /// So many frames, all free.
    pub(crate) fn new(nr_frames: usize) -> Result<Self, Errno> {
        let nr_chunks = nr_frames.div_ceil(LARGE_PAGES);
        let bits = || OwnSlice::new(nr_chunks.div_ceil(64));
        let mut frames = Self { free: OwnSlice::new(nr_chunks)?, whole: bits()?, part: bits()?, nr_free: 0 };
        #[expect(clippy::cast_possible_truncation, reason = "frame numbers have 32 bits")]
        (0..nr_frames).for_each(|frame| frames.give(DevicePfn(frame as u32)));
        Ok(frames)
    }

    pub(crate) const fn nr_free(&self) -> usize {
        self.nr_free
    }

    /// Hands out single frames, as many as there are; how many.
    pub(crate) fn take(&mut self, frames: &mut [DevicePfn]) -> usize {
        let mut granted = 0;
        while granted < frames.len() {
            let Some(chunk) = first_of(&self.part).or_else(|| first_of(&self.whole)) else { break };
            granted += self.take_of(chunk, &mut frames[granted..]);
        }
        granted
    }

    fn take_of(&mut self, chunk: usize, frames: &mut [DevicePfn]) -> usize {
        let bits = &mut self.free[chunk];
        let mut nr = 0;
        // The first one last.
        let first = bits[0] & 1;
        bits[0] &= !1;
        for (number, word) in bits.iter_mut().enumerate() {
            while *word != 0 && nr < frames.len() {
                frames[nr] = pfn(chunk, number * 64 + word.trailing_zeros() as usize);
                *word &= *word - 1;
                nr += 1;
            }
        }
        if first == 1 && nr < frames.len() {
            frames[nr] = pfn(chunk, 0);
            nr += 1;
        } else {
            bits[0] |= first;
        }
        self.nr_free -= nr;
        self.note(chunk);
        nr
    }

    /// Hands out a large run.
    pub(crate) fn take_large(&mut self) -> Option<DevicePfn> {
        let chunk = first_of(&self.whole)?;
        self.free[chunk] = [0; WORDS];
        self.nr_free -= LARGE_PAGES;
        self.note(chunk);
        Some(pfn(chunk, 0))
    }

    /// Takes a frame back, which is not free.
    pub(crate) fn give(&mut self, frame: DevicePfn) {
        let (chunk, index) = (frame.0 as usize / LARGE_PAGES, frame.0 as usize % LARGE_PAGES);
        self.free[chunk][index / 64] |= 1 << (index % 64);
        self.nr_free += 1;
        self.note(chunk);
    }

    /// The chunk has changed.
    fn note(&mut self, chunk: usize) {
        let nr_free: u32 = self.free[chunk].iter().map(|word| word.count_ones()).sum();
        let is_whole = nr_free as usize == LARGE_PAGES;
        for (bits, is_in) in [(&mut self.whole, is_whole), (&mut self.part, nr_free > 0 && !is_whole)] {
            let (word, bit) = (&mut bits[chunk / 64], 1 << (chunk % 64));
            *word = if is_in { *word | bit } else { *word & !bit };
        }
    }
}

fn first_of(bits: &[u64]) -> Option<usize> {
    let (number, word) = bits.iter().enumerate().find(|(_, word)| **word != 0)?;
    Some(number * 64 + word.trailing_zeros() as usize)
}

fn pfn(chunk: usize, index: usize) -> DevicePfn {
    #[expect(clippy::cast_possible_truncation, reason = "frame numbers have 32 bits")]
    let frame = (chunk * LARGE_PAGES + index) as u32;
    DevicePfn(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(frames: &mut Frames, nr: usize) -> Vec<u32> {
        let mut taken = vec![DevicePfn(0); nr];
        let granted = frames.take(&mut taken);
        taken[..granted].iter().map(|frame| frame.0).collect()
    }

    #[test]
    fn large_runs_are_kept_for_huge_pages() {
        let mut frames = Frames::new(2 * LARGE_PAGES + 10).unwrap();
        assert_eq!(frames.nr_free(), 2 * LARGE_PAGES + 10);
        // The chunk at the end is none.
        assert_eq!(take(&mut frames, 3), [1025, 1026, 1027]);
        assert_eq!(take(&mut frames, 8).last(), Some(&1), "the rest of it, and one of a chunk");
        assert_eq!(frames.take_large(), Some(DevicePfn(512)));
        assert_eq!(frames.take_large(), None);
        (1..2).for_each(|frame| frames.give(DevicePfn(frame)));
        assert_eq!(frames.take_large(), Some(DevicePfn(0)), "whole again");
        assert_eq!(frames.nr_free(), 0);
        assert!(take(&mut frames, 1).is_empty());
    }

    #[test]
    fn every_frame_is_handed_out_once_and_none_begins_a_large_run() {
        let mut frames = Frames::new(3 * LARGE_PAGES).unwrap();
        let taken = take(&mut frames, 4 * LARGE_PAGES);
        let mut sorted = taken.clone();
        sorted.sort_unstable();
        assert!(sorted.iter().copied().eq(0..3 * 512));
        let is_run = |run: &[u32]| run[0].is_multiple_of(512) && run[511] == run[0] + 511;
        assert!(!taken.windows(512).any(is_run));
    }
}
