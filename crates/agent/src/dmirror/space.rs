//! The engine as the driver of the devices needs it.

use std::sync::Arc;

use hmm::core::addr::{PAGE_SIZE, PageRange, Vpn};
use hmm::core::mirror::{Found, Pfn, RangeError, RangeFault, Request as Wanted};
use hmm::core::notifier::{Notifier, Notifiers, Sequence};
use hmm::device::DevicePfn;
use hmm::runtime::Runtime;
use hmm::uapi::maps::Perms;
use hmm::uapi::sys::gettid;
use hmm::uapi::{Errno, VmaKind, process_vm};
use hmm_dmirror::{
    BATCH_PAGES, Drain, Failure, Fill, Follow, Kind, Memory, Moved, Number, Request, Seen, Space, Vma,
    owner_of,
};

use super::map;

/// This process's memory.
#[derive(Debug)]
pub(super) struct EngineSpace {
    runtime: &'static Runtime,
}

impl EngineSpace {
    /// Adds the devices to the engine.
    ///
    /// # Errors
    /// What to tell the user.
    pub(super) fn new(runtime: &'static Runtime, memories: &[Arc<Memory>]) -> Result<Self, String> {
        let _ = memories;
        Ok(Self { runtime })
    }
}

impl Space for EngineSpace {
    fn notifiers(&self) -> &Arc<Notifiers> {
        self.runtime.engine().notifiers()
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
        seen.iter_mut().zip(pfns).for_each(|(seen, pfn)| *seen = seen_of(*pfn));
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
            can_migrate: !is_special,
        })
    }

    fn load(&self, page: Vpn, to: &mut [u8; PAGE_SIZE]) -> bool {
        process_vm::read(gettid(), page.addr(), to).is_ok()
    }

    fn store(&self, page: Vpn, from: &[u8; PAGE_SIZE]) -> bool {
        // SAFETY: the program told its device to write there: as if it did so itself.
        unsafe { process_vm::write(gettid(), page.addr(), from) }.is_ok()
    }

    fn migrate_to_device(
        &self,
        _device: Number,
        _range: PageRange,
        _fill: &mut Fill<'_>,
        _moved: &mut Moved<'_>,
    ) -> Result<(), Failure> {
        Err(Failure::Unsupported)
    }

    fn migrate_to_system(
        &self,
        _device: Number,
        _range: PageRange,
        _drain: &mut Drain<'_>,
        _moved: &mut Moved<'_>,
    ) -> Result<(), Failure> {
        Err(Failure::Unsupported)
    }

    fn make_exclusive(&self, _device: Number, _page: Vpn, _map: &mut dyn FnMut(u64)) -> Result<(), Failure> {
        Err(Failure::Unsupported)
    }

    fn load_exclusive(&self, _addr: u64, _to: &mut [u8; PAGE_SIZE]) {}

    fn evict(&self, _device: Number) {}
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
