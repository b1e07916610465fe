//! Frames that the CPU reaches: memory of a coherent device (Linux: `MEMORY_DEVICE_COHERENT`).
//!
//! A frame's page is at one of two places, to which it is moved as it is: at the frame's own address while the frame is
//! filled, fetched or on its way (`Device`, `Fetching`, as any frame), and in the program at all other times
//! ([`PageState::Coherent`]). So migration treats coherent frames as it does private ones, and when it ends it maps them. If
//! that cannot be done just then the page stays `Device`, and a touch maps it: the CPU never brings such a page home.
//!
//! The page is the device's memory. It is not charged to the budget, its device's capacity bounds it, and reclaim passes it
//! by.
//!
//! A fork shares it with the child, as any page. Each side has the states and the frames; whoever writes first has the kernel
//! make a copy. Nobody tells of that, nor which of the two has the copy: when the sharing has ended the page is system memory
//! to both. It is found to be so by the next who looks at it for a driver ([`Engine::notice_copies`]).

use std::ops::Range;
use std::sync::atomic::Ordering;

use crate::addr::{BLOCK_PAGES, BlockId, PAGE_SIZE, PageRange, Vpn};
use crate::bits::PageSet;
use crate::engine::Engine;
use crate::fault::{Outcome, Step};
use crate::kernel::{Kernel, Mapped, Seen, Stop};
use crate::notifier::{Cause, Change};
use crate::registry::DeviceId;
use crate::state::{Frame, PageState};
use crate::table::{END, States};

/// Which way pages are moved.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Into the program.
    Map,
    /// To their frames.
    Unmap,
}

impl Way {
    /// The frame of a page that can go this way.
    const fn frame(self, state: PageState) -> Option<Frame> {
        match (self, state) {
            (Self::Map, PageState::Device { frame }) | (Self::Unmap, PageState::Coherent { frame, .. }) => {
                Some(frame)
            }
            _ => None,
        }
    }

    /// The state of a page that went this way.
    const fn arrived(self, frame: Frame) -> PageState {
        match self {
            Self::Map => PageState::Coherent { frame, shared: false },
            Self::Unmap => PageState::Device { frame },
        }
    }
}

/// Pages in a row whose frames are in a row, too.
struct Run {
    first: usize,
    len: usize,
    /// Of the first frame.
    addr: u64,
}

impl<K: Kernel> Engine<K> {
    /// Maps those of the block's pages in `wanted` that are in coherent frames and that nobody works on.
    pub(crate) fn map_frames(&self, states: &mut States, id: BlockId, wanted: &PageSet) -> Option<Stop> {
        self.move_frames(states, id, wanted, Way::Map)
    }

    /// Takes those of the block's pages in `wanted` that are mapped from coherent frames back to these. Gives the last
    /// reason for which a page was left.
    pub(crate) fn unmap_frames(&self, states: &mut States, id: BlockId, wanted: &PageSet) -> Option<Stop> {
        self.move_frames(states, id, wanted, Way::Unmap)
    }

    fn move_frames(&self, states: &mut States, id: BlockId, wanted: &PageSet, way: Way) -> Option<Stop> {
        let mut last = None;
        let mut longest = BLOCK_PAGES;
        let mut from = 0;
        while let Some(run) = self.next_run(states, id, from, wanted, way) {
            let len = run.len.min(longest);
            let range = PageRange::new(id.page(run.first), len as u64);
            let progress = match way {
                Way::Map => self.kernel.map_frames(run.addr, range),
                Way::Unmap => self.kernel.unmap_frames(range, run.addr),
            };
            from = run.first + progress.done;
            for index in run.first..from {
                let Some(frame) = way.frame(states.get(index)) else { continue };
                states.set(index, way.arrived(frame));
            }
            match progress.stop {
                None => {}
                Some(stop @ (Stop::Changing | Stop::Gone | Stop::NoMemory)) => return Some(stop),
                // Perhaps the border of a mapping is among them.
                Some(Stop::Unsuited) if len > 1 => longest = 1,
                Some(stop) => {
                    if !self.is_gone(states, id.page(from), way, stop) {
                        last = Some(stop);
                    }
                    from += 1;
                }
            }
        }
        last
    }

    /// Whether the page is known to be gone: given up by the program in a way that sends no event. The caller has told drivers
    /// of a change.
    fn is_gone(&self, states: &mut States, page: Vpn, way: Way, stop: Stop) -> bool {
        let (Way::Unmap, Stop::Absent) = (way, stop) else { return false };
        let Some(frame) = way.frame(states.get(page.index())) else { return false };
        states.set(page.index(), PageState::None);
        self.forget_frame(frame);
        true
    }

    /// A page turns out to be system memory.
    fn count_found(&self) {
        self.charge_found(1);
        self.stats().pgadopt.fetch_add(1, Ordering::Relaxed);
    }

    /// The next run of pages that can be moved in one call.
    fn next_run(&self, states: &States, id: BlockId, from: usize, wanted: &PageSet, way: Way) -> Option<Run> {
        let frame = |index: usize| {
            if wanted.contains(index) { way.frame(states.get(index)) } else { None }
        };
        // Most often all frames are of one device: it is not looked up for each.
        let mut private = None;
        let (first, head, addr) = (from..BLOCK_PAGES).find_map(|index| {
            let head = frame(index).filter(|frame| private != Some(frame.device))?;
            let addr = self.registry.address(head);
            if addr.is_none() {
                private = Some(head.device);
            }
            Some((index, head, addr?))
        })?;
        let extent = self.kernel.extent(id.page(first));
        let follows = |offset: &usize| {
            let next = u32::try_from(*offset).ok().and_then(|offset| head.pfn.0.checked_add(offset));
            let is_next = |at: Frame| at.device == head.device && Some(at.pfn.0) == next;
            extent.contains(id.page(first + offset)) && frame(first + offset).is_some_and(is_next)
        };
        let len = 1 + (1..BLOCK_PAGES - first).take_while(follows).count();
        Some(Run { first, len, addr })
    }

    /// Maps a touched page that is in a coherent frame.
    pub(crate) fn map_page(&self, states: &mut States, page: Vpn) -> Option<Stop> {
        let mut wanted = PageSet::EMPTY;
        wanted.insert(page.index());
        self.map_frames(states, page.block(), &wanted)
    }

    /// The program has a page, that we know nothing of, where one is to be mapped: what it maps is the truth. The caller holds
    /// the gate and no block.
    pub(crate) fn replaced_frame(&self, page: Vpn) {
        let range = PageRange::new(page, 1);
        let _change = self.notifiers.invalidate(Change { range, cause: Cause::Clear, owner: None });
        let id = page.block();
        let mut states = self.table.block(id).lock();
        if let PageState::Device { frame } = states.get(page.index())
            && self.registry.is_coherent(frame.device)
            && self.kernel.present(id).contains(page.index())
        {
            states.set(page.index(), PageState::System { copy: None });
            self.count_found();
            self.forget_frame(frame);
            self.note_resident(id, &mut states);
        }
        self.kernel.wake(range);
    }

    /// The kernel misses a page that we think is mapped: the fault is an old one, or the page was given up in a way that
    /// sends no event. In either case a zero-filled page is right, if there is none. The caller holds the gate and no block.
    pub(crate) fn found_frame_missing(&self, page: Vpn) -> Step {
        let range = PageRange::new(page, 1);
        if self.kernel.present(page.block()).contains(page.index()) {
            self.kernel.wake(range);
            return Step::Ended(Outcome::Done);
        }
        let _change = self.notifiers.invalidate(Change { range, cause: Cause::Clear, owner: None });
        let mut states = self.table.block(page.block()).lock();
        let PageState::Coherent { frame, .. } = states.get(page.index()) else { return Step::Again };
        if !self.charge_for_copy(1) {
            return Step::NeedMemory;
        }
        let stop = self.kernel.zero_home(range).stop;
        if stop.is_none() {
            states.set(page.index(), PageState::System { copy: None });
            self.forget_frame(frame);
            self.note_resident(page.block(), &mut states);
            self.stats().pgzero.fetch_add(1, Ordering::Relaxed);
            return Step::Ended(Outcome::Done);
        }
        self.uncharge(1);
        Step::Ended(stop.map_or(Outcome::Done, |stop| self.stopped(page, stop)))
    }

    /// In front of a fork: what is mapped from frames will be shared with the child.
    pub fn share_frames(&self) {
        for (_, block, part) in self.table.used_blocks(PageRange { start: Vpn(0), end: END }) {
            let mut states = block.lock();
            for index in part {
                if let PageState::Coherent { frame, .. } = states.get(index) {
                    states.set(index, PageState::Coherent { frame, shared: true });
                }
            }
        }
    }

    /// Finds pages of the range that were shared by a fork and are no more, because one side has a copy or is gone: they are
    /// system memory from now on. Returns whether there were any.
    pub(crate) fn notice_copies(&self, range: PageRange) -> bool {
        let is_shared = |state| matches!(state, PageState::Coherent { shared: true, .. });
        let mut noticed = false;
        for (id, block, part) in self.table.used_blocks(range) {
            let before = {
                let states = block.lock();
                part.clone().any(|index| is_shared(states.get(index)))
            };
            let pages = PageRange { start: id.page(part.start), end: id.page(part.end) };
            let mut seen = [Seen::default(); BLOCK_PAGES];
            let seen = &mut seen[..part.len()];
            if !before || self.kernel.walk(pages, seen).is_err() {
                continue;
            }
            let is_copy = |states: &States, index: usize| {
                is_shared(states.get(index)) && seen[index - part.start].cpu == Mapped::Writable
            };
            noticed |= self.turn_to_system(id, part.clone(), is_copy);
        }
        noticed
    }

    /// Those of the block's pages in `part` that are mapped from frames, and that `is_meant` says so of, are system memory from
    /// now on, and their frames are free. Drivers hear of these, and of no page between them. Returns whether there were any.
    fn turn_to_system(
        &self,
        id: BlockId,
        part: Range<usize>,
        is_meant: impl Fn(&States, usize) -> bool,
    ) -> bool {
        let meant: PageSet = {
            let states = self.table.block(id).lock();
            part.filter(|index| is_meant(&states, *index)).collect()
        };
        // Each of them, whatever came of those before.
        meant.runs().filter(|run| self.run_to_system(id, run.clone(), &is_meant)).count() > 0
    }

    fn run_to_system(
        &self,
        id: BlockId,
        run: Range<usize>,
        is_meant: &impl Fn(&States, usize) -> bool,
    ) -> bool {
        let range = PageRange { start: id.page(run.start), end: id.page(run.end) };
        let change = self.notifiers.invalidate(Change { range, cause: Cause::Clear, owner: None });
        let gate = self.gate();
        let mut states = self.table.block(id).lock();
        let mut any = false;
        for index in run {
            if let PageState::Coherent { frame, .. } = states.get(index)
                && is_meant(&states, index)
            {
                states.set(index, PageState::System { copy: None });
                self.count_found();
                self.forget_frame(frame);
                any = true;
            }
        }
        self.note_resident(id, &mut states);
        drop(states);
        drop(gate);
        drop(change);
        any
    }

    /// What is mapped from a device's frames and cannot be moved (pinned for I/O, of a read-only mapping) becomes system
    /// memory as it is: the device is going away.
    pub(crate) fn keep_frames(&self, device: DeviceId) {
        let is_there = |states: &States, index: usize| matches!(states.get(index), PageState::Coherent { frame, .. } if frame.device == device.number());
        for (id, _, part) in self.table.used_blocks(PageRange { start: Vpn(0), end: END }) {
            self.turn_to_system(id, part, is_there);
        }
    }
}

const _: () = assert!(PAGE_SIZE == hmm_device::PAGE_SIZE, "a frame holds a page");
