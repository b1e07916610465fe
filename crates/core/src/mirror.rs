//! What a driver sees of a range: snapshot and range fault (Linux: `hmm_range_fault`).
//!
//! ```text
//!     again: let seq = notifier.read_begin()
//!     engine.range_fault(&notifier, seq, &mut fault)      Err(Busy) => goto again
//!     notifier.install(seq, |table| fill it)              Err(Collided) => goto again
//! ```
//!
//! Each page is looked at twice: the kernel door says what the CPU has ([`Seen`]), the table says where the bytes are if
//! it has nothing. The two are not read at one moment. That does no harm, because every change that could come in
//! between is announced to the notifier first: what is installed under `seq` was true when it was installed (I5).
//!
//! Without a request for a page the call only looks. With one it does what a CPU's access would do, so that a page comes
//! home from wherever it is, except from the caller's own device. No lock is held meanwhile. It waits for those who serve
//! faults, so it is never called by one of them, nor under a lock that a driver's callback takes.
//!
//! A page of system memory has no number here: the device reaches it at the page's own virtual address.

use crate::addr::{BLOCK_PAGES, HUGE_ORDER, PageRange, Vpn};
use crate::engine::Engine;
use crate::kernel::{Kernel, Mapped, Refusal, Rights, Seen};
use crate::notifier::{Notifier, Owner, Sequence, Watch};
use crate::state::{Frame, PageState};

/// Times that a page is faulted in, and found to be gone again, before the caller has to start anew.
const MAX_ROUNDS: usize = 32;

/// What is wanted of a page: nothing, to be there ([`FAULT`](Self::FAULT)), or to be there and writable
/// (`FAULT | WRITE`). [`WRITE`](Self::WRITE) alone asks for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request(u8);

impl Request {
    /// Only look.
    pub const NONE: Self = Self(0);
    /// The page shall be there.
    pub const FAULT: Self = Self(1);
    /// Writing to it shall be possible.
    pub const WRITE: Self = Self(2);

    /// Whether all of `other` is asked for.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl std::ops::BitOr for Request {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl std::ops::BitAnd for Request {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// Where a page was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Found {
    /// Nothing that this driver may use is there; a fault would bring the page.
    #[default]
    None,
    /// The page cannot be had: no mapping, one that does not allow reading, or one of the kernel's own.
    Error,
    /// In system memory, at its own virtual address.
    System {
        /// It is the zero page, which everybody shares.
        zero: bool,
    },
    /// In a frame of the asking driver's device that the CPU cannot reach. Never another's.
    Private(Frame),
    /// In a frame that the CPU reaches, too, of any driver's device.
    Coherent(Frame, Owner),
}

/// What was found of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pfn {
    /// Where.
    pub found: Found,
    /// Whether it may be written to.
    pub write: bool,
    /// log2 of the pages of the naturally aligned run that it is mapped with: 9 for a huge page.
    pub order: u8,
    /// Whether the page's bytes in system memory stay as they are until drivers have been told: they may be copied
    /// ([`duplicate`](crate::duplicate)).
    pub protected: bool,
}

/// A range that is asked for.
#[derive(Debug)]
pub struct RangeFault<'a> {
    /// The pages.
    pub range: PageRange,
    /// What is wanted of every page.
    pub default: Request,
    /// What of `requests` counts.
    pub mask: Request,
    /// What is wanted of each page besides, as far as `mask` lets it: one for each page, or none at all.
    pub requests: &'a [Request],
    /// Whose frames may be shown.
    pub owner: Option<Owner>,
    /// What was found, one for each page. Of a failed call the pages in front of the one that failed.
    pub pfns: &'a mut [Pfn],
}

impl<'a> RangeFault<'a> {
    /// Only looks; nothing is faulted in.
    pub const fn snapshot(range: PageRange, owner: Option<Owner>, pfns: &'a mut [Pfn]) -> Self {
        Self::all(range, Request::NONE, owner, pfns)
    }

    /// Wants the same of every page.
    pub const fn all(range: PageRange, default: Request, owner: Option<Owner>, pfns: &'a mut [Pfn]) -> Self {
        Self { range, default, mask: Request::NONE, requests: &[], owner, pfns }
    }

    fn check(&self, watched: PageRange) -> Result<(), RangeError> {
        let is_len = |len: usize| len as u64 == self.range.nr_pages();
        let fits = is_len(self.pfns.len()) && (self.requests.is_empty() || is_len(self.requests.len()));
        let inside = watched.intersect(self.range) == self.range;
        if fits && inside && !self.range.is_empty() { Ok(()) } else { Err(RangeError::Invalid) }
    }

    fn index(&self, page: Vpn) -> usize {
        usize::try_from(page.0 - self.range.start.0).unwrap_or(usize::MAX)
    }

    fn request(&self, page: Vpn) -> Request {
        let own = self.requests.get(self.index(page)).copied().unwrap_or_default();
        (own & self.mask) | self.default
    }
}

/// Why a range could not be read. Pages in front of the one that failed are told of nevertheless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The call makes no sense.
    #[error(
        "the range is empty, not inside of what the notifier watches, or has another number of pages than the slices"
    )]
    Invalid,
    /// No memory for a page.
    #[error("there is no memory for a page of the range: free some, then try again")]
    NoMemory,
    /// Writing was asked for, and the mapping does not allow it.
    #[error(
        "a page is to be written whose mapping is read-only: ask for reading only, or change its protection"
    )]
    Permission,
    /// The range has changed meanwhile.
    #[error("the range has changed meanwhile: start again with `read_begin`")]
    Busy,
    /// A page cannot be had, see [`Found::Error`], or its bytes are lost.
    #[error("a page of the range cannot be accessed: it is not mapped, not readable, or lost")]
    Fault,
}

/// Pages in a row that have to be faulted in, in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lack {
    run: PageRange,
    write: bool,
}

impl<K: Kernel> Engine<K> {
    /// Reads the range for a driver, and faults in what is asked for. `seq` is what `notifier` gave
    /// ([`Notifier::read_begin`]), whose range holds that of `fault`. See the module's rules.
    ///
    /// # Errors
    /// [`RangeError`]. After [`RangeError::Busy`] start again.
    pub fn range_fault<W: Watch>(
        &self,
        notifier: &Notifier<W>,
        seq: Sequence,
        fault: &mut RangeFault<'_>,
    ) -> Result<(), RangeError> {
        fault.check(notifier.range())?;
        for (id, part) in fault.range.blocks() {
            let part = PageRange { start: id.page(part.start), end: id.page(part.end) };
            self.fault_part(part, fault, &|| notifier.check_retry(seq))?;
        }
        if notifier.check_retry(seq) { Err(RangeError::Busy) } else { Ok(()) }
    }

    /// Reads the part of a range that is in one block.
    fn fault_part(
        &self,
        part: PageRange,
        fault: &mut RangeFault<'_>,
        has_changed: &dyn Fn() -> bool,
    ) -> Result<(), RangeError> {
        let mut start = part.start;
        let mut last: Option<(Lack, Result<(), Refusal>)> = None;
        let mut rounds = 0;
        while rounds < MAX_ROUNDS && !has_changed() {
            let written = match last {
                Some((Lack { run, write: true }, Ok(()))) => run,
                _ => PageRange::new(start, 0),
            };
            let Some(lack) = self.look(PageRange { start, end: part.end }, fault, written)? else {
                return Ok(());
            };
            match last {
                // Pages in front of the one that was refused are there now.
                Some((before, Err(refusal))) if before.run.start == lack.run.start => {
                    return Err(refusal.into());
                }
                _ => {}
            }
            rounds = if lack.run.start == start { rounds + 1 } else { 0 };
            start = lack.run.start;
            last = Some((lack, self.bring(lack)));
        }
        Err(RangeError::Busy)
    }

    /// Notes what is there of a block's part. Stops at the first page that is wanted and is not, and gives it with those
    /// behind it that lack the same. Pages of `written` have just been written to: that they can be is sure, even where the
    /// kernel does not let it be seen.
    fn look(
        &self,
        part: PageRange,
        fault: &mut RangeFault<'_>,
        written: PageRange,
    ) -> Result<Option<Lack>, RangeError> {
        let mut seen = [Seen::default(); BLOCK_PAGES];
        let seen = &mut seen[..usize::try_from(part.nr_pages()).unwrap_or(BLOCK_PAGES)];
        self.kernel.walk(part, seen).map_err(RangeError::from)?;
        if self.shows_resident(part, fault, seen) {
            return Ok(None);
        }
        let (states, large) = self.states_of(part);
        let is_shared = |state: &PageState| matches!(state, PageState::Coherent { shared: true, .. });
        if states.iter().any(is_shared) && self.notice_copies(part) {
            // Drivers were told, the caller among them.
            return Err(RangeError::Busy);
        }
        let mut lack: Option<Lack> = None;
        for ((page, seen), state) in part.iter().zip(seen).zip(states) {
            if seen.cpu == Mapped::ReadOnly && !seen.protected && written.contains(page) {
                seen.cpu = Mapped::Writable;
            }
            let mut pfn = self.pfn(seen, state, fault.owner);
            if large && matches!(pfn.found, Found::Private(_)) {
                pfn.order = HUGE_ORDER;
            }
            let need = need(seen, state, pfn, fault.request(page));
            match (&mut lack, need) {
                (None, Ok(None)) => fault.pfns[fault.index(page)] = pfn,
                (None, Ok(Some(write))) => lack = Some(Lack { run: PageRange::new(page, 1), write }),
                (None, Err(error)) => {
                    fault.pfns[fault.index(page)] = pfn;
                    return Err(error);
                }
                (Some(lack), Ok(Some(write))) if lack.write == write => lack.run.end = page.add(1),
                (Some(_), _) => break,
            }
        }
        Ok(lack)
    }

    /// Shows a block's part of which nothing is wanted, if all of the block is in system memory: the usual case when a driver
    /// looks around.
    fn shows_resident(&self, part: PageRange, fault: &mut RangeFault<'_>, seen: &[Seen]) -> bool {
        let wants_any = !fault.requests.is_empty() || fault.default.contains(Request::FAULT);
        let nr_system = self.table.get(part.start.block()).map_or(0, |block| block.lock().nr_system());
        if wants_any || nr_system < BLOCK_PAGES {
            return false;
        }
        let mut first = fault.index(part.start);
        for run in seen.chunk_by(|one, next| one == next) {
            let pfn = self.pfn(&run[0], PageState::System { copy: None }, fault.owner);
            fault.pfns[first..first + run.len()].fill(pfn);
            first += run.len();
        }
        true
    }

    /// The states of a block's part, and whether the block is a huge page on a device. The caller's slices may be in memory that is away, and must not be touched under the
    /// block's lock: so the states are copied.
    fn states_of(&self, part: PageRange) -> ([PageState; BLOCK_PAGES], bool) {
        let mut states = [PageState::None; BLOCK_PAGES];
        let mut large = false;
        if let Some(block) = self.table.get(part.start.block()) {
            let block = block.lock();
            for (state, page) in states.iter_mut().zip(part.iter()) {
                *state = block.get(page.index());
            }
            large = block.large_run().is_some();
        }
        (states, large)
    }

    /// What a driver is shown of a page.
    fn pfn(&self, seen: &Seen, state: PageState, owner: Option<Owner>) -> Pfn {
        if seen.rights == Rights::None {
            return Pfn { found: Found::Error, ..Pfn::default() };
        }
        if let (Mapped::ReadOnly | Mapped::Writable, PageState::Coherent { frame, .. }) = (seen.cpu, state)
            && let Some(owner) = self.registry.owner(frame.device)
        {
            let write = seen.cpu == Mapped::Writable;
            let found = Found::Coherent(frame, owner);
            return Pfn { found, write, order: seen.order, protected: false };
        }
        match seen.cpu {
            Mapped::Absent => self.away(seen, state, owner),
            Mapped::Zero => {
                let found = Found::System { zero: true };
                Pfn { found, write: false, order: seen.order, protected: false }
            }
            Mapped::ReadOnly | Mapped::Writable => {
                let write = seen.cpu == Mapped::Writable;
                let protected = seen.protected && matches!(state, PageState::System { .. });
                Pfn { found: Found::System { zero: false }, write, order: seen.order, protected }
            }
        }
    }

    /// What a driver is shown of a page that the CPU does not have: its own frame, nobody else's.
    fn away(&self, seen: &Seen, state: PageState, owner: Option<Owner>) -> Pfn {
        match state {
            PageState::Device { frame }
                if owner.is_some()
                    && self.registry.owner(frame.device) == owner
                    && !self.registry.is_coherent(frame.device) =>
            {
                let write = seen.rights == Rights::Write;
                Pfn { found: Found::Private(frame), write, ..Pfn::default() }
            }
            PageState::None
            | PageState::System { .. }
            | PageState::Fetching { .. }
            | PageState::Dropped { .. }
            | PageState::Staged { .. }
            | PageState::Storing { .. }
            // Another's, or a coherent frame that is not mapped yet.
            | PageState::Device { .. }
            | PageState::Coherent { .. }
            // Faulting it in ends the exclusive access.
            | PageState::Exclusive { .. }
            | PageState::Poisoned => Pfn::default(),
        }
    }

    /// Does what CPUs touching the pages would do.
    fn bring(&self, lack: Lack) -> Result<(), Refusal> {
        match self.kernel.populate(lack.run, lack.write) {
            Err(Refusal::Unserved) => {
                // The kernel's own accesses are not told to us: do what the handlers would.
                for page in lack.run.iter() {
                    self.fault_directly(page, lack.write)?;
                }
                self.kernel.populate(lack.run, lack.write)
            }
            other => other,
        }
    }

    /// Serves a fault that nobody had, of a page that may be there.
    fn fault_directly(&self, page: Vpn, write: bool) -> Result<(), Refusal> {
        use crate::fault::Outcome;
        if self.kernel.extent(page).is_empty() {
            return Ok(());
        }
        match if write { self.fault(page) } else { self.read_fault(page) } {
            // Whoever brings it has not come to its end, or has to read events first: look again.
            Outcome::Done | Outcome::Parked | Outcome::Retry | Outcome::Unmanaged => Ok(()),
            Outcome::Full => Err(Refusal::NoMemory),
        }
    }
}

/// Whether a page has to be faulted in, for writing (`true`) or reading.
fn need(seen: &Seen, state: PageState, pfn: Pfn, request: Request) -> Result<Option<bool>, RangeError> {
    if !request.contains(Request::FAULT) {
        return Ok(None);
    }
    let write = request.contains(Request::WRITE);
    let is_there = match pfn.found {
        Found::Error => return Err(RangeError::Fault),
        Found::None if state == PageState::Poisoned => return Err(RangeError::Fault),
        // As in Linux: the own driver gets its frame whatever the mapping allows, and sees that it may not write.
        Found::Private(_) => true,
        Found::None => false,
        Found::System { .. } | Found::Coherent(..) => pfn.write || !write,
    };
    if is_there {
        return Ok(None);
    }
    if write && seen.rights != Rights::Write {
        return Err(RangeError::Permission);
    }
    Ok(Some(write))
}

impl From<Refusal> for RangeError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Fault => Self::Fault,
            Refusal::NoMemory => Self::NoMemory,
            // Served by us, and gone again: others are at work on it.
            Refusal::Unserved => Self::Busy,
        }
    }
}
