//! Memory that stays resident for a while, for those who cannot wait for it: system calls, where faults are served in the
//! thread that has them or by a userfaultfd of user mode only.

use std::sync::{Mutex, MutexGuard, PoisonError};

use hmm_core::addr::PageRange;
use hmm_core::kernel::Kernel;
use hmm_core::state::PageState;
use hmm_uapi::uffd::FaultAccess;

use crate::adopt::for_parts_outside;
use crate::callers;
use crate::messages::pages_of;
use crate::mirror::pages;
use crate::mm::range_of;
use crate::runtime::{Attempt, Pending, RETRY_PAUSE_NS, Runtime, Touch, pause};
use crate::space::AddressSpace;

/// Why memory is not pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// It is none of this space's.
    #[error("the memory is not, or not all, of this address space: there is nothing to be pinned")]
    NotManaged,
    /// What is left of the budget would be too little to go on with.
    #[error("half of the budget ({limit} pages) may be pinned: pin less at a time, or give a larger budget")]
    TooMuch {
        /// Pages that may be.
        limit: u64,
    },
    /// Some of it is lost.
    #[error("a page of the memory was lost with its device: touching it raises SIGBUS")]
    Lost,
}

/// What is pinned now, by whom does not matter.
#[derive(Debug, Default)]
pub(crate) struct Pins(Mutex<Vec<PageRange>>);

impl Pins {
    fn lock(&self) -> MutexGuard<'_, Vec<PageRange>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pages that are resident, and stay so as long as this lives. Also when they are discarded, or the memory goes: what comes to
/// its place is not pinned.
#[derive(Debug)]
#[must_use = "the memory may leave when it is dropped"]
pub struct Pinned {
    space: AddressSpace,
    range: PageRange,
}

impl AddressSpace {
    /// Brings the memory home and keeps it resident, for system calls that must not find a page away. The whole pages that it is
    /// in are: at most half of the budget at a time.
    ///
    /// ```no_run
    /// # use std::io::Read;
    /// # fn example(space: &hmm::AddressSpace, bytes: &mut [u8], mut file: std::fs::File) -> Result<(), Box<dyn std::error::Error>> {
    /// let pinned = space.pin(bytes)?;
    /// file.read_exact(bytes)?;
    /// drop(pinned);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`PinError`]; nothing is pinned then.
    pub fn pin<T>(&self, memory: &[T]) -> Result<Pinned, PinError> {
        let _inside = callers::enter();
        let range = pages(memory);
        let runtime = self.runtime();
        if runtime.engine().kernel().extents().first_gap(range).is_some() {
            return Err(PinError::NotManaged);
        }
        let limit = runtime.engine().kernel().ledger().budget() / 2;
        {
            let mut pins = self.pins().lock();
            let others: u64 = pins.iter().map(|pin| pin.nr_pages()).sum();
            if others + range.nr_pages() > limit {
                return Err(PinError::TooMuch { limit });
            }
            pins.push(range);
            runtime.engine().pin(range, true);
        }
        let pinned = Pinned { space: self.clone(), range };
        runtime.bring_home(range)?;
        Ok(pinned)
    }
}

impl Runtime {
    /// Has all pages of the range come home. What is not pinned may leave again.
    fn bring_home(&self, range: PageRange) -> Result<(), PinError> {
        for page in range.iter() {
            loop {
                match self.engine().state(page) {
                    PageState::System { .. } | PageState::Coherent { .. } => break,
                    PageState::Poisoned => return Err(PinError::Lost),
                    PageState::None
                    | PageState::Staged { .. }
                    | PageState::Storing { .. }
                    | PageState::Device { .. }
                    | PageState::Fetching { .. }
                    | PageState::Dropped { .. }
                    | PageState::Exclusive { .. } => {}
                }
                let touch = Touch { page, access: FaultAccess::Write, tid: 0 };
                match self.attempt(Pending::new(touch)) {
                    Attempt::Served => {}
                    Attempt::Parked | Attempt::Again => pause(RETRY_PAUSE_NS),
                }
            }
        }
        self.kick_if_low();
        Ok(())
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _inside = callers::enter();
        let mut pins = self.space.pins().lock();
        if let Some(at) = pins.iter().position(|pin| *pin == self.range) {
            pins.swap_remove(at);
        }
        let others: Vec<_> = pins.iter().map(|pin| range_of(*pin)).collect();
        for_parts_outside(range_of(self.range), &others, &mut |part| {
            self.space.runtime().engine().pin(pages_of(part), false);
        });
    }
}
