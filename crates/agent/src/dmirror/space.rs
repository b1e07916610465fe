//! The engine as the driver of the devices needs it.

use std::sync::Arc;

use hmm::core::DeviceId;
use hmm::core::addr::{PAGE_SIZE, PageRange, Vpn};
use hmm::core::kernel::{Kernel, Mapped, Seen as Walked};
use hmm::core::mirror::{Found, Pfn, RangeError, RangeFault, Request as Wanted};
use hmm::core::notifier::{Notifier, Notifiers, Sequence};
use hmm::runtime::Runtime;
use hmm::uapi::maps::Perms;
use hmm::uapi::sys::gettid;
use hmm::uapi::{VmaKind, process_vm};
use hmm_dmirror::{
    BATCH_PAGES, Drain, Failure, Fill, Follow, Kind, Memory, Moved, Number, Request, Seen, Space, Vma,
    owner_of,
};

use super::map;
use super::writable::Writable;

use crate::why::Why;

/// This process's memory.
#[derive(Debug)]
pub(super) struct EngineSpace {
    pub(super) runtime: &'static Runtime,
    /// The devices' names in the engine, by their numbers.
    devices: Vec<DeviceId>,
    memories: Vec<Arc<Memory>>,
}

impl EngineSpace {
    /// Adds the devices to the engine.
    ///
    /// # Errors
    /// What to tell the user.
    pub(super) fn new(runtime: &'static Runtime, memories: &[Arc<Memory>]) -> Result<Self, Why> {
        let add = |(number, memory): (Number, &Arc<Memory>)| {
            runtime.engine().add_device(Arc::<Memory>::clone(memory), owner_of(number))
        };
        let devices = Number::all().zip(memories).map(add).collect::<Result<_, _>>();
        let devices = devices.map_err(Why::all)?;
        Ok(Self { runtime, devices, memories: memories.to_vec() })
    }

    /// The device's memory.
    pub(super) fn memory(&self, device: Number) -> &Memory {
        &self.memories[usize::from(device.get())]
    }

    /// Pages of the range that the program has mapped for reading only: on a device they stay so.
    fn read_only(&self, range: PageRange) -> Result<Vec<Vpn>, Failure> {
        let mut pages = Vec::new();
        let mut walked = [Walked::default(); BATCH_PAGES];
        let mut at = range.start;
        while at < range.end {
            let batch = PageRange::new(at, BATCH_PAGES as u64).intersect(range).intersect(at.block().pages());
            let walked = &mut walked[..usize::try_from(batch.nr_pages()).unwrap_or(BATCH_PAGES)];
            self.runtime.engine().kernel().walk(batch, walked).map_err(|_| Failure::NoMemory)?;
            let is_read_only = |seen: &Walked| seen.cpu == Mapped::ReadOnly;
            pages.extend(
                batch.iter().zip(walked).filter(|(_, seen)| is_read_only(seen)).map(|(page, _)| page),
            );
            at = batch.end;
        }
        Ok(pages)
    }

    /// The device's name in the engine.
    pub(super) fn id(&self, device: Number) -> Result<DeviceId, Failure> {
        self.devices.get(usize::from(device.get())).copied().ok_or(Failure::Invalid)
    }
}

impl Space for EngineSpace {
    fn notifiers(&self) -> &Arc<Notifiers> {
        self.runtime.engine().notifiers()
    }

    fn settle(&self) {
        self.runtime.engine().settle();
    }

    fn range_fault(
        &self,
        device: Number,
        (notifier, seq): (&Notifier<Follow>, Sequence),
        range: PageRange,
        request: Request,
        seen: &mut [Seen],
    ) -> Result<(), Failure> {
        let wanted = match request {
            Request::Snapshot => Wanted::NONE,
            Request::Read => Wanted::FAULT,
            Request::Write => Wanted::FAULT | Wanted::WRITE,
        };
        let mut pfns = [Pfn::default(); BATCH_PAGES];
        let pfns = &mut pfns[..seen.len()];
        let mut fault = RangeFault::all(range, wanted, Some(owner_of(device)), pfns);
        self.runtime.range_fault(notifier, seq, &mut fault).map_err(failure)?;
        let memory = self.memory(device);
        for (seen, pfn) in seen.iter_mut().zip(pfns) {
            *seen = seen_of(*pfn);
            if let Kind::Private(frame) = seen.kind {
                seen.write &= memory.allows_writes(frame);
            }
        }
        Ok(())
    }

    fn vma(&self, page: Vpn) -> Option<Vma> {
        let vma = self.runtime.engine().kernel().maps().next_vma(page.addr()).ok()??;
        if vma.start > page.addr() {
            return None;
        }
        let is_special = vma.kind == VmaKind::Special
            || (vma.kind == VmaKind::File && map::is_special(vma.inode))
            || vma.page_size != PAGE_SIZE as u64;
        Some(Vma {
            end: Vpn::of_addr(vma.end),
            readable: vma.perms.contains(Perms::READ),
            writable: vma.perms.contains(Perms::WRITE),
            can_migrate: !is_special,
        })
    }

    fn load(&self, page: Vpn, to: &mut [u8; PAGE_SIZE]) -> bool {
        process_vm::read_own(page.addr(), to).is_ok()
    }

    fn store(&self, page: Vpn, from: &[u8; PAGE_SIZE]) -> bool {
        // SAFETY: the program told its device to write there: as if it did so itself.
        unsafe { process_vm::write(gettid(), page.addr(), from) }.is_ok()
    }

    fn touch(&self, page: Vpn) {
        // Who cannot read it hears of that when the page is faulted.
        let _ = process_vm::read_own(page.addr(), &mut [0]);
    }

    fn migrate_to_device(
        &self,
        device: Number,
        range: PageRange,
        fill: &mut Fill<'_>,
        moved: &mut Moved<'_>,
    ) -> Result<(), Failure> {
        self.manage(range);
        let read_only = self.read_only(range)?;
        let may_write = Writable::is_now(self.runtime, range);
        let _open = Writable::make(self.runtime, range);
        self.to_device(device, range, &|page| may_write && !read_only.contains(&page), fill, moved)
    }

    fn migrate_to_system(
        &self,
        device: Number,
        range: PageRange,
        drain: &mut Drain<'_>,
        moved: &mut Moved<'_>,
    ) -> Result<(), Failure> {
        let _open = Writable::make(self.runtime, range);
        self.to_system(device, range, drain, moved)
    }

    fn make_exclusive(&self, device: Number, page: Vpn) -> Result<u64, Failure> {
        self.isolate(device, page)
    }

    fn load_exclusive(&self, addr: u64, to: &mut [u8; PAGE_SIZE]) {
        let slot: *const u8 = std::ptr::with_exposed_provenance(usize::try_from(addr).unwrap_or(0));
        // SAFETY:
        // 1. the address is that of a slot of staging, which holds a page as long as the caller's entry is there; it is
        //    there while the caller holds the lock of its table.
        // 2. nobody else uses the page meanwhile: it is exclusive.
        unsafe { std::ptr::copy_nonoverlapping(slot, to.as_mut_ptr(), PAGE_SIZE) };
    }

    fn evict(&self, device: Number) {
        self.bring_home(device);
    }
}

fn seen_of(pfn: Pfn) -> Seen {
    let kind = match pfn.found {
        Found::None => Kind::None,
        Found::Error => Kind::Error,
        Found::System { zero } => Kind::System { zero },
        Found::Private(frame) => Kind::Private(frame.pfn),
        Found::Coherent(_, owner) => Number::all()
            .find(|device| owner_of(*device) == owner)
            .map_or(Kind::System { zero: false }, Kind::Coherent),
    };
    Seen { kind, write: pfn.write, order: pfn.order }
}

fn failure(error: RangeError) -> Failure {
    match error {
        RangeError::Invalid | RangeError::Fault => Failure::Fault,
        RangeError::NoMemory => Failure::NoMemory,
        RangeError::Permission => Failure::Permission,
        RangeError::Busy => Failure::Busy,
    }
}
