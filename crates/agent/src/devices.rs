//! The devices that the user named, in memory that is never managed.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hmm::core::Engine;
use hmm::core::kernel::Kernel;
use hmm::device::Device;
use hmm::lz4::{Lz4, Lz4Config, PoolMemory};
use hmm::mm::Mm;
use hmm::spec::{Backing, DeviceSpec};
use hmm::uapi::mapping::Advice;
use hmm::uapi::{AddrRange, Mapping};
use hmm_file::{By, FileConfig, FileDevice, PATIENCE};

use crate::why::Why;

/// One in so many pages of the budget is little.
const LITTLE_SHARE: u64 = 4;

/// A pool's memory, whose addresses are known.
#[derive(Debug)]
struct PoolMapping(Mapping);

// SAFETY: a private anonymous mapping is page aligned, zeroed and ours alone until it is dropped; pages of it change
// only in `release`.
unsafe impl PoolMemory for PoolMapping {
    fn base(&self) -> NonNull<u8> {
        NonNull::new(self.0.as_ptr()).unwrap_or(NonNull::dangling())
    }

    fn len_bytes(&self) -> usize {
        self.0.len()
    }

    fn release(&self, offset: usize, len: usize) {
        // When it fails, the pages stay resident.
        let _ = self.0.advise(offset, len, Advice::DontNeedLocked);
    }
}

/// The files, with the numbers that the engine has for them. A fork cannot share them: a frame has no count of the
/// processes that have it.
static FILES: Mutex<Vec<(u8, Arc<FileDevice>)>> = Mutex::new(Vec::new());

/// Makes the device of that number, and tells where its memory is that is not from the agent's allocator.
pub(crate) fn open(number: u8, spec: &DeviceSpec) -> Result<(Arc<dyn Device>, Vec<AddrRange>), Why> {
    let (device, ranges) = open_backing(number, spec)?;
    Ok((spec.rehearsal.of(device, patience(spec)), ranges))
}

/// For how long a transfer is waited for. `None`: for ever.
fn patience(spec: &DeviceSpec) -> Option<Duration> {
    let patience = spec.patience_s.map_or(PATIENCE, Duration::from_secs);
    (!patience.is_zero()).then_some(patience)
}

/// The files that hold nothing, for whoever makes them anew. `None`: one of them holds something.
pub(crate) fn empty_files() -> Option<Vec<Arc<FileDevice>>> {
    let files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let is_empty = files.iter().all(|(_, file)| file.usage().frames == 0);
    is_empty.then(|| files.iter().map(|(_, file)| file.clone()).collect())
}

/// Brings what is in files home, as far as it is little: so that a fork is possible. Calls `meanwhile` now and then.
pub(crate) fn empty_files_if_little(engine: &Engine<Mm>, meanwhile: &mut dyn FnMut()) {
    let numbers: Vec<u8> =
        FILES.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(number, _)| *number).collect();
    let enough = usize::try_from(engine.kernel().ledger().budget() / LITTLE_SHARE).unwrap_or(usize::MAX);
    let mut pages = Vec::new();
    for number in numbers {
        engine.for_each_on(number, &mut |page| {
            if pages.len() <= enough {
                pages.push(page);
            }
        });
    }
    if pages.len() > enough {
        return;
    }
    for some in pages.chunks(64) {
        // What does not come makes the fork fail.
        some.iter().for_each(|page| _ = engine.fault(*page));
        meanwhile();
    }
}

fn open_backing(number: u8, spec: &DeviceSpec) -> Result<(Arc<dyn Device>, Vec<AddrRange>), Why> {
    match &spec.backing {
        Backing::File { dir, capacity_bytes, compress } => {
            // A ring would have threads of its own in the program.
            let config = FileConfig::new(dir, *capacity_bytes)
                .with_requests(By::Aio)
                .with_compression(*compress)
                .with_patience(patience(spec));
            let device = Arc::new(FileDevice::create(&config).map_err(Why::all)?);
            FILES.lock().unwrap_or_else(PoisonError::into_inner).push((number, device.clone()));
            let ranges = device.own_ranges().to_vec();
            Ok((device, ranges))
        }
        Backing::Lz4 { capacity_bytes } => {
            let config = Lz4Config::new(usize::try_from(*capacity_bytes).unwrap_or(usize::MAX));
            let pool = Mapping::anonymous(config.pool_bytes())
                .map_err(Why::not(format!("cannot reserve {} bytes for lz4", config.pool_bytes())))?;
            // A huge page would make resident what was not charged. Kernels without huge pages refuse: all is well.
            let _ = pool.advise(0, pool.len(), Advice::NoHugePage);
            pool.leave_out_of_dumps();
            let range = pool.range();
            let device = Lz4::in_memory(PoolMapping(pool), config).map_err(Why::all)?;
            Ok((Arc::new(device), vec![range]))
        }
        _ => Err("this library does not know the device".into()),
    }
}
