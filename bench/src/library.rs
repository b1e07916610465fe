//! The worker's memory from the library, not from the allocator: an address space in the worker itself, in which threads serve
//! their own faults.

use crate::machine::Machine;
use crate::size::Size;
use anyhow::{Context, Result, bail};
use hmm::spec::{Backing, DeviceSpec};
use hmm::{AddressSpace, Faults, Region};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What the address space may use, as a worker is told it: `BYTES,DEVICE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Library {
    /// RAM for the working set.
    pub(crate) ram: Size,
    /// Where the rest is, as `hmm run --device` takes it.
    pub(crate) device: String,
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.ram.bytes, self.device)
    }
}

impl FromStr for Library {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (ram, device) = text.split_once(',').ok_or("write BYTES,DEVICE")?;
        Ok(Self { ram: ram.parse()?, device: device.to_owned() })
    }
}

/// What the address space says of the whole run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct SpaceFigures {
    budget_bytes: u64,
    peak_resident_bytes: u64,
    /// Bytes that left the program for good or for a while.
    stored_bytes: u64,
    /// Bytes that devices took and gave.
    pub(crate) moved_bytes: u64,
    /// What the devices take at the end.
    pub(crate) device_bytes: u64,
}

impl SpaceFigures {
    /// Why a run that succeeded does not count: its figures would compare something else than they claim.
    pub(crate) fn defect(&self, must_page: bool) -> Option<String> {
        let (peak, budget) = (self.peak_resident_bytes, self.budget_bytes);
        if must_page && self.stored_bytes == 0 {
            return Some("hmm took no page out of the worker's memory".to_owned());
        }
        (peak > budget).then(|| format!("hmm had {peak} bytes resident, with a budget of {budget}"))
    }
}

/// A region with the space that it is of.
#[derive(Debug)]
pub(crate) struct Managed {
    pub(crate) region: Region,
    space: AddressSpace,
}

impl Managed {
    /// Memory of so many bytes; none of it is touched yet.
    ///
    /// # Errors
    /// The library says why, or the device is one that its users make otherwise.
    pub(crate) fn new(bytes: usize, library: &Library) -> Result<Self> {
        let spec = DeviceSpec::parse(&library.device, Machine::look().ram_bytes)?;
        let Backing::Lz4 { capacity_bytes } = spec.backing else {
            bail!("only lz4 is measured in the library: give `--device lz4`");
        };
        let config = hmm_lz4::Lz4Config::new(usize::try_from(capacity_bytes).unwrap_or(usize::MAX));
        let pool = hmm_lz4::Lz4::new(config).context("cannot make the device")?;
        let builder = AddressSpace::builder().ram(library.ram.bytes).device(Arc::new(pool));
        let space = builder.faults(Faults::InThread).build()?;
        let region = space.alloc(bytes).context("cannot allocate the working set")?;
        Ok(Self { region, space })
    }

    /// What was done until now.
    pub(crate) fn figures(&self) -> SpaceFigures {
        const PAGE: u64 = crate::data::PAGE_BYTES as u64;
        let seen = self.space.stats();
        SpaceFigures {
            budget_bytes: seen.budget * PAGE,
            peak_resident_bytes: seen.peak_resident * PAGE,
            stored_bytes: (seen.stored + seen.clean) * PAGE,
            moved_bytes: (seen.fetched + seen.prefetched + seen.stored) * PAGE,
            device_bytes: seen.device_bytes,
        }
    }
}
