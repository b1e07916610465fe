//! The control page of `hmm run`: memory that the supervisor shares with every process under it.
//!
//! The supervisor creates it ([`Control::create`]) in a sealed memory file, complete before the program starts; the
//! agent in each process opens it ([`Control::open`]), claims a slot for its process ([`Control::claim_slot`]) and
//! counts there from then on. The budget is one for all of them, hence one [`Ledger`].
//!
//! # The protocol
//!
//! - The configuration is written before any process can see it, and never again.
//! - A slot is claimed by its process and freed by the supervisor, when the process is gone: see [`Slot`].
//! - The ledger is charged by the processes. What a process has charged is also in its slot
//!   ([`charged`](Stats::charged)), *after* it was charged and until *before* it is uncharged; so the supervisor can
//!   take back what a dead one had ([`Control::settle`]), exactly once, because it alone does so.
//! - The verdict is written by the first process that has one: see [`Verdict`].
//!
//! Everything is atomics, so that a process that is killed in the middle of a write leaves old or new values, never
//! undefined ones. The sharers trust each other as threads of one program do: they run as the same user, and any of
//! them could trace the others anyway.

mod page;
mod slot;
mod text;
mod verdict;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{Ordering, fence};

use hmm_core::ledger::Ledger;
#[cfg(doc)]
use hmm_core::stats::Stats;
use thiserror::Error;

use crate::spec::DeviceSpec;
use page::Page;

pub use slot::{ProcessId, Slot, SlotState};
pub use text::Text;
pub use verdict::{Figures, Verdict, VerdictKind};

/// Environment variable that tells the agent where its control page is.
pub const CONTROL_ENV: &str = "HMM_CONTROL";

/// Processes that can be under one supervisor at a time. Those beyond it are not managed.
pub const NR_SLOTS: usize = 128;

/// Devices that a run can have.
pub const MAX_DEVICES: usize = 4;

/// Why there is no control page.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The memory could not be had.
    #[error("cannot create the memory shared with the program: {0}")]
    Create(#[source] io::Error),
    /// The file could not be opened or mapped.
    #[error("cannot open the control page {path}: {source}")]
    Open {
        /// Its name.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file holds something else, or the control page of another version of hmm.
    #[error("{path} is not a control page of this version of hmm: {what}")]
    Foreign {
        /// Its name.
        path: PathBuf,
        /// What differs.
        what: &'static str,
    },
    /// More devices than there is room for.
    #[error("{given} devices were given, {MAX_DEVICES} is the most")]
    TooManyDevices {
        /// How many.
        given: usize,
    },
}

/// The budget of a run without one, in pages: all that an address space can hold.
pub const NO_BUDGET_PAGES: u64 = 1 << 36;

/// What happens when the budget is used up and no device has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFull {
    /// The process is ended, with a [`Verdict`].
    Kill,
    /// The budget grows.
    Grow,
}

/// What the user asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunConfig {
    /// The budget: pages of managed memory and staging that may be resident, over all processes. [`NO_BUDGET_PAGES`] when
    /// there is none.
    pub ram_pages: u64,
    /// What happens when it cannot be held.
    pub on_full: OnFull,
    /// Where the rest lives, in order of preference; at most [`MAX_DEVICES`].
    pub devices: Vec<DeviceSpec>,
    /// Whether the programs find Linux's HMM test devices, `/dev/hmm_dmirror0` and on.
    pub dmirror: bool,
}

impl RunConfig {
    /// Whether memory is bounded. If not, only what a driver asks for is managed.
    pub const fn has_budget(&self) -> bool {
        self.ram_pages < NO_BUDGET_PAGES
    }
}

/// A mapping of the control page. It stays for the life of the process: the agent has no moment at which it could go.
#[derive(Clone, Copy, Debug)]
pub struct Control {
    page: &'static Page,
}

impl Control {
    /// Creates a control page, as a memory file whose size is sealed.
    ///
    /// # Errors
    /// [`ControlError::Create`], [`ControlError::TooManyDevices`].
    pub fn create(config: &RunConfig) -> Result<(OwnedFd, Self), ControlError> {
        if config.devices.len() > MAX_DEVICES {
            return Err(ControlError::TooManyDevices { given: config.devices.len() });
        }
        let (fd, page) = Page::create().map_err(ControlError::Create)?;
        page.publish(config);
        Ok((fd, Self { page }))
    }

    /// Opens the control page of the supervisor.
    ///
    /// # Errors
    /// [`ControlError::Open`], or [`ControlError::Foreign`] when the file is no control page of this version.
    pub fn open(path: &Path) -> Result<Self, ControlError> {
        let page = Page::open(path).map_err(|source| ControlError::Open { path: path.to_owned(), source })?;
        match page.and_then(Page::check) {
            Ok(page) => Ok(Self { page }),
            Err(what) => Err(ControlError::Foreign { path: path.to_owned(), what }),
        }
    }

    /// What the user asked for.
    pub fn config(&self) -> RunConfig {
        self.page.config()
    }

    /// Whether memory is bounded, see [`RunConfig::has_budget`].
    pub fn has_budget(&self) -> bool {
        self.ledger().budget() < NO_BUDGET_PAGES
    }

    /// The account of all processes.
    pub fn ledger(&self) -> &'static Ledger {
        &self.page.ledger
    }

    /// Claims a slot for the process: to be called by its agent, at its start and in the child of a fork. A process that
    /// had one (and executed another program since) gets the same again, with its charges taken back.
    ///
    /// `None` when all are taken, or when the process cannot be found in `/proc`.
    pub fn claim_slot(&self, pid: u32) -> Option<&'static Slot> {
        let (process, name) = ProcessId::of_pid(pid).ok()?;
        let (slots, name) = (&self.page.slots, name.as_str());
        if let Some(slot) = slots.iter().find(|slot| slot.owner() == Some(process)) {
            slot.begin_anew(&self.page.ledger, name);
            return Some(slot);
        }
        // Counted first: `slots` goes by it, and this process may be killed anywhere.
        self.page.nr_askers.fetch_add(1, Ordering::Relaxed);
        let claimed = slots.iter().find(|slot| slot.try_claim(process, name));
        if claimed.is_none() {
            self.page.nr_turned_away.fetch_add(1, Ordering::Relaxed);
        }
        claimed
    }

    /// Every slot that was ever claimed. Those without an owner still hold the counts of the owners they had.
    pub fn slots(&self) -> impl Iterator<Item = &'static Slot> {
        // Claims take the first free slot, so one asker more reaches at most one slot further.
        let nr_askers = self.page.nr_askers.load(Ordering::Relaxed);
        self.page.slots.iter().take(usize::try_from(nr_askers).unwrap_or(NR_SLOTS))
    }

    /// How many processes have had a slot.
    pub fn nr_processes(&self) -> u64 {
        self.page.nr_askers.load(Ordering::Relaxed).saturating_sub(self.nr_turned_away())
    }

    /// How many processes found no free slot, and are not managed.
    pub fn nr_turned_away(&self) -> u64 {
        self.page.nr_turned_away.load(Ordering::Relaxed)
    }

    /// Takes back what the slot's owner has charged, and frees the slot. To be called by the supervisor, when the owner
    /// is gone.
    pub fn settle(&self, slot: &Slot) {
        slot.settle(&self.page.ledger);
    }

    /// Takes back charges that no slot accounts for: those of processes killed between the charge and its count. Only
    /// possible when no process is left. To be called by the supervisor.
    pub fn forgive_the_dead(&self) {
        let charged = self.page.ledger.charged();
        // Pairs with the fence in `Slot::try_claim`: whose charge is in `charged`, his claim is seen below.
        fence(Ordering::Acquire);
        if charged > 0 && self.page.slots.iter().all(|slot| slot.owner().is_none()) {
            self.page.ledger.uncharge(charged);
        }
    }

    /// Records why a process cannot go on. Only the first record counts; says whether this one was it. Allocates nothing.
    pub fn set_verdict(&self, verdict: &Verdict) -> bool {
        self.page.verdict.publish(verdict)
    }

    /// What was recorded.
    pub fn verdict(&self) -> Option<Verdict> {
        self.page.verdict.read()
    }
}

#[cfg(test)]
mod tests;
