//! The engine's migrations, as the driver of the devices needs them.
//!
//! Between setup and the end nothing of the program's memory is touched: this thread might wait for itself.

use hmm::core::addr::{PAGE_SIZE, PageRange, Vpn};
use hmm::core::driver::{Entry, ExclusiveError, Select, Skip, Source};
use hmm::core::kernel::Kernel;
use hmm::core::state::PageState;
use hmm::device::{Device, DevicePfn, MemKind};
use hmm_dmirror::{Drain, Failure, Fill, Moved, Number, Space, owner_of};

use super::space::EngineSpace;
use super::writable::Writable;
use crate::control;

/// Whether the kernel does not move the page as it is.
fn is_busy(entry: &Entry) -> bool {
    entry.source() == Source::Skipped(Skip::Busy)
}

impl EngineSpace {
    /// Has memory managed that can be, so that it can migrate.
    pub(super) fn manage(&self, range: PageRange) {
        let (start, end) = (range.start.addr(), range.end.addr());
        if self.runtime.engine().kernel().extents().first_gap(range).is_some() {
            control::discover(self.runtime, hmm::uapi::AddrRange { start, end });
        }
    }

    pub(super) fn to_device(
        &self,
        device: Number,
        range: PageRange,
        may_write: &dyn Fn(Vpn) -> bool,
        fill: &mut Fill<'_>,
        moved: &mut Moved<'_>,
    ) -> Result<(), Failure> {
        for page in self.collect_to_device(device, range, may_write, fill, moved)? {
            // Shared by a fork, most likely: the kernel moves only what is this process's own.
            let range = PageRange::new(page, 1);
            self.runtime.engine().kernel().unshare(range);
            self.collect_to_device(device, range, may_write, fill, moved)?;
        }
        Ok(())
    }

    /// Migrates what can be migrated. Returns the pages that the kernel does not move as they are.
    fn collect_to_device(
        &self,
        device: Number,
        range: PageRange,
        may_write: &dyn Fn(Vpn) -> bool,
        fill: &mut Fill<'_>,
        moved: &mut Moved<'_>,
    ) -> Result<Vec<Vpn>, Failure> {
        let engine = self.runtime.engine();
        let id = self.id(device)?;
        let setup = engine.migrate_setup(range, Select::SYSTEM | Select::KEEP_EXCLUSIVE, owner_of(device));
        let mut migration = setup.map_err(|_range| Failure::Invalid)?;
        for index in 0..migration.entries().len() {
            let entry = migration.entries()[index];
            let mut pfn = None;
            match entry.source() {
                Source::Hole => pfn = fill(entry.page(), None),
                Source::System => {
                    migration.with_bytes(index, &mut |bytes| pfn = fill(entry.page(), Some(bytes)));
                }
                Source::Skipped(_) | Source::Private(_) | Source::Coherent(_) => {}
            }
            if let Some(pfn) = pfn
                && migration.set_frame(index, id, pfn).is_err()
            {
                self.memory(device).free(&[pfn]);
            }
        }
        let migration = migration.pages();
        for entry in migration.entries() {
            if let Some(frame) = entry.frame() {
                let write = may_write(entry.page());
                self.memory(device).allow_writes(frame.pfn, write);
                moved(entry.page(), frame.pfn, write);
            }
        }
        let busy = migration.entries().iter().filter(|entry| is_busy(entry)).map(Entry::page).collect();
        migration.finalize();
        Ok(busy)
    }

    pub(super) fn to_system(
        &self,
        device: Number,
        range: PageRange,
        drain: &mut Drain<'_>,
        moved: &mut Moved<'_>,
    ) -> Result<(), Failure> {
        let select = match device.kind() {
            MemKind::Private => Select::PRIVATE,
            MemKind::Coherent => Select::COHERENT,
        };
        let engine = self.runtime.engine();
        let setup = engine.migrate_setup(range, select, owner_of(device));
        let mut migration = setup.map_err(|_range| Failure::Invalid)?;
        let busy: Vec<_> =
            migration.entries().iter().filter(|entry| is_busy(entry)).map(Entry::page).collect();
        if !busy.is_empty() {
            // Shared by a fork, most likely. The write makes system pages of coherent ones: so they migrate.
            let frame = |page: &Vpn| {
                let PageState::Coherent { frame, .. } = engine.state(*page) else { return None };
                Some((*page, frame.pfn))
            };
            let frames: Vec<_> = busy.iter().filter_map(frame).collect();
            drop(migration);
            engine.kernel().unshare(range);
            let setup = engine.migrate_setup(range, select, owner_of(device));
            migration = setup.map_err(|_range| Failure::Invalid)?;
            let is_system = |page: Vpn| matches!(engine.state(page), PageState::System { .. });
            frames
                .into_iter()
                .filter(|(page, _)| is_system(*page))
                .for_each(|(page, pfn)| moved(page, pfn, true));
        }
        let mut no_memory = false;
        let mut bytes = Box::new([0; PAGE_SIZE]);
        for index in 0..migration.entries().len() {
            let entry = migration.entries()[index];
            if let Source::Private(frame) | Source::Coherent(frame) = entry.source()
                && drain(entry.page(), frame.pfn, &mut bytes[..])
            {
                no_memory |= migration.fill_system(index, &mut |to| to.copy_from_slice(&bytes[..])).is_err();
            }
        }
        let migration = migration.pages();
        for entry in migration.entries().iter().filter(|entry| entry.is_migrated()) {
            if let Source::Private(frame) | Source::Coherent(frame) = entry.source() {
                moved(entry.page(), frame.pfn, true);
            }
        }
        migration.finalize();
        if no_memory { Err(Failure::NoMemory) } else { Ok(()) }
    }

    /// Gives the device a page to itself. Returns where its bytes are.
    pub(super) fn isolate(&self, device: Number, page: Vpn) -> Result<u64, Failure> {
        let range = PageRange::new(page, 1);
        self.manage(range);
        let vma = self.vma(page).ok_or(Failure::Fault)?;
        if !vma.readable || !Writable::is_now(self.runtime, range) {
            return Err(Failure::Fault);
        }
        match self.runtime.engine().make_exclusive(page, owner_of(device)) {
            Ok(exclusive) => Ok(exclusive.addr),
            Err(ExclusiveError::ReadOnly(_) | ExclusiveError::Poisoned(_)) => Err(Failure::Fault),
            Err(ExclusiveError::Unmanaged(_)) => Err(Failure::Unsupported),
            Err(ExclusiveError::NoMemory(_)) => Err(Failure::NoMemory),
            Err(_) => Err(Failure::Busy),
        }
    }

    /// Brings home what is on the device, wherever that is. What a fault or an event has in its hands comes home or is
    /// given up by itself.
    pub(super) fn bring_home(&self, device: Number) {
        let Ok(id) = self.id(device) else { return };
        let all = DevicePfn(0)..DevicePfn(u32::MAX);
        while let Ok(mut migration) =
            self.runtime.engine().migrate_device_range(id, all.clone(), Select::COMPOUND, owner_of(device))
        {
            migration.fetch();
            if migration.pages().finalize() == 0 {
                break;
            }
        }
    }
}
