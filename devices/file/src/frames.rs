//! Which frames are handed out, and the checksums of those that were stored to.
//!
//! Frames are handed out in order from where the last search ended, so that what leaves together lies together, and a
//! batch is one request to the disk. A second level of bits knows the words that have a free frame.

use hmm_device::{DeviceError, DevicePfn};
use hmm_uapi::{AddrRange, Errno};

use crate::zeroed::Zeroed;

const BITS: usize = u64::BITS as usize;

/// The table. All of it is made at the start; zeroed memory that is not used is not resident.
#[derive(Debug)]
pub(crate) struct Frames {
    /// A bit for each frame that is handed out.
    taken: Zeroed,
    /// A bit for each word of `taken` in which none is free.
    full: Zeroed,
    /// Never 0 for a frame that was stored to.
    sums: Zeroed,
    nr_frames: usize,
    nr_taken: usize,
    /// Where the next search begins.
    next: usize,
}

impl Frames {
    /// # Errors
    /// There are no addresses left.
    pub(crate) fn new(nr_frames: usize) -> Result<Self, Errno> {
        let nr_words = nr_frames.div_ceil(BITS);
        let mut this = Self {
            taken: Zeroed::new(nr_words)?,
            full: Zeroed::new(nr_words.div_ceil(BITS))?,
            sums: Zeroed::new(nr_frames)?,
            nr_frames,
            nr_taken: 0,
            next: 0,
        };
        // What is behind the last frame is never free.
        if !nr_frames.is_multiple_of(BITS) {
            this.taken[nr_words - 1] = u64::MAX << (nr_frames % BITS);
        }
        if !nr_words.is_multiple_of(BITS) {
            this.full[nr_words / BITS] = u64::MAX << (nr_words % BITS);
        }
        Ok(this)
    }

    /// Where the table is.
    pub(crate) fn ranges(&self) -> [AddrRange; 3] {
        [&self.taken, &self.full, &self.sums].map(Zeroed::range)
    }

    pub(crate) const fn nr_taken(&self) -> usize {
        self.nr_taken
    }

    pub(crate) const fn capacity(&self) -> usize {
        self.nr_frames
    }

    /// Hands out frames, from the front of `to`, and returns how many.
    pub(crate) fn take(&mut self, to: &mut [DevicePfn]) -> usize {
        for (granted, place) in to.iter_mut().enumerate() {
            let Some(frame) = self.free_from(self.next).or_else(|| self.free_from(0)) else { return granted };
            self.set_taken(frame);
            self.next = frame + 1;
            *place = pfn(frame);
        }
        to.len()
    }

    /// The first free frame that is not in front of `from`.
    fn free_from(&self, from: usize) -> Option<usize> {
        let word = from / BITS;
        let free = !*self.taken.get(word)? & (u64::MAX << (from % BITS));
        if free != 0 {
            return Some(word * BITS + free.trailing_zeros() as usize);
        }
        let word = first_zero(&self.full, word + 1)?;
        Some(word * BITS + self.taken[word].trailing_ones() as usize)
    }

    fn set_taken(&mut self, frame: usize) {
        let word = frame / BITS;
        self.taken[word] |= 1 << (frame % BITS);
        if self.taken[word] == u64::MAX {
            self.full[word / BITS] |= 1 << (word % BITS);
        }
        self.nr_taken += 1;
    }

    fn is_taken(&self, frame: usize) -> bool {
        frame < self.nr_frames && self.taken[frame / BITS] & (1 << (frame % BITS)) != 0
    }

    /// Ends a frame. One that is not handed out stays so.
    pub(crate) fn free(&mut self, DevicePfn(frame): DevicePfn) {
        let frame = frame as usize;
        if !self.is_taken(frame) {
            return;
        }
        let word = frame / BITS;
        self.taken[word] &= !(1 << (frame % BITS));
        self.full[word / BITS] &= !(1 << (word % BITS));
        self.sums[frame] = 0;
        self.nr_taken -= 1;
    }

    /// How many of the frames, from the front, may be stored to.
    pub(crate) fn empty(&self, frames: &[DevicePfn]) -> usize {
        let is_empty = |pfn: &DevicePfn| self.is_taken(pfn.0 as usize) && self.sums[pfn.0 as usize] == 0;
        frames.iter().position(|pfn| !is_empty(pfn)).unwrap_or(frames.len())
    }

    /// Notes that a frame was stored to.
    pub(crate) fn set_sum(&mut self, DevicePfn(frame): DevicePfn, sum: u64) {
        if self.is_taken(frame as usize) {
            self.sums[frame as usize] = sum;
        }
    }

    /// What a frame was stored with.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`]: it was not stored to.
    pub(crate) fn sum(&self, DevicePfn(frame): DevicePfn) -> Result<u64, DeviceError> {
        let sum = self.sums.get(frame as usize).copied().unwrap_or(0);
        if sum == 0 { Err(DeviceError::Unsupported) } else { Ok(sum) }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the capacity is at most 2^32 frames")]
const fn pfn(frame: usize) -> DevicePfn {
    DevicePfn(frame as u32)
}

/// The first bit from `from` on that is not set.
fn first_zero(words: &[u64], from: usize) -> Option<usize> {
    let first = from / BITS;
    let mut mask = u64::MAX << (from % BITS);
    for (index, word) in words.iter().enumerate().skip(first) {
        let zeroes = !word & mask;
        if zeroes != 0 {
            return Some(index * BITS + zeroes.trailing_zeros() as usize);
        }
        mask = u64::MAX;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn frames_follow_each_other_and_each_is_handed_out_once() {
        for nr_frames in [1, 63, 64, 65, 4096, 4097, 5000] {
            let mut frames = Frames::new(nr_frames).expect("addresses");
            let mut got = vec![DevicePfn(0); nr_frames + 1];
            assert_eq!(frames.take(&mut got), nr_frames, "of {nr_frames}");
            assert!(got[..nr_frames].iter().enumerate().all(|(index, pfn)| pfn.0 as usize == index));
            for pfn in &got[..nr_frames] {
                frames.free(*pfn);
                frames.free(*pfn);
            }
            assert_eq!(frames.nr_taken(), 0);
        }
    }

    #[test]
    fn what_was_freed_is_found_again() {
        let mut frames = Frames::new(10_000).expect("addresses");
        let mut all = vec![DevicePfn(0); 10_000];
        assert_eq!(frames.take(&mut all), 10_000);
        let freed: BTreeSet<u32> = (0..10_000).filter(|frame| frame % 127 == 3).collect();
        freed.iter().for_each(|frame| frames.free(DevicePfn(*frame)));
        let mut again = vec![DevicePfn(0); 10_000];
        let granted = frames.take(&mut again);
        assert_eq!(again[..granted].iter().map(|pfn| pfn.0).collect::<BTreeSet<_>>(), freed);
    }

    #[test]
    fn frames_that_are_none_harm_nobody() {
        let mut frames = Frames::new(70).expect("addresses");
        let unknown = [DevicePfn(0), DevicePfn(70), DevicePfn(127), DevicePfn(u32::MAX)];
        for pfn in unknown {
            frames.free(pfn);
            frames.set_sum(pfn, 1);
            assert_eq!(frames.sum(pfn), Err(DeviceError::Unsupported));
            assert_eq!(frames.empty(&[pfn]), 0);
        }
        assert_eq!(frames.nr_taken(), 0);
    }
}
