//! Between setup and `pages`: the driver reads what was collected, and says where each page goes.

use std::sync::Arc;

use hmm_device::{Access, DevicePfn, PAGE_SIZE, Store, Transfer};

use crate::addr::{BLOCK_PAGES, SlotRun};
use crate::driver::{Collected, Destination, Entry, Migration, Source};
use crate::fetch::transfer_home;
use crate::kernel::Kernel;
use crate::reclaim::Reclaimed;
use crate::registry::{DeviceId, Member};
use crate::staging::Left;
use crate::state::Frame;

/// Pages of one transfer to a device.
const STORE_PAGES: usize = 64;
/// Holes of one transfer.
pub(super) const HOLE_PAGES: usize = 16;
/// What they are filled with.
pub(super) static ZEROES: [u8; HOLE_PAGES * PAGE_SIZE] = [0; HOLE_PAGES * PAGE_SIZE];

/// Why a page does not go there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RefusedDestination {
    /// The page was not collected, or has a destination already, or its source does not allow this one.
    #[error("the page has no use for this destination: look at its entry's source first")]
    NotWanted,
    /// The frame has a page already, or is on the way to get one.
    #[error("the frame is another page's: hand in each frame that `Device::alloc` gave out once")]
    InUse,
    /// The device was removed, or is another owner's.
    #[error("the device is not one of this driver's: use what `add_device` returned, before `remove_device`")]
    NotYours,
    /// There is no system memory left.
    #[error(
        "no system memory is left for a page that comes home: migrate fewer pages, or leave it on the device"
    )]
    NoMemory,
}

impl<K: Kernel> Migration<'_, K, Collected> {
    /// Lends the bytes of a page, small or huge, that was in system memory. Returns false if entry `index` is none, else what was read
    /// does not change any more.
    pub fn with_bytes(&self, index: usize, read: &mut dyn FnMut(&[u8])) -> bool {
        let entry = self.entries.get(index).filter(|entry| entry.source == Source::System);
        let run = entry.map(|entry| SlotRun { start: entry.slot, len: entry.nr_pages() });
        run.inspect(|run| self.engine.kernel.with_slots(*run, read)).is_some()
    }

    /// Sends a page to a frame of a device of the driver's, to which the driver has copied the page's bytes, or will
    /// before [`pages`](Self::pages). From here on the frame is the engine's. Not for a huge page: see
    /// [`set_large_frame`](Self::set_large_frame) and [`split`](Self::split).
    ///
    /// # Errors
    /// See [`RefusedDestination`]; then the frame is still the caller's.
    pub fn set_frame(
        &mut self,
        index: usize,
        device: DeviceId,
        pfn: DevicePfn,
    ) -> Result<(), RefusedDestination> {
        self.set_destination(index, device, pfn, false)
    }

    pub(super) fn set_destination(
        &mut self,
        index: usize,
        device: DeviceId,
        pfn: DevicePfn,
        large: bool,
    ) -> Result<(), RefusedDestination> {
        let member = self.hold(device)?;
        let entry = self.entries.get_mut(index).ok_or(RefusedDestination::NotWanted)?;
        let fits = entry.compound == large && (!large || pfn.is_large_start());
        if !fits || !entry.is_collected() || entry.has_destination() {
            return Err(RefusedDestination::NotWanted);
        }
        if !member.descriptors.begin_run(pfn, entry.nr_pages()) {
            return Err(RefusedDestination::InUse);
        }
        entry.destination = Destination::Device(Frame { device: device.0, pfn });
        Ok(())
    }

    /// Keeps the device from being removed while pages are on their way to it.
    fn hold(&mut self, device: DeviceId) -> Result<Arc<Member>, RefusedDestination> {
        let member = self.engine.registry.member(device.0);
        let member = member.filter(|member| member.owner == self.owner && !member.is_closing());
        let member = member.ok_or(RefusedDestination::NotYours)?;
        if !self.devices.iter().any(|held| Arc::ptr_eq(held, &member)) {
            self.devices.push(Arc::clone(&member));
        }
        Ok(member)
    }

    /// Sends a page, small or huge, that is on a device to system memory, which `fill` fills with its bytes. For a huge page
    /// there may be no room while there is for small ones: then [`split`](Self::split) it.
    ///
    /// # Errors
    /// See [`RefusedDestination`].
    pub fn fill_system(
        &mut self,
        index: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), RefusedDestination> {
        let entry = self.entries.get(index).ok_or(RefusedDestination::NotWanted)?;
        let is_away = matches!(entry.source, Source::Private(_) | Source::Coherent(_));
        if !is_away || entry.has_destination() {
            return Err(RefusedDestination::NotWanted);
        }
        let run = if entry.compound {
            let bay = self.engine.take_huge_bay();
            bay.map(|bay| SlotRun { start: bay.slot(0), len: BLOCK_PAGES })
        } else {
            self.take_slots(1)
        };
        let run = run.ok_or(RefusedDestination::NoMemory)?;
        self.engine.kernel.with_slots_mut(run, fill);
        self.entries[index].destination = Destination::System(run.start);
        Ok(())
    }

    /// Staging memory for pages that come home; makes room if need be.
    pub(super) fn take_slots(&self, want: usize) -> Option<SlotRun> {
        loop {
            if let Some(run) = self.engine.take_slots(want) {
                return Some(run);
            }
            if self.engine.reclaim() != Reclaimed::Progress {
                return None;
            }
        }
    }

    /// Has the device take what was collected of system memory, holes included: allocates frames and stores to them.
    /// Pages that it does not take are left out. Returns how many it took.
    ///
    /// # Errors
    /// [`RefusedDestination::NotYours`].
    pub fn store(&mut self, device: DeviceId) -> Result<usize, RefusedDestination> {
        let member = self.hold(device)?;
        let mut stored = 0;
        let mut first = 0;
        while first < self.entries.len() {
            if self.entries[first].compound && self.store_huge(&member, device.0, first) {
                stored += BLOCK_PAGES;
                first += BLOCK_PAGES;
                continue;
            }
            if matches!(self.entries[first].source, Source::Hole | Source::System) {
                self.split(first);
            }
            let end = self.store_end(first);
            if end == first {
                first += 1;
                continue;
            }
            let mut frames = [DevicePfn::default(); STORE_PAGES];
            let nr_frames = member.device.alloc(&mut frames[..end - first]);
            let frames = &frames[..nr_frames];
            let transfer = self.store_run(&*member.device, first, frames);
            member.device.free(&frames[transfer.done..]);
            for (entry, pfn) in self.entries[first..].iter_mut().zip(&frames[..transfer.done]) {
                if !member.descriptors.begin(*pfn) {
                    // The device has handed out what is in use: whose it is keeps it.
                    continue;
                }
                entry.destination = Destination::Device(Frame { device: device.0, pfn: *pfn });
            }
            stored += transfer.done;
            first = end;
        }
        Ok(stored)
    }

    /// The end of the run from `first` on that is stored in one transfer; `first` itself if there is nothing to store.
    fn store_end(&self, first: usize) -> usize {
        let head = &self.entries[first];
        let most = match head.source {
            Source::Hole => HOLE_PAGES,
            Source::System => STORE_PAGES,
            Source::Skipped(_) | Source::Private(_) | Source::Coherent(_) => return first,
        };
        let belongs = |at: &usize| {
            let entry = &self.entries[*at];
            let offset = at - first;
            let is_next = entry.source == Source::Hole
                || (head.slot.index() + offset < BLOCK_PAGES && entry.slot == head.slot.add(offset));
            entry.source == head.source && !entry.has_destination() && is_next
        };
        let most = self.entries.len().min(first + most);
        (first..most).find(|at| !belongs(at)).unwrap_or(most)
    }

    fn store_run(&self, device: &dyn hmm_device::Device, first: usize, frames: &[DevicePfn]) -> Transfer {
        if frames.is_empty() {
            return Transfer::complete(0);
        }
        let access = if frames.len() == STORE_PAGES { Access::Stream } else { Access::Random };
        if self.entries[first].source == Source::Hole {
            return device.store(Store { frames, bytes: &ZEROES[..frames.len() * PAGE_SIZE], access });
        }
        let mut transfer = Transfer::complete(0);
        let run = SlotRun { start: self.entries[first].slot, len: frames.len() };
        self.engine.kernel.with_slots(run, &mut |bytes| {
            transfer = device.store(Store { frames, bytes, access });
        });
        transfer
    }

    /// Fetches what was collected of the driver's devices into system memory. What a device does not give, or what there
    /// is no memory for, is left out. Returns how many pages were fetched.
    pub fn fetch(&mut self) -> usize {
        let mut fetched = 0;
        let mut first = 0;
        while first < self.entries.len() {
            if self.entries[first].compound {
                if !self.entries[first].has_destination() && self.fetch_huge(first) {
                    fetched += BLOCK_PAGES;
                    first += BLOCK_PAGES;
                    continue;
                }
                if matches!(self.entries[first].source, Source::Private(_) | Source::Coherent(_)) {
                    self.split(first);
                }
            }
            let (number, end) = self.fetch_end(first);
            if end == first {
                first += 1;
                continue;
            }
            let (Some(run), Some(device)) = (self.take_slots(end - first), self.engine.registry.get(number))
            else {
                return fetched;
            };
            let mut frames = [DevicePfn::default(); BLOCK_PAGES];
            for (pfn, entry) in frames.iter_mut().zip(&self.entries[first..first + run.len]) {
                if let Source::Private(frame) | Source::Coherent(frame) = entry.source {
                    *pfn = frame.pfn;
                }
            }
            let pass = self.engine.flights.of_driver();
            let transfer = transfer_home(&self.engine.kernel, &*device, &pass, &frames[..run.len], run);
            for (number, entry) in self.entries[first..].iter_mut().take(transfer.done).enumerate() {
                entry.destination = Destination::System(run.start.add(number));
            }
            let rest = SlotRun { start: run.start.add(transfer.done), len: run.len - transfer.done };
            self.engine.staging.put(rest, Left::Memory);
            fetched += transfer.done;
            first += transfer.done + usize::from(transfer.stop.is_some());
        }
        fetched
    }

    /// The device of entry `first`, and the end of the run from there on that it holds; `first` itself if none does.
    fn fetch_end(&self, first: usize) -> (u8, usize) {
        let device = |entry: &Entry| match entry.source {
            Source::Private(frame) | Source::Coherent(frame) if !entry.has_destination() => {
                Some(frame.device)
            }
            Source::Private(_) | Source::Coherent(_) | Source::Hole | Source::System | Source::Skipped(_) => {
                None
            }
        };
        let Some(number) = device(&self.entries[first]) else { return (0, first) };
        // Nobody waits for one of them more than for the others: the longer the run the better.
        let most = self.entries.len().min(first + BLOCK_PAGES);
        let end = (first..most).find(|at| device(&self.entries[*at]) != Some(number)).unwrap_or(most);
        (number, end)
    }
}
