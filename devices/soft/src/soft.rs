//! The device as its users see it: built, launched, told beforehand what to bring.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hmm::AddressSpace;
use hmm::heap::Inside;
use hmm_core::addr::{BLOCK_PAGES, PAGE_SIZE, PageRange};
use hmm_core::hints::Hint;
use hmm_core::notifier::Owner;
use hmm_device::Device as _;

use crate::ahead::Ahead;
use crate::buffer::Buffer;
use crate::device::{Peers, Shared};
use crate::dropped::Dropped;
use crate::duplicate::duplicate;
use crate::error::{BuildError, DeviceFault, LaunchError};
use crate::host::Host;
use crate::memory::Memory;
use crate::mirror::Mirror;
use crate::own::OwnSlice;
use crate::service::{Service, blocks_of, bring};
use crate::space::Space;
use crate::stats::{Snapshot, Stats};
use crate::table::Table;
use crate::tlb::{self, Core};
use crate::trap::{self, Installed};
use crate::unit::Unit;

/// Nodes of a page table unless said otherwise: 64 MiB at most, for 32 GiB of densely used addresses.
const NR_NODES: usize = 1 << 14;

/// Devices that copy pages to each other directly: they have one owner, so that each may see the others' frames.
#[derive(Clone, Debug)]
pub struct Group {
    owner: Owner,
    peers: Arc<Peers>,
}

impl Group {
    /// A group without devices.
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Looked into in the middle of migrations: never managed.
        let _inside = Inside::enter();
        // Owners of other drivers are unlikely to begin so.
        let owner = Owner(0x736f_6674_0000_0000 | NEXT.fetch_add(1, Ordering::Relaxed));
        Self { owner, peers: Arc::default() }
    }
}

impl Default for Group {
    fn default() -> Self {
        Self::new()
    }
}

/// How a device is to be.
#[derive(Debug)]
pub struct Builder {
    host: Arc<dyn Host>,
    memory_bytes: usize,
    nr_units: usize,
    nr_nodes: usize,
    copies_reads: bool,
    group: Group,
}

impl Builder {
    pub(crate) fn new(host: Arc<dyn Host>) -> Self {
        Self {
            host,
            memory_bytes: 64 << 20,
            nr_units: 1,
            nr_nodes: NR_NODES,
            copies_reads: false,
            group: Group::new(),
        }
    }

    /// Bytes of the device's memory; 64 MiB unless said otherwise. It takes RAM as it is used.
    pub fn memory(mut self, bytes: usize) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// Compute units, each a thread while a kernel runs; 1 unless said otherwise.
    pub fn units(mut self, nr_units: usize) -> Self {
        self.nr_units = nr_units;
        self
    }

    /// Nodes of the page table, 4 KiB each.
    pub fn page_table_nodes(mut self, nr_nodes: usize) -> Self {
        self.nr_nodes = nr_nodes;
        self
    }

    /// Has it copy pages that it only reads, whether or not the program says that they are read mostly: for a device that
    /// is to behave as one for which system memory is far. Else it reads them where they are.
    pub fn copy_reads(mut self, copies: bool) -> Self {
        self.copies_reads = copies;
        self
    }

    /// The group that it belongs to; one of its own unless said otherwise.
    pub fn group(mut self, group: &Group) -> Self {
        self.group = group.clone();
        self
    }

    /// Builds the device, and adds it to the address space.
    ///
    /// # Errors
    /// See [`BuildError`]; nothing is left behind but the handler of SIGSEGV and SIGBUS.
    pub fn build(self) -> Result<Soft, BuildError> {
        let nr_frames = self.memory_bytes / PAGE_SIZE;
        if self.nr_units == 0 || nr_frames == 0 || u32::try_from(nr_frames).is_err() {
            return Err(BuildError::Size);
        }
        // Callbacks run on threads that serve faults: what they touch must be memory that is never managed.
        let _inside = Inside::enter();
        let trap = trap::install()?;
        tlb::register().map_err(BuildError::Barrier)?;
        let cores = Arc::new(OwnSlice::<Core>::new(self.nr_units).map_err(BuildError::Memory)?);
        cores.iter().for_each(Core::reset);
        let memory = Arc::new(Memory::new(nr_frames).map_err(BuildError::Memory)?);
        let dropped = Arc::new(Dropped::new(Arc::clone(&memory)).map_err(BuildError::Memory)?);
        let table = Table::new(self.nr_nodes, Arc::clone(&cores), Arc::clone(&dropped), memory.addr());
        let table = table.map_err(BuildError::Memory)?;
        let stats = Arc::new(Stats::default());
        let mirror = Mirror::new(Arc::clone(&cores), Arc::clone(&dropped), Arc::clone(&stats));
        let Group { owner, peers } = self.group;
        let notifier = self.host.watch(table, mirror).map_err(BuildError::Host)?;
        let index = self.host.add(Arc::clone(&memory) as _, owner).map_err(BuildError::Host)?;
        peers.write().unwrap_or_else(PoisonError::into_inner).push((index, Arc::clone(&memory)));
        let service = Service::new(nr_frames);
        let ahead = Ahead::default();
        let host = self.host;
        let buffer = Buffer::default();
        let copies_reads = self.copies_reads;
        let shared = Shared {
            host,
            index,
            owner,
            notifier,
            cores,
            memory,
            dropped,
            copies_reads,
            peers,
            buffer,
            service,
            ahead,
            stats,
        };
        Ok(Soft { shared: Arc::new(shared), trap, launching: Mutex::new(()) })
    }
}

/// A software accelerator, see the [crate].
#[derive(Debug)]
pub struct Soft {
    shared: Arc<Shared>,
    trap: Installed,
    /// Held while a kernel runs.
    launching: Mutex<()>,
}

impl Soft {
    /// Says how a device is to be.
    ///
    /// # Errors
    /// [`BuildError::Maps`]: the process's mappings cannot be read.
    pub fn builder(space: &AddressSpace) -> Result<Builder, BuildError> {
        let _inside = Inside::enter();
        if space.faults() == hmm::Faults::InThread {
            return Err(BuildError::InThread);
        }
        Ok(Builder::new(Arc::new(Space::new(space).map_err(BuildError::Maps)?)))
    }

    /// Runs a kernel on all units, and returns when it has ended on all of them. One kernel at a time: others wait.
    ///
    /// # Errors
    /// [`LaunchError::Fault`] with the first error that the kernel gave back; it ran on on the other units. The others:
    /// nothing has run, or, of [`LaunchError::Thread`], not on all units.
    ///
    /// # Safety
    /// For the memory that the kernel accesses by [`Ptr`](crate::Ptr), the caller promises what it would if the kernel
    /// were threads of the program that use raw pointers:
    /// - what it writes is memory of which, while it runs, nobody holds a reference that says it does not change, nor reads
    ///   or writes it otherwise than atomically; what it reads, nobody writes but atomically;
    /// - `read`, `write`, `chunks` and `chunks_mut` are not atomic: what they access, nobody writes at the same time;
    /// - what it writes are valid values of the types that the program reads there.
    ///
    /// Memory that is unmapped while the kernel runs is no error of the caller's: the kernel has a fault.
    pub unsafe fn launch<F>(&self, kernel: F) -> Result<(), LaunchError>
    where
        F: Fn(&Unit<'_>) -> Result<(), DeviceFault> + Sync,
    {
        let _one = self.launching.lock().unwrap_or_else(PoisonError::into_inner);
        self.trap.check()?;
        self.shared.host.settle();
        let first = Mutex::new(None);
        let run = |id: usize| {
            trap::unblock();
            self.shared.host.enter();
            let result = kernel(&Unit::new(&self.shared, id));
            if let Err(fault) = result {
                first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fault);
            }
        };
        let ahead = &self.shared.ahead;
        std::thread::scope(|scope| {
            let _ended = ahead.until_dropped();
            // Without a helper pages are brought when units fault.
            let _helper = named("hmm-ahead").spawn_scoped(scope, || {
                self.shared.host.enter();
                ahead.run(&self.shared);
            });
            let run = &run;
            let units: Vec<_> = (0..self.shared.cores.len())
                .map(|id| named(&format!("hmm-unit-{id}")).spawn_scoped(scope, move || run(id)))
                .collect::<Result<_, _>>()
                .map_err(LaunchError::Thread)?;
            let panicked = units.into_iter().filter_map(|unit| unit.join().err()).next();
            panicked.map_or(Ok::<_, LaunchError>(()), |why| std::panic::resume_unwind(why))
        })?;
        let fault = first.into_inner().unwrap_or_else(PoisonError::into_inner);
        fault.map_or(Ok(()), |fault| Err(fault.into()))
    }

    /// Brings the pages of some memory to the device before they are used, as far as they fit and can migrate; what is
    /// said to be read mostly is copied. Returns how many came.
    pub fn prefetch(&self, addr: u64, nr_bytes: usize) -> usize {
        let _inside = Inside::enter();
        let device = &self.shared;
        let mut state = device.service.lock();
        let range = pages_of(addr, nr_bytes);
        let most = range.nr_pages().min(device.memory.nr_frames() as u64);
        let range = PageRange::new(range.start, most);
        let mut nr = 0;
        for mut rest in blocks_of(range) {
            while !rest.is_empty() {
                let (hint, same) = device.host.hint(rest.start);
                let part = rest.intersect(same);
                nr += match hint.read_mostly {
                    true => duplicate(device, &mut state, part, &[]),
                    false => bring(device, &mut state, part),
                };
                rest.start = part.end;
            }
        }
        nr
    }

    /// Brings what the device has of some memory home, and gives up its copies. Returns how many pages left.
    pub fn evict(&self, addr: u64, nr_bytes: usize) -> usize {
        let _inside = Inside::enter();
        let mut state = self.shared.service.lock();
        let crate::service::State { thrash, room, .. } = &mut *state;
        room.evict(&self.shared, thrash, pages_of(addr, nr_bytes))
    }

    /// Index of the device in its address space, by which hints name it.
    pub fn index(&self) -> u8 {
        self.shared.index
    }

    /// Who owns its frames.
    pub fn owner(&self) -> Owner {
        self.shared.owner
    }

    /// How many compute units it has.
    pub fn nr_units(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.shared.cores.len()).unwrap_or(NonZeroUsize::MIN)
    }

    /// What it has done.
    pub fn stats(&self) -> Snapshot {
        self.shared.stats.snapshot()
    }

    /// Pages in its memory now.
    pub fn resident_pages(&self) -> u64 {
        self.shared.memory.usage().frames
    }

    /// The hint that the device would go by for an address.
    pub fn hint(&self, addr: u64) -> Hint {
        self.shared.host.hint(hmm_core::addr::Vpn::of_addr(addr)).0
    }
}

impl Drop for Soft {
    fn drop(&mut self) {
        // No kernel runs, because a launch borrows the device.
        self.shared.host.remove(self.shared.index);
        let mut peers = self.shared.peers.write().unwrap_or_else(PoisonError::into_inner);
        peers.retain(|(index, _)| *index != self.shared.index);
    }
}

fn named(name: &str) -> std::thread::Builder {
    std::thread::Builder::new().name(name.to_owned())
}

fn pages_of(addr: u64, nr_bytes: usize) -> PageRange {
    const { assert!(BLOCK_PAGES <= 512, "a block is migrated in one call") };
    PageRange::of_bytes(addr, addr.saturating_add(nr_bytes as u64))
}
