//! The simulated device: frames that know what was done to them, and failures to order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hmm_device::{
    Caps, Device, DeviceError, DevicePfn, Fetch, LARGE_PAGES, MemKind, PAGE_SIZE, Store, Transfer, Usage,
};

use crate::failure::DeviceVerb;
use crate::memory::Bytes;
use crate::shared::Shared;

/// What a device is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSetup {
    /// Frames it has.
    pub capacity_pages: u32,
    /// Whether it recognises pages that it still holds.
    pub keeps_copies: bool,
    /// Whether the CPU can map its frames.
    pub is_coherent: bool,
    /// Whether a transfer may not return in time.
    pub may_hang: bool,
}

/// What a transfer may take, in the simulation's time.
pub(crate) const DEVICE_PATIENCE: Duration = Duration::from_secs(100);

/// Where the devices' memory lies in the address space, if the CPU can map it: behind the arena.
const MEMORY: u64 = 0x6000_0000_0000;
/// log2 of the addresses that a device has.
const MEMORY_SHIFT: u32 = 32;

/// The device and the frame at an address.
pub(crate) fn frame_at(addr: u64) -> (usize, DevicePfn) {
    let offset = addr.checked_sub(MEMORY).expect("an address in a device's memory");
    let pfn = (offset & ((1 << MEMORY_SHIFT) - 1)) / PAGE_SIZE as u64;
    let device = usize::try_from(offset >> MEMORY_SHIFT).expect("few devices");
    (device, DevicePfn(u32::try_from(pfn).expect("a device is small")))
}

/// A device's memory. Every misuse of a frame is the engine's mistake, and panics.
#[derive(Debug)]
pub(crate) struct Frames {
    setup: DeviceSetup,
    /// Frames that are handed out; with bytes once they were stored to.
    used: BTreeMap<u32, Option<Bytes>>,
    /// Ended last, handed out first: a frame that is used behind its end is found to hold another page.
    free: Vec<u32>,
    lost: bool,
}

impl Frames {
    pub(crate) fn new(setup: DeviceSetup) -> Self {
        Self { setup, used: BTreeMap::new(), free: (0..setup.capacity_pages).rev().collect(), lost: false }
    }

    /// Frames that are handed out, with their bytes.
    pub(crate) fn used(&self) -> impl Iterator<Item = (DevicePfn, Option<&Bytes>)> {
        self.used.iter().map(|(pfn, bytes)| (DevicePfn(*pfn), bytes.as_ref()))
    }

    pub(crate) fn bytes(&self, pfn: DevicePfn) -> Option<&Bytes> {
        self.used.get(&pfn.0)?.as_ref()
    }

    pub(crate) const fn is_lost(&self) -> bool {
        self.lost
    }

    pub(crate) const fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    pub(crate) fn lose(&mut self) {
        self.lost = true;
    }

    fn alloc(&mut self, frames: &mut [DevicePfn]) -> usize {
        let mut nr_frames = 0;
        for frame in frames {
            let Some(pfn) = self.free.pop() else { break };
            self.used.insert(pfn, None);
            *frame = DevicePfn(pfn);
            nr_frames += 1;
        }
        nr_frames
    }

    fn alloc_large(&mut self) -> Option<DevicePfn> {
        let large = u32::try_from(LARGE_PAGES).expect("is small");
        let is_free = |first: &u32| (*first..first + large).all(|pfn| !self.used.contains_key(&pfn));
        let first = (0..=self.setup.capacity_pages.checked_sub(large)?).step_by(LARGE_PAGES).find(is_free)?;
        let run = first..first + large;
        self.free.retain(|pfn| !run.contains(pfn));
        self.used.extend(run.map(|pfn| (pfn, None)));
        Some(DevicePfn(first))
    }

    pub(crate) fn store(&mut self, frame: DevicePfn, bytes: &[u8; PAGE_SIZE]) {
        let place =
            self.used.get_mut(&frame.0).unwrap_or_else(|| panic!("store to {frame:?}, which is free"));
        assert!(place.is_none(), "second store to {frame:?}");
        *place = Some(Arc::new(*bytes));
    }

    pub(crate) const fn may_hang(&self) -> bool {
        self.setup.may_hang
    }

    fn stored(&self, frame: DevicePfn) -> &Bytes {
        let place = self.used.get(&frame.0).unwrap_or_else(|| panic!("{frame:?} is read and free"));
        place.as_ref().unwrap_or_else(|| panic!("{frame:?} is read and was never stored to"))
    }

    /// The device itself changes what is in a frame.
    pub(crate) fn bytes_mut(&mut self, frame: DevicePfn) -> &mut Bytes {
        let place = self.used.get_mut(&frame.0).unwrap_or_else(|| panic!("{frame:?} is mapped and free"));
        place.as_mut().unwrap_or_else(|| panic!("{frame:?} is mapped and was never stored to"))
    }

    /// The frame's page goes to the program.
    pub(crate) fn take(&mut self, frame: DevicePfn) -> Option<Bytes> {
        self.used.get_mut(&frame.0).unwrap_or_else(|| panic!("{frame:?} is mapped and free")).take()
    }

    /// The frame's page comes back from the program.
    pub(crate) fn put_back(&mut self, frame: DevicePfn, bytes: Bytes) {
        let place =
            self.used.get_mut(&frame.0).unwrap_or_else(|| panic!("a page goes to {frame:?}, which is free"));
        assert!(place.is_none(), "a page goes to {frame:?}, which holds another");
        *place = Some(bytes);
    }

    fn free(&mut self, frame: DevicePfn) {
        let used = self.used.remove(&frame.0);
        assert!(used.is_some(), "{frame:?} is freed and was free");
        self.free.push(frame.0);
    }
}

/// The engine's view of one device of the simulation.
#[derive(Debug)]
pub(crate) struct SimDevice {
    shared: Arc<Shared>,
    number: usize,
}

impl SimDevice {
    pub(crate) const fn new(shared: Arc<Shared>, number: usize) -> Self {
        Self { shared, number }
    }
}

impl Device for SimDevice {
    fn caps(&self) -> Caps {
        let setup = self.shared.lock().devices[self.number].setup;
        Caps {
            kind: if setup.is_coherent { MemKind::Coherent } else { MemKind::Private },
            capacity_pages: u64::from(setup.capacity_pages),
            preferred_run_pages: 1,
            store_page_ns: 1000,
            fetch_page_ns: 1000,
            keeps_copies: setup.keeps_copies,
        }
    }

    fn usage(&self) -> Usage {
        let machine = self.shared.lock();
        let frames = &machine.devices[self.number];
        Usage {
            frames: frames.used.len() as u64,
            used_bytes: (frames.used.len() * PAGE_SIZE) as u64,
            capacity_bytes: u64::from(frames.setup.capacity_pages) * PAGE_SIZE as u64,
        }
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        let mut machine = self.shared.lock();
        machine.interleave();
        let wanted = machine.plan_alloc(frames.len());
        let nr_frames = machine.devices[self.number].alloc(&mut frames[..wanted]);
        machine.note(|| format!("device {} alloc {} = {nr_frames}", self.number, frames.len()));
        nr_frames
    }

    fn alloc_large(&self) -> Option<DevicePfn> {
        let mut machine = self.shared.lock();
        machine.interleave();
        if machine.plan_alloc(LARGE_PAGES) < LARGE_PAGES {
            return None;
        }
        let first = machine.devices[self.number].alloc_large();
        machine.note(|| format!("device {} alloc large = {first:?}", self.number));
        first
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        self.shared.lock().begin_call(self.number, None);
        self.shared.begin_transfer();
        let mut machine = self.shared.lock();
        let transfer = machine.plan_transfer(self.number, DeviceVerb::Store, run.frames.len());
        let (pages, rest) = run.bytes.as_chunks::<PAGE_SIZE>();
        assert!(rest.is_empty() && pages.len() == run.frames.len(), "one page of bytes for each frame");
        for (frame, bytes) in run.frames.iter().zip(pages).take(transfer.done) {
            machine.devices[self.number].store(*frame, bytes);
        }
        machine.note(|| format!("device {} store {:?} = {transfer:?}", self.number, run.frames));
        drop(machine);
        self.shared.intervene();
        self.shared.lock().end_call();
        transfer
    }

    fn fetch(&self, run: Fetch<'_>) -> Transfer {
        self.shared.lock().begin_call(self.number, run.frames.first());
        self.shared.begin_transfer();
        let mut machine = self.shared.lock();
        if machine.is_given_up() {
            // Its frames are others' by now.
            machine.end_call();
            run.bytes.fill(0xdd);
            return Transfer::complete(run.frames.len());
        }
        let transfer = machine.plan_transfer(self.number, DeviceVerb::Fetch, run.frames.len());
        let (pages, rest) = run.bytes.as_chunks_mut::<PAGE_SIZE>();
        assert!(rest.is_empty() && pages.len() == run.frames.len(), "one page of bytes for each frame");
        for (number, (frame, bytes)) in run.frames.iter().zip(pages).enumerate() {
            let stored = machine.devices[self.number].stored(*frame).clone();
            if number < transfer.done {
                *bytes = *stored;
            } else if number == transfer.done {
                bytes.fill(0xee);
                machine.note_unreadable(&stored);
            }
        }
        machine.note(|| format!("device {} fetch {:?} = {transfer:?}", self.number, run.frames));
        drop(machine);
        self.shared.intervene();
        self.shared.lock().end_call();
        transfer
    }

    fn free(&self, frames: &[DevicePfn]) {
        let mut machine = self.shared.lock();
        machine.note(|| format!("device {} free {frames:?}", self.number));
        frames.iter().for_each(|frame| machine.devices[self.number].free(*frame));
        machine.interleave();
    }

    fn is_worth_keeping(&self, frame: DevicePfn) -> bool {
        !frame.0.is_multiple_of(5)
    }

    fn holds(&self, frame: DevicePfn, bytes: &[u8]) -> bool {
        let mut machine = self.shared.lock();
        machine.interleave();
        let frames = &machine.devices[self.number];
        let same = frames.stored(frame)[..] == *bytes;
        frames.setup.keeps_copies && !frames.lost && same
    }

    fn patience(&self) -> Option<Duration> {
        self.shared.lock().devices[self.number].setup.may_hang.then_some(DEVICE_PATIENCE)
    }

    fn memory(&self) -> Option<std::ops::Range<u64>> {
        let setup = self.shared.lock().devices[self.number].setup;
        let start = MEMORY + ((self.number as u64) << MEMORY_SHIFT);
        let len = u64::from(setup.capacity_pages) * PAGE_SIZE as u64;
        setup.is_coherent.then(|| start..start + len)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        if self.shared.lock().devices[self.number].lost { Err(DeviceError::Lost) } else { Ok(()) }
    }
}
