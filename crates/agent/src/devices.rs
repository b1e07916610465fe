//! The devices that the user named, in memory that is never managed.

use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hmm::device::Device;
use hmm::lz4::{Lz4, Lz4Config, PoolMemory};
use hmm::spec::{Backing, DeviceSpec};
use hmm::uapi::mapping::Advice;
use hmm::uapi::procfs::Procfs;
use hmm::uapi::{AddrRange, Fd, Mapping};
use hmm_file::{By, FileConfig, FileDevice, FileError, PATIENCE};

use crate::why::Why;

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

/// The files, with the numbers that the engine has for them. A child of a fork has what is in them, and makes others for what it
/// stores itself.
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

fn files() -> MutexGuard<'static, Vec<(u8, Arc<FileDevice>)>> {
    FILES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Before a fork: descriptors for the child, in the order in which it [expects](inherit) them, if it can have what is in the files.
pub(crate) fn begin_sharing(procfs: &Procfs) -> Option<Vec<Fd>> {
    let mut fds = Vec::new();
    let are_shared = files().iter().all(|(_, file)| match file.begin_sharing(procfs) {
        Ok(some) => {
            fds.extend(some);
            true
        }
        Err(_) => false,
    });
    if are_shared {
        return Some(fds);
    }
    end_sharing();
    None
}

/// After it, in the parent.
pub(crate) fn end_sharing() {
    files().iter().for_each(|(_, file)| file.end_sharing());
}

/// In the child: how many descriptors there are for it. `None`: something is in a file of which it has none.
pub(crate) fn nr_shared() -> Option<usize> {
    let files = files();
    files
        .iter()
        .all(|(_, file)| file.is_shared())
        .then(|| files.iter().map(|(_, file)| file.nr_shared()).sum())
}

/// In the child: what the numbers have to mean that the files know.
pub(crate) fn inherit(mut fds: Vec<Fd>) -> Result<Vec<(RawFd, Fd)>, FileError> {
    let mut meanings = Vec::new();
    for (_, file) in &*files() {
        let rest = fds.split_off(file.nr_shared().min(fds.len()));
        meanings.extend(file.inherit(fds)?);
        fds = rest;
    }
    Ok(meanings)
}

/// The numbers of the files of which a child cannot have what is in them.
pub(crate) fn unshareable(procfs: &Procfs) -> Vec<u8> {
    files().iter().filter(|(_, file)| !file.can_share(procfs)).map(|(number, _)| *number).collect()
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
            files().push((number, device.clone()));
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
