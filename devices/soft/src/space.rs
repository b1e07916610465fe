//! The real address space as the device's host.

use std::sync::{Arc, Mutex, PoisonError};

use hmm::AddressSpace;
use hmm_core::DeviceId;
use hmm_core::addr::{BLOCK_PAGES, HUGE_ORDER, PageRange, Vpn};
use hmm_core::driver::{Select, Source};
use hmm_core::hints::Hint;
use hmm_core::mirror::{self, Pfn, RangeError, RangeFault, Request};
use hmm_core::notifier::{Notifier, Owner, Sequence};
use hmm_device::Device;
use hmm_uapi::maps::Maps;
use rustix::io::Errno;

use crate::host::{FaultError, Found, FromPeer, Host, Want};
use crate::mirror::Mirror;
use crate::table::{ALL, Table};

/// An address space, and the names of the devices that were added to it here.
#[derive(Debug)]
pub(crate) struct Space {
    space: AddressSpace,
    maps: Maps,
    ids: Mutex<Vec<(DeviceId, Arc<dyn Device>)>>,
}

impl Space {
    pub(crate) fn new(space: &AddressSpace) -> Result<Self, Errno> {
        Ok(Self { space: space.clone(), maps: Maps::open()?, ids: Mutex::default() })
    }

    fn id(&self, index: u8) -> Option<(DeviceId, Arc<dyn Device>)> {
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.iter().find(|(id, _)| id.number() == index).cloned()
    }

    /// Sees to it that pages are managed; the runs of those that are.
    fn managed(&self, range: PageRange) -> Vec<PageRange> {
        if self.space.manage(range).is_ok() {
            return vec![range];
        }
        // What is around a fault may be of another mapping, or of none.
        let mut runs: Vec<PageRange> = Vec::new();
        for page in range.iter().filter(|page| self.space.manage(PageRange::new(*page, 1)).is_ok()) {
            match runs.last_mut() {
                Some(last) if last.end == page => last.end = page.add(1),
                _ => runs.push(PageRange::new(page, 1)),
            }
        }
        runs
    }

    fn migrate_run(
        &self,
        id: DeviceId,
        memory: &dyn Device,
        owner: Owner,
        run: PageRange,
        from_peer: &mut FromPeer<'_>,
    ) -> usize {
        let select = Select::SYSTEM | Select::PRIVATE | Select::COMPOUND;
        let Ok(mut migration) = self.space.migrate_setup(run, select, owner) else { return 0 };
        let mut index = 0;
        while let Some(entry) = migration.entries().get(index) {
            let (Source::Private(frame), nr_pages) = (entry.source(), entry.nr_pages()) else {
                index += entry.nr_pages();
                continue;
            };
            if frame.device == id.number() {
                index += nr_pages;
                continue;
            }
            let large = entry.is_compound();
            let copied = from_peer(frame.device, frame.pfn, nr_pages);
            if copied.is_none() && migration.split(index) {
                // There is no large run for it: page by page.
                continue;
            }
            index += nr_pages;
            let Some(first) = copied else { continue };
            let set = match large {
                true => migration.set_large_frame(index - nr_pages, id, first),
                false => migration.set_frame(index - nr_pages, id, first),
            };
            if set.is_err() {
                (0..nr_pages).for_each(|number| memory.free(&[first.add(number)]));
            }
        }
        // Fails only for a device that was removed.
        let _ = migration.store(id);
        migration.pages().finalize()
    }
}

impl Host for Space {
    fn watch(&self, table: Table, mirror: Mirror) -> Result<Notifier<Mirror>, String> {
        self.space.watch(ALL, Arc::new(Mutex::new(table)), mirror).map_err(|error| error.to_string())
    }

    fn add(&self, memory: Arc<dyn Device>, owner: Owner) -> Result<u8, String> {
        let id = self.space.add_device(Arc::clone(&memory), owner).map_err(|error| error.to_string())?;
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).push((id, memory));
        Ok(id.number())
    }

    fn remove(&self, device: u8) {
        let Some((id, _)) = self.id(device) else { return };
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).retain(|(other, _)| *other != id);
        // If there is no memory to bring pages home to, the address space keeps the device's memory, and the pages come
        // home as they are touched.
        let _ = self.space.remove_device(id);
    }

    fn settle(&self) {
        self.space.settle();
    }

    fn enter(&self) {
        // Any call notes the calling thread's stack.
        let _ = self.space.hint(Vpn(0));
    }

    fn clip(&self, page: Vpn, range: PageRange) -> PageRange {
        match self.maps.next_vma(page.addr()) {
            Ok(Some(vma)) if vma.start <= page.addr() => {
                range.intersect(PageRange::of_bytes(vma.start, vma.end))
            }
            Ok(_) | Err(_) => PageRange::new(page, 1),
        }
    }

    fn hint(&self, page: Vpn) -> (Hint, PageRange) {
        self.space.hint(page)
    }

    fn range_fault(
        &self,
        notifier: &Notifier<Mirror>,
        seq: Sequence,
        owner: Owner,
        range: PageRange,
        wants: &[Want],
        found: &mut [Found],
    ) -> Result<bool, FaultError> {
        let mut requests = [Request::NONE; BLOCK_PAGES];
        for (request, want) in requests.iter_mut().zip(wants) {
            *request = match want {
                Want::Look => Request::NONE,
                Want::Read => Request::FAULT,
                Want::Write => Request::FAULT | Request::WRITE,
            };
        }
        let mut pfns = [Pfn::default(); BLOCK_PAGES];
        let mut fault = RangeFault {
            range,
            default: Request::NONE,
            mask: Request::FAULT | Request::WRITE,
            requests: &requests[..wants.len()],
            owner: Some(owner),
            pfns: &mut pfns[..found.len()],
        };
        self.space.range_fault(notifier, seq, &mut fault).map_err(|error| match error {
            RangeError::Busy => FaultError::Busy,
            RangeError::NoMemory => FaultError::NoMemory,
            RangeError::Permission => FaultError::Permission,
            RangeError::Fault | RangeError::Invalid => FaultError::NoMapping,
        })?;
        for (found, pfn) in found.iter_mut().zip(&pfns) {
            *found = match pfn.found {
                mirror::Found::None | mirror::Found::Error => Found::None,
                mirror::Found::System { .. } | mirror::Found::Coherent(..) => {
                    Found::System { write: pfn.write, protected: pfn.protected }
                }
                mirror::Found::Private(frame) => {
                    Found::Frame { device: frame.device, frame: frame.pfn, write: pfn.write }
                }
            };
        }
        Ok(pfns[..found.len()].iter().any(|pfn| pfn.order == HUGE_ORDER))
    }

    fn protect(&self, owner: Owner, range: PageRange) {
        for run in self.managed(range) {
            // What is not protected is found as such.
            let _ = self.space.write_protect(run, owner);
        }
    }

    fn migrate_in(&self, device: u8, owner: Owner, range: PageRange, from_peer: &mut FromPeer<'_>) -> usize {
        let Some((id, memory)) = self.id(device) else { return 0 };
        let runs = self.managed(range);
        runs.into_iter().map(|run| self.migrate_run(id, &*memory, owner, run, from_peer)).sum()
    }

    fn migrate_home(&self, owner: Owner, range: PageRange) -> usize {
        let select = Select::PRIVATE | Select::COMPOUND;
        let bring = |run| {
            let Ok(mut migration) = self.space.migrate_setup(run, select, owner) else { return 0 };
            migration.fetch();
            migration.pages().finalize()
        };
        // The program may have unmapped a part.
        self.managed(range).into_iter().map(bring).sum()
    }
}
