//! The way home: each unit is read once, neighbours in the file by one request, and what comes is compared before it counts. What
//! has come is decompressed while the rest is under way.
//!
//! A batch is planned from a copy of the table's entries, so that nothing is locked while the disk works. A frame whose
//! entry has changed meanwhile (it was freed and its blocks are somebody else's: see `patience` in
//! [`Device`](hmm_device::Device)) brings bytes that do not match its tag.
//!
//! What was compressed is read into the lane. Of a unit that is wanted from its first page on pages are made where the caller
//! wants them; of another all pages up to the last that is wanted are made in the lane. Decompression stays within its bounds
//! whatever the bytes are, and no page counts whose fingerprint is not that of what was stored: a broken unit still gives the
//! pages in front of the break.
//!
//! Pages that lie in the file as they are are read where the caller wants them, but for those that come with a unit in front of
//! them in one request.

use hmm_codec::content::fill_same;
use hmm_codec::lz4::{decompress, decompress_front};
use hmm_device::{DeviceError, DevicePfn, Fetch, PAGE_SIZE, Transfer};

use crate::BLOCK_BYTES;
use crate::device::FileDevice;
use crate::entry::{Content, Unit};
use crate::files::Files;
use crate::flight::{Flight, fly};
use crate::lane::{LANE_BLOCKS, Lane};
use crate::transfer::{Buffer, Piece, Pieces, Requests, Rest, Side, Stretch};

/// Frames in a batch: what a fault brings at most, so that it is one request.
const BATCH_FRAMES: usize = 128;

/// Neighbouring pages of a run that come from one unit, or one page of another kind.
#[derive(Clone, Copy, Debug)]
struct Segment {
    content: Content,
    /// The first page, in the batch.
    first: usize,
    nr_pages: usize,
    /// What of the transfer brings it.
    stretch: Stretch,
    /// Where its unit is read to.
    side: Side,
}

/// What there is to be done for a batch.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What frames hold, with their tags.
    entries: [(Content, u64); BATCH_FRAMES],
    segments: [Segment; BATCH_FRAMES],
    nr_segments: usize,
    /// Bytes of the lane that are in use.
    lane_len: usize,
}

impl Plan {
    pub(crate) const fn new() -> Self {
        let segment = Segment {
            content: Content::Empty,
            first: 0,
            nr_pages: 0,
            stretch: Stretch::NONE,
            side: Side::Lane,
        };
        Self {
            entries: [(Content::Empty, 0); BATCH_FRAMES],
            segments: [segment; BATCH_FRAMES],
            nr_segments: 0,
            lane_len: 0,
        }
    }

    /// Plans for as many of the entries as can be under way together, and returns for how many pages.
    fn make(&mut self, nr_pages: usize, pieces: &mut Pieces, is_usable: bool) -> usize {
        (self.nr_segments, self.lane_len) = (0, 0);
        let mut first = 0;
        while first < nr_pages {
            let content = self.entries[first].0;
            let stretch = Stretch::default();
            let mut segment = Segment { content, first, nr_pages: 1, stretch, side: Side::Lane };
            if let Content::Part(unit, part) = content {
                let entries = &self.entries[first..nr_pages];
                let follows =
                    |(step, entry): &(u8, &(Content, u64))| entry.0 == Content::Part(unit, part + step);
                segment.nr_pages =
                    if unit.is_raw() { 1 } else { (0..).zip(entries).take_while(follows).count() };
                let Some((stretch, side)) = self.read(unit, first, pieces, is_usable) else { break };
                (segment.stretch, segment.side) = (stretch, side);
            }
            self.segments[self.nr_segments] = segment;
            self.nr_segments += 1;
            first += segment.nr_pages;
        }
        first
    }

    /// Plans to read a unit. `None`: no more fits.
    fn read(
        &mut self,
        unit: Unit,
        page: usize,
        pieces: &mut Pieces,
        is_usable: bool,
    ) -> Option<(Stretch, Side)> {
        let last = self.segments[..self.nr_segments].last();
        if let Some(Segment { content: Content::Part(same, _), stretch, side: Side::Lane, .. }) = last
            && *same == unit
        {
            return Some((*stretch, Side::Lane));
        }
        let (file, offset, len) = (unit.file, unit.offset(), unit.nr_blocks() * BLOCK_BYTES);
        if unit.is_raw() && is_usable && pieces.end(Side::Lane) != Some((file, offset)) {
            let piece = Piece { file, offset, side: Side::Caller, at: page * PAGE_SIZE, len };
            return Some((pieces.push(piece)?, Side::Caller));
        }
        if self.lane_len + len > LANE_BLOCKS * BLOCK_BYTES {
            return None;
        }
        let at = self.lane_len;
        let stretch = pieces.push(Piece { file, offset, side: Side::Lane, at, len })?;
        self.lane_len += len;
        Some((stretch, Side::Lane))
    }

    fn segments(&self) -> &[Segment] {
        &self.segments[..self.nr_segments]
    }

    /// Divides the memory of both sides: what requests read to, and what the pages of segments are made in that no request reads
    /// there.
    fn divide<'b>(
        &self,
        files: &'b Files,
        pieces: &Pieces,
        bytes: &'b mut [u8],
        blocks: &'b mut [u8],
    ) -> (Requests<'b>, [Option<&'b mut [u8]>; BATCH_FRAMES]) {
        let (mut bytes, mut blocks) = (Rest::of(bytes), Rest::of(blocks));
        let (mut requests, mut targets) = (Requests::new(), [const { None }; BATCH_FRAMES]);
        for (segment, target) in self.segments().iter().zip(&mut targets) {
            let next = pieces.as_slice().get(requests.len());
            if let Some(piece) = next.filter(|_| segment.stretch.is_of(requests.len())) {
                let side = if piece.side == Side::Caller { &mut bytes } else { &mut blocks };
                let buffer = Buffer::Read(side.cut(piece.at, piece.len));
                requests.push(files.get(piece.file), piece.offset, buffer);
            }
            if segment.side == Side::Lane {
                *target = Some(bytes.cut(segment.first * PAGE_SIZE, segment.nr_pages * PAGE_SIZE));
            }
        }
        (requests, targets)
    }
}

impl FileDevice {
    pub(crate) fn fetch_run(&self, run: Fetch<'_>) -> Transfer {
        let mut lane = self.lanes.enter();
        let mut done = 0;
        while done < run.frames.len() {
            let end = run.frames.len().min(done + BATCH_FRAMES);
            let bytes = &mut run.bytes[done * PAGE_SIZE..end * PAGE_SIZE];
            match self.fetch_batch(&mut lane, &run.frames[done..end], bytes) {
                Ok(moved) => done += moved,
                Err((moved, why)) => return Transfer::stopped(done + moved, why),
            }
        }
        Transfer::complete(done)
    }

    /// Fetches frames from the front of a batch, and says how many.
    ///
    /// # Errors
    /// How many, and why not the next.
    fn fetch_batch(
        &self,
        lane: &mut Lane,
        frames: &[DevicePfn],
        bytes: &mut [u8],
    ) -> Result<usize, (usize, DeviceError)> {
        let nr_known = self.look_up(&mut lane.plan, frames);
        if nr_known == 0 {
            return Err((0, DeviceError::Unsupported));
        }
        let mut pieces = Pieces::of_at_most(lane.queue.read_bytes());
        let nr_planned = lane.plan.make(nr_known, &mut pieces, self.is_usable(bytes));
        let Lane { blocks, pages, plan, queue, .. } = lane;
        let (requests, mut targets) = plan.divide(&self.files, &pieces, bytes, blocks);
        fly(queue, requests, |flight| {
            for (segment, target) in plan.segments().iter().zip(&mut targets) {
                let entries = &plan.entries[segment.first..segment.first + segment.nr_pages];
                self.deliver(segment, entries, flight, target.as_deref_mut(), pages)?;
            }
            Ok(nr_planned)
        })
    }

    /// Copies what the table has, up to the first frame that was not stored to. Returns of how many frames.
    fn look_up(&self, plan: &mut Plan, frames: &[DevicePfn]) -> usize {
        let table = self.table();
        let known = plan.entries.iter_mut().zip(frames).map(|(entry, pfn)| {
            *entry = table.get(*pfn);
            entry.0
        });
        known.take_while(|content| *content != Content::Empty).count()
    }

    /// Makes the pages of a segment, in their place unless they are read there.
    ///
    /// # Errors
    /// The first page that could not be made, in the batch, and why.
    fn deliver(
        &self,
        segment: &Segment,
        entries: &[(Content, u64)],
        flight: &mut Flight<'_, '_>,
        target: Option<&mut [u8]>,
        pages: &mut [u8],
    ) -> Result<(), (usize, DeviceError)> {
        let Content::Part(unit, part) = segment.content else {
            target.into_iter().for_each(|target| fill_same(target, entries[0].1));
            return Ok(());
        };
        flight.wait(segment.stretch).map_err(|why| (segment.first, why))?;
        let stored = flight.bytes(segment.stretch, unit.nr_blocks() * BLOCK_BYTES);
        let made = match target {
            Some(target) => {
                unpack(unit, usize::from(part), stored, pages, target);
                &*target
            }
            None => stored,
        };
        let made = made.chunks_exact(PAGE_SIZE).zip(entries);
        match made.map(|(page, (_, tag))| self.fingerprint.of(page) == *tag).position(|is_right| !is_right) {
            Some(wrong) => Err((segment.first + wrong, DeviceError::Corrupt)),
            None => Ok(()),
        }
    }
}

/// Makes pages of a unit from part `part` on. What goes wrong leaves wrong bytes: the caller compares them.
fn unpack(unit: Unit, part: usize, blocks: &[u8], pages: &mut [u8], bytes: &mut [u8]) {
    if unit.is_raw() {
        bytes.copy_from_slice(blocks);
        return;
    }
    let packed = &blocks[..unit.len as usize];
    let first = part * PAGE_SIZE;
    if part > 0 {
        let front = &mut pages[..first + bytes.len()];
        let _ = decompress_front(packed, front);
        bytes.copy_from_slice(&front[first..]);
    } else if bytes.len() == usize::from(unit.nr_pages) * PAGE_SIZE {
        // All of it takes less time than as large a front of something larger.
        let _ = decompress(packed, bytes);
    } else {
        let _ = decompress_front(packed, bytes);
    }
}
