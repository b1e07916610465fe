//! The device as its units see it: what they share, and what a unit does when its TLB does not help.

use std::sync::{Arc, PoisonError, RwLock};

use hmm::heap::Inside;
use hmm_core::addr::{PageRange, Vpn};
use hmm_core::notifier::{Notifier, Owner};
use hmm_device::{Device, DevicePfn};

use crate::ahead::Ahead;
use crate::buffer::{BATCH, Buffer, Fault};
use crate::dropped::Dropped;
use crate::error::{DeviceFault, Why};
use crate::host::Host;
use crate::memory::Memory;
use crate::mirror::Mirror;
use crate::own::OwnSlice;
use crate::service::{Service, serve};
use crate::stats::Stats;
use crate::table::Entry;
use crate::tlb::Core;

/// The memories of the devices of a group, by their index: pages are copied directly between them.
pub(crate) type Peers = RwLock<Vec<(u8, Arc<Memory>)>>;

/// What all units of a device share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) host: Arc<dyn Host>,
    pub(crate) index: u8,
    pub(crate) owner: Owner,
    pub(crate) notifier: Notifier<Mirror>,
    pub(crate) cores: Arc<OwnSlice<Core>>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) dropped: Arc<Dropped>,
    /// Whether pages without hints that are only read are copied.
    pub(crate) copies_reads: bool,
    pub(crate) peers: Arc<Peers>,
    pub(crate) buffer: Buffer,
    pub(crate) service: Service,
    pub(crate) ahead: Ahead,
    pub(crate) stats: Arc<Stats>,
}

impl Shared {
    /// Has the TLB of a unit hold the page for this access, if it can be had. Called outside of an access window.
    ///
    /// `ahead` are further pages that the unit is about to access in the same way: their faults are raised along.
    #[cold]
    pub(crate) fn translate(
        &self,
        core: &Core,
        addr: u64,
        write: bool,
        ahead: u64,
    ) -> Result<(), DeviceFault> {
        let page = Vpn::of_addr(addr);
        loop {
            let entry = {
                let mut table = self.notifier.table();
                let entry = table.fill(core, page);
                if matches!(entry, Entry::Failed(_)) {
                    table.set(page, Entry::None);
                }
                entry
            };
            match entry {
                Entry::Frame { write: true, .. } | Entry::System { write: true } => return Ok(()),
                Entry::Frame { .. } | Entry::Copy { .. } | Entry::System { .. } if !write => return Ok(()),
                // Somebody else's write failed; ours is no write.
                Entry::Failed(Why::Permission) if !write => {}
                Entry::Failed(why) => return Err(DeviceFault { addr, write, why }),
                Entry::None | Entry::Frame { .. } | Entry::Copy { .. } | Entry::System { .. } => {}
            }
            self.raise(page, write, ahead);
        }
    }

    /// Puts the faults of a run into the buffer, and waits until they were served.
    fn raise(&self, page: Vpn, write: bool, ahead: u64) {
        let _inside = Inside::enter();
        let mut faults = [Fault { page, write }; BATCH];
        let mut nr = 1;
        if ahead > 0 {
            let table = self.notifier.table();
            for page in PageRange::new(page.add(1), ahead).iter() {
                let is_missing = match table.get(page) {
                    Entry::Frame { write: true, .. } | Entry::System { write: true } => false,
                    Entry::Frame { .. } | Entry::Copy { .. } | Entry::System { .. } => write,
                    Entry::None | Entry::Failed(_) => true,
                };
                if is_missing && nr < BATCH {
                    faults[nr] = Fault { page, write };
                    nr += 1;
                }
            }
        }
        self.buffer.fault(&faults[..nr], &mut |batch| serve(self, batch));
    }

    /// An access of a system page was refused by the CPU: what the table says of it is no longer true.
    #[cold]
    pub(crate) fn refused(&self, addr: u64) {
        self.stats.trapped.add(1);
        self.notifier.table().set(Vpn::of_addr(addr), Entry::None);
    }

    /// Gives up the copies of a range; how many there were. Nothing is copied back: the system has the pages.
    pub(crate) fn drop_copies(&self, range: PageRange) -> usize {
        let nr = self.notifier.table().clear_copies(range);
        if nr > 0 {
            // What others took away in the range meanwhile is theirs to wait for, and their wait is no shorter.
            self.dropped.reap(&self.cores);
        }
        nr
    }

    /// Copies a page of another device of the group into a new frame, or a huge page into a new large run.
    pub(crate) fn copy_from_peer(&self, peer: u8, from: DevicePfn, nr_pages: usize) -> Option<DevicePfn> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        let (_, memory) = peers.iter().find(|(index, _)| *index == peer && peer != self.index)?;
        let first = match nr_pages {
            1 => {
                let mut own = [DevicePfn(0)];
                (self.memory.alloc(&mut own) == 1).then_some(own[0])?
            }
            _ => self.memory.alloc_large()?,
        };
        let copies = |number| self.memory.copy_page(first.add(number), memory, from.add(number)).is_ok();
        if !(0..nr_pages).all(copies) {
            (0..nr_pages).for_each(|number| self.memory.free(&[first.add(number)]));
            return None;
        }
        Some(first)
    }
}
