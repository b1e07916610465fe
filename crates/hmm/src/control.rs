//! The control page of `hmm run`: memory that the supervisor shares with every process under it.
//!
//! The supervisor creates it ([`Control::create`]) in a sealed memory file, complete before the program starts; the
//! agent in each process opens it ([`Control::open`]), claims a slot for its process ([`Control::claim_slot`]) and
//! counts there from then on. The budget is one for all of them, hence one [`Ledger`]; or each has one to itself, and a
//! ledger that goes with its slot ([`RunConfig::per_process`]).
//!
//! # The protocol
//!
//! - The configuration is not here, but in the environment of every program ([`RunConfig`]): who may write here is not
//!   to say on which device another process keeps its pages.
//! - A slot is claimed by its process and freed by the supervisor, when the process is gone: see [`Slot`].
//! - The ledger is charged by the processes, each in the share that goes with its slot ([`Control::share`]). The supervisor
//!   clears the share of a dead one ([`Control::settle`]).
//! - A supervisor may be late: it is one process among many on a busy machine. Who finds no slot, or no memory for long, does
//!   its work ([`Control::settle_the_dead`]), if the supervisor has the same pid here: else pids are others, or hidden.
//! - Before a fork the parent claims a slot for the child ([`Control::claim_for_child`]), and what the child is going to have
//!   is charged there. The child makes it its own by one exchange of a word ([`Control::take_over`]). So whoever is killed
//!   at whatever moment, each page is charged to one process, or to none that is left.
//! - The verdict is written by the first process that has one: see [`Verdict`].
//!
//! Everything is atomics, so that a process that is killed in the middle of a write leaves old or new values, never
//! undefined ones. Whatever a sharer writes here, the others stay sound: it can take the budget from them.

mod config;
mod page;
mod slot;
mod text;
mod trace;
mod verdict;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use hmm_core::ledger::{Ledger, NR_SHARES, Share};
use hmm_uapi::procfs::Procfs;
use thiserror::Error;

use crate::door;
use page::Page;

pub use config::{CONFIG_ENV, ConfigError, NO_BUDGET_PAGES, OnFull, RunConfig};
pub use slot::{ProcessId, Slot, SlotState};
pub use text::Text;
pub use trace::Trace;
pub use verdict::{Figures, Verdict, VerdictKind};

/// Environment variable that tells the agent where its control page is.
pub const CONTROL_ENV: &str = "HMM_CONTROL";

/// Processes that can be under one supervisor at a time. Those beyond it are not managed.
pub const NR_SLOTS: usize = NR_SHARES;

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

/// How a process came to the control page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// It could open it: it is of the supervisor's user.
    Path,
    /// The supervisor gave it to a process of another user.
    Door,
}

/// A mapping of the control page, and the run's configuration. They stay for the life of the process: the agent has no moment at
/// which they could go.
#[derive(Clone, Copy, Debug)]
pub struct Control {
    page: &'static Page,
    config: &'static RunConfig,
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
        let supervisor = ProcessId::of_pid(std::process::id()).map_or(0, |(process, _)| process.word());
        page.supervisor.store(supervisor, Ordering::Relaxed);
        page.publish(config.ram_pages);
        Ok((fd, Self::new(page, config.clone())))
    }

    fn new(page: &'static Page, config: RunConfig) -> Self {
        Self { page, config: Box::leak(Box::new(config)) }
    }

    /// Opens the control page of the supervisor, of a run with this configuration.
    ///
    /// # Errors
    /// [`ControlError::Open`], or [`ControlError::Foreign`] when the file is no control page of this version.
    pub fn open(path: &Path, config: RunConfig) -> Result<Self, ControlError> {
        Ok(Self::new(open(path)?, config))
    }

    /// As [`open`](Self::open); a program of another user than the supervisor's, who may not, asks at the [`door`].
    ///
    /// # Errors
    /// As for `open`: what that said, if the door stays closed, too.
    pub fn find(path: &Path, door: Option<&Path>, config: RunConfig) -> Result<(Self, By), ControlError> {
        find(path, door).map(|(page, by)| (Self::new(page, config), by))
    }

    /// Whether there is one to be found.
    pub fn is_there(path: &Path, door: Option<&Path>) -> bool {
        find(path, door).is_ok()
    }

    /// What the user asked for.
    pub const fn config(&self) -> &'static RunConfig {
        self.config
    }

    /// Whether memory is bounded, see [`RunConfig::has_budget`].
    pub fn has_budget(&self) -> bool {
        self.page.ledger.budget() < NO_BUDGET_PAGES
    }

    /// The account that the process in a slot of this page charges: all processes', or its own.
    pub fn ledger_of(&self, slot: &Slot) -> &'static Ledger {
        if self.config.per_process { &self.page.ledgers[self.number_of(slot)] } else { &self.page.ledger }
    }

    /// The share of the budget that goes with a slot of this page.
    pub fn share(&self, slot: &Slot) -> Share<'static> {
        let number = if self.config.per_process { 0 } else { self.number_of(slot) };
        self.ledger_of(slot).share(number)
    }

    fn ledgers(&self) -> &'static [Ledger] {
        if self.config.per_process {
            &self.page.ledgers[..self.nr_reached()]
        } else {
            std::slice::from_ref(&self.page.ledger)
        }
    }

    /// Pages that all processes have charged.
    pub fn charged(&self) -> u64 {
        self.ledgers().iter().map(Ledger::charged).sum()
    }

    /// The most that was ever charged to one budget.
    pub fn peak(&self) -> u64 {
        self.ledgers().iter().map(Ledger::peak).max().unwrap_or(0)
    }

    /// Pages that may be resident now, in all, or in each process as far as nothing was granted to it.
    pub fn budget(&self) -> u64 {
        if self.config.per_process { self.config.ram_pages } else { self.page.ledger.budget() }
    }

    /// Before a fork: what the process in the slot was granted beyond its budget is granted to its child as well, which is going
    /// to have all that it has.
    pub fn grant_to_child(&self, slot: &Slot, child: &Slot) {
        if self.config.per_process {
            self.ledger_of(child).grant_as(self.ledger_of(slot));
        }
    }

    /// The number of a slot of this page.
    pub fn number_of(&self, slot: &Slot) -> usize {
        let first = self.page.slots.as_ptr().addr();
        (std::ptr::from_ref(slot).addr() - first) / size_of::<Slot>()
    }

    /// What happens to pages, for the supervisor to write down.
    pub fn trace(&self) -> &'static Trace {
        &self.page.trace
    }

    /// Claims a slot for the process: to be called by its agent, at its start. A process that had one (and executed another
    /// program since) gets the same again, with its charges taken back.
    ///
    /// `None` when all are taken, or when the process cannot be found in `/proc`.
    pub fn claim_slot(&self, pid: u32) -> Option<&'static Slot> {
        ProcessId::of_pid(pid).ok().and_then(|(process, name)| self.claim_slot_of(process, &name))
    }

    /// As [`claim_slot`](Self::claim_slot), for a process that has been looked up.
    pub fn claim_slot_of(&self, process: ProcessId, name: &Text<16>) -> Option<&'static Slot> {
        let mut own = self.page.slots.iter().filter(|slot| slot.owner() == Some(process));
        if let Some(slot) = own.next() {
            // It was executed in the middle of a fork.
            own.for_each(|slot| slot.free(self.share(slot), process));
            slot.begin_anew(self.share(slot), name.as_str());
            self.begin_ledger(slot);
            return Some(slot);
        }
        let claimed = self.claim(process, name.as_str());
        let counter = if claimed.is_some() { &self.page.nr_processes } else { &self.page.nr_turned_away };
        counter.fetch_add(1, Ordering::Relaxed);
        claimed
    }

    /// Claims another slot for the process that has this one, for a child that it is about to have. `None` when all are
    /// taken.
    pub fn claim_for_child(&self, slot: &Slot) -> Option<&'static Slot> {
        self.claim(slot.owner()?, slot.name().as_str())
    }

    /// The child makes the slot its own that `parent` has claimed for it. False when that is gone: the parent is, or
    /// has given up.
    pub fn take_over(&self, slot: &Slot, parent: ProcessId, child: ProcessId) -> bool {
        let taken = slot.take_over(parent, child);
        self.page.nr_processes.fetch_add(u64::from(taken), Ordering::Relaxed);
        taken
    }

    fn claim(&self, process: ProcessId, name: &str) -> Option<&'static Slot> {
        let claimed = self.claim_free(process, name);
        claimed.or_else(|| self.settle_the_dead().then(|| self.claim_free(process, name)).flatten())
    }

    fn claim_free(&self, process: ProcessId, name: &str) -> Option<&'static Slot> {
        (1..).zip(&self.page.slots).find_map(|(nr_reached, slot)| {
            // First, as `slots` goes by it, and this process may be killed anywhere.
            self.page.nr_reached.fetch_max(nr_reached, Ordering::Relaxed);
            slot.try_claim(process, name).then(|| {
                self.share(slot).set_stuck(0);
                self.begin_ledger(slot);
                slot
            })
        })
    }

    /// The slot's process begins with the budget that was set, if it has one to itself.
    fn begin_ledger(&self, slot: &Slot) {
        if self.config.per_process {
            self.ledger_of(slot).begin(self.config.ram_pages);
        }
    }

    fn nr_reached(&self) -> usize {
        usize::try_from(self.page.nr_reached.load(Ordering::Relaxed)).unwrap_or(NR_SLOTS).min(NR_SLOTS)
    }

    /// Every slot that was ever claimed. Those without an owner still hold the counts of the owners they had.
    pub fn slots(&self) -> impl Iterator<Item = &'static Slot> {
        self.page.slots.iter().take(self.nr_reached())
    }

    /// How many processes have had a slot.
    pub fn nr_processes(&self) -> u64 {
        self.page.nr_processes.load(Ordering::Relaxed)
    }

    /// How many processes found no free slot, and are not managed.
    pub fn nr_turned_away(&self) -> u64 {
        self.page.nr_turned_away.load(Ordering::Relaxed)
    }

    /// Takes back what `process` has charged in the slot, and frees the slot, if it is still that process's. To be called by
    /// the process, for a slot that it had claimed for a child, or by anybody, when the process is gone.
    pub fn settle(&self, slot: &Slot, process: ProcessId) {
        slot.free(self.share(slot), process);
    }

    /// Settles all processes that are gone, which the supervisor does as a rule. Says whether there were any. To be called
    /// where the alternative is to do without a slot or memory: it asks the kernel for each process.
    #[must_use = "if there were none nothing is free that was not before"]
    pub fn settle_the_dead(&self) -> bool {
        let supervisor = ProcessId::of_word(self.page.supervisor.load(Ordering::Relaxed));
        if !supervisor.is_some_and(ProcessId::is_seen) {
            return false;
        }
        let mut any = false;
        for slot in self.slots() {
            // What is not managed has nothing, and is counted by the supervisor.
            let owner = slot.owner().filter(|_| slot.state() != SlotState::Unmanaged);
            if let Some(gone) = owner.filter(|owner| !owner.is_alive()) {
                self.settle(slot, gone);
                any = true;
            }
        }
        any
    }

    /// Records why a process runs unmanaged. The last record counts. Allocates nothing.
    pub fn set_why_unmanaged(&self, why: &Text<256>) {
        self.page.why_unmanaged.store(why.as_str());
    }

    /// Why the last process runs unmanaged that has said so; empty if none has.
    pub fn why_unmanaged(&self) -> Text<256> {
        self.page.why_unmanaged.load()
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

fn open(path: &Path) -> Result<&'static Page, ControlError> {
    let page = Page::open(path).map_err(|source| ControlError::Open { path: path.to_owned(), source })?;
    checked(page, path)
}

fn checked(page: Result<&'static Page, &'static str>, path: &Path) -> Result<&'static Page, ControlError> {
    page.and_then(Page::check).map_err(|what| ControlError::Foreign { path: path.to_owned(), what })
}

fn find(path: &Path, door: Option<&Path>) -> Result<(&'static Page, By), ControlError> {
    let error = match open(path) {
        Ok(page) => return Ok((page, By::Path)),
        Err(error) => error,
    };
    let process = || ProcessId::of_self(&Procfs::open().ok()?).ok();
    let file = door.and_then(|door| door::control(door, process()?.0));
    match file.and_then(|file| Page::of_file(file.into()).ok()) {
        Some(page) => checked(page, path).map(|page| (page, By::Door)),
        None => Err(error),
    }
}

#[cfg(test)]
mod tests;
