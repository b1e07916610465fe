//! The devices that the user named, in memory that is never managed.

use std::ptr::NonNull;
use std::sync::Arc;

use hmm::device::Device;
use hmm::device::decorate::{Faulty, Rule};
use hmm::lz4::{Lz4, Lz4Config, PoolMemory};
use hmm::spec::{Backing, DeviceSpec};
use hmm::uapi::mapping::Advice;
use hmm::uapi::{AddrRange, Mapping};

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
        let _ = self.0.advise(offset, len, Advice::DontNeed);
    }
}

/// Makes the device, and tells where its memory is.
pub(crate) fn open(spec: &DeviceSpec) -> Result<(Arc<dyn Device>, AddrRange), String> {
    let (device, range) = open_backing(spec)?;
    Ok(match spec.lost_after {
        Some(calls) => (Arc::new(Faulty::new(device, [Rule::lost_from(calls.saturating_add(1))])), range),
        None => (device, range),
    })
}

fn open_backing(spec: &DeviceSpec) -> Result<(Arc<dyn Device>, AddrRange), String> {
    match spec.backing {
        Backing::Lz4 { capacity_bytes } => {
            let config = Lz4Config::new(usize::try_from(capacity_bytes).unwrap_or(usize::MAX));
            let pool = Mapping::anonymous(config.pool_bytes())
                .map_err(|errno| format!("cannot reserve {} bytes for lz4: {errno}", config.pool_bytes()))?;
            // A huge page would make resident what was not charged. Kernels without huge pages refuse: all is well.
            let _ = pool.advise(0, pool.len(), Advice::NoHugePage);
            let range = pool.range();
            let device = Lz4::in_memory(PoolMapping(pool), config).map_err(|error| error.to_string())?;
            Ok((Arc::new(device), range))
        }
        _ => Err(format!("this library does not know the device {}", spec.name())),
    }
}
