//! Migration, commanded by the program.
//!
//! A range is migrated a chunk at a time, each inside one mapping; a chunk that fails leaves those before it where they
//! are now.

use hmm_core::addr::{PageRange, Vpn};
use hmm_device::{Access, Device, DevicePfn, Fetch, MemKind, Store};

use crate::abi::Failure;
use crate::mirror::Mirror;
use crate::space::{Request, Space};
use crate::table::{Entry, Place};

/// Pages of a chunk.
const CHUNK_PAGES: u64 = 512;

impl<S: Space> Mirror<S> {
    pub(crate) fn migrate_to_device(&self, range: PageRange) -> Result<(), Failure> {
        self.for_chunks(range, &mut |chunk| {
            let collided = self.notifier.watch().migrating(|| self.chunk_to_device(chunk))?;
            if collided {
                // Something else has changed meanwhile: what is there now is looked at anew. What fails here, reading
                // will tell.
                let _ = self.fault(chunk, Request::Read);
            }
            Ok(())
        })
    }

    /// Returns whether entries could not be made because the range was changing.
    fn chunk_to_device(&self, chunk: PageRange) -> Result<bool, Failure> {
        let seq = self.notifier.read_begin();
        let mut collided = false;
        let mut moved = |page: Vpn, pfn: DevicePfn, write: bool| {
            // A coherent frame is mapped in the program: that is where the device finds it, too.
            let place = match self.device.kind() {
                MemKind::Private => Place::Frame(pfn),
                MemKind::Coherent => Place::System { zero: false },
            };
            let entered = self.notifier.install_own(seq, |table| table.set(page, Entry { place, write }));
            collided |= entered.is_err();
        };
        let zeroes = [0; hmm_device::PAGE_SIZE];
        let mut fill = |_: Vpn, bytes: Option<&[u8]>| self.store_new(bytes.unwrap_or(&zeroes));
        self.space.migrate_to_device(self.device, chunk, &mut fill, &mut moved)?;
        Ok(collided)
    }

    fn store_new(&self, bytes: &[u8]) -> Option<DevicePfn> {
        if self.take_failure() {
            return None;
        }
        let mut frames = [DevicePfn(0)];
        if self.memory.alloc(&mut frames) == 0 {
            return None;
        }
        let stored = self.memory.store(Store { frames: &frames, bytes, access: Access::Random });
        if stored.stop.is_some() {
            self.memory.free(&frames);
            return None;
        }
        Some(frames[0])
    }

    /// Returns how many pages have migrated.
    pub(crate) fn migrate_to_system(&self, range: PageRange) -> Result<u64, Failure> {
        let mut nr_migrated = 0;
        self.for_chunks(range, &mut |chunk| {
            self.notifier.watch().migrating(|| self.chunk_to_system(chunk, &mut nr_migrated))
        })?;
        Ok(nr_migrated)
    }

    fn chunk_to_system(&self, chunk: PageRange, nr_migrated: &mut u64) -> Result<(), Failure> {
        let mut no_memory = false;
        let mut drain = |_: Vpn, pfn: DevicePfn, bytes: &mut [u8]| {
            no_memory |= self.take_failure();
            !no_memory && self.memory.fetch(Fetch { frames: &[pfn], bytes }).stop.is_none()
        };
        let mut moved = |page: Vpn, _: DevicePfn, _: bool| {
            self.notifier.table().remove(PageRange::new(page, 1));
            *nr_migrated += 1;
        };
        self.space.migrate_to_system(self.device, chunk, &mut drain, &mut moved)?;
        if no_memory { Err(Failure::NoMemory) } else { Ok(()) }
    }

    fn for_chunks(
        &self,
        range: PageRange,
        each: &mut dyn FnMut(PageRange) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut at = range.start;
        while at < range.end {
            let vma = self.space.vma(at).filter(|vma| vma.readable).ok_or(Failure::Invalid)?;
            if !vma.can_migrate {
                return Err(Failure::Invalid);
            }
            let end = at.add(CHUNK_PAGES).min(range.end).min(vma.end);
            each(PageRange { start: at, end })?;
            at = end;
        }
        Ok(())
    }
}
