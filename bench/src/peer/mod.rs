//! The kernel's answers to the same need, each under a memory cgroup: swap on compressed RAM (zram), swap on a file, the same
//! with zswap in front of it, and no swap at all but a mapping of a file.
//!
//! Everything is set up for one repetition and taken down after it, so that other measurements run on a machine without
//! swap, and every repetition finds an empty device. Taking down is the business of `Drop`; signals end a bench by way of
//! it ([`crate::child`]). A bench that was killed outright leaves its device behind: swap areas carry a label of ours, or a
//! name, by which the next bench finds and removes them. A lock file sees to it that what it finds is nobody's any more.

mod area;
mod files;
mod zram;
mod zswap;

use crate::cgroup::MemoryCgroup;
use anyhow::{Context, Result, bail};
use files::{MappedFile, SwapFile};
use std::fs::{File, TryLockError};
use std::path::Path;
use zram::ZramSwap;
use zswap::Zswap;

const LOCK_FILE: &str = "/run/hmm-bench.lock";

/// Where the kernel keeps what is not resident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Compressed RAM.
    Zram,
    /// Compressed RAM, and behind that a file.
    Zswap,
    /// A file.
    SwapFile,
    /// The file that the working set is a mapping of.
    Mapped,
}

/// What there is room for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room<'a> {
    /// RAM.
    pub(crate) limit_bytes: u64,
    /// Memory in all.
    pub(crate) size_bytes: u64,
    /// Where files are made.
    pub(crate) dir: &'a Path,
}

/// The right to have a zram device, swap and a cgroup; one bench on the machine has it.
#[derive(Debug)]
struct Claim(#[expect(dead_code, reason = "held for its lock")] File);

impl Claim {
    fn take() -> Result<Self> {
        let file = File::options().create(true).truncate(false).write(true).open(LOCK_FILE);
        let file = file.with_context(|| format!("cannot open {LOCK_FILE}"))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => {
                bail!("another hmm bench is measuring on this machine; wait for its end")
            }
            Err(TryLockError::Error(error)) => Err(error).context(format!("cannot lock {LOCK_FILE}")),
        }
    }
}

#[derive(Debug)]
enum Store {
    Zram(ZramSwap),
    SwapFile(#[expect(dead_code, reason = "held for its drop")] SwapFile),
    Mapped(MappedFile),
}

/// A cgroup, and where to page to. Fields are dropped in order: nobody uses the swap when it is taken away, and zswap gives
/// back what it has before it is as it was.
#[derive(Debug)]
pub(crate) struct KernelPeer {
    cgroup: MemoryCgroup,
    store: Store,
    zswap: Option<Zswap>,
    _claim: Claim,
}

impl KernelPeer {
    /// Sets everything up for a worker.
    ///
    /// # Errors
    /// Not root, no zram, no lz4 in it, no memory cgroup, no zswap, a file system that cannot be swapped to: the message is
    /// the reason to skip the measurement.
    pub(crate) fn set_up(kind: Kind, room: Room<'_>) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("needs root");
        }
        let claim = Claim::take()?;
        // In this order: nobody may need the swap any more.
        MemoryCgroup::remove_leftover()?;
        zram::remove_leftovers();
        files::remove_leftovers();
        zswap::restore();
        // Room to swap everything twice, because a page that is read again keeps its place.
        let swap_bytes = 2 * room.size_bytes;
        let store = match kind {
            Kind::Zram => Store::Zram(ZramSwap::set_up(swap_bytes)?),
            Kind::Zswap | Kind::SwapFile => Store::SwapFile(SwapFile::set_up(room.dir, swap_bytes)?),
            Kind::Mapped => Store::Mapped(MappedFile::set_up(room.dir, room.size_bytes)?),
        };
        let zswap = (kind == Kind::Zswap).then(Zswap::set_up).transpose()?;
        let cgroup = MemoryCgroup::create(room.limit_bytes)?;
        Ok(Self { cgroup, store, zswap, _claim: claim })
    }

    /// The cgroup that a worker has to join.
    pub(crate) const fn cgroup(&self) -> &MemoryCgroup {
        &self.cgroup
    }

    /// The file that the working set has to be a mapping of, if it has to.
    pub(crate) fn mapped_file(&self) -> Option<&Path> {
        if let Store::Mapped(file) = &self.store { Some(file.path()) } else { None }
    }

    /// Most RAM beside the limit that has held what was away, in bytes.
    ///
    /// # Errors
    /// zram does not tell.
    pub(crate) fn peak_bytes(&self) -> Result<Option<u64>> {
        match (&self.store, &self.zswap) {
            (Store::Zram(zram), _) => zram.peak_bytes().map(Some),
            (_, zswap) => Ok(zswap.as_ref().map(Zswap::peak_bytes)),
        }
    }

    /// What is to be known of the figures, if anything.
    pub(crate) fn note(&self) -> Option<String> {
        self.zswap.as_ref()?.note()
    }
}
