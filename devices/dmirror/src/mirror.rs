//! An open device: the commands.
//!
//! Reading and writing go page by page through the device's table. At the first page without an entry everything from
//! there on is faulted, in batches, and the copying goes on where it stopped. That counts as one fault, whatever it
//! brought. A command's structure is given back only when it succeeds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hmm_core::addr::{PAGE_SHIFT, PAGE_SIZE, PageRange, Vpn};
use hmm_core::notifier::Notifier;
use hmm_device::{Access, Device, Fetch, Store};

use crate::abi::{Cmd, Command, FAIL_ALLOC, Failure, Number, snapshot};
use crate::memory::Memory;
use crate::space::{Kind, Request, Seen, Space};
use crate::table::{Entry, Follow, Place, Table, owner_of};

/// Pages that are faulted or looked at in one go.
pub const BATCH_PAGES: usize = 64;
/// How long a range may go on changing under a fault.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// Pages of all the addresses that a program can have.
const ALL_PAGES: u64 = 1 << (47 - PAGE_SHIFT);

/// Who issues a command: a process whose buffers are read and written.
pub trait Caller {
    /// Fills `to` from the caller's memory at `addr`. False if it cannot be read, all or in part.
    fn read(&self, addr: u64, to: &mut [u8]) -> bool;
    /// Copies `from` to the caller's memory at `addr`. False if it cannot be written, all or in part.
    fn write(&self, addr: u64, from: &[u8]) -> bool;
}

/// An open device.
#[derive(Debug)]
pub struct Mirror<S> {
    pub(crate) device: Number,
    pub(crate) memory: Arc<Memory>,
    pub(crate) space: Arc<S>,
    pub(crate) notifier: Notifier<Follow>,
    flags: AtomicU64,
}

/// What became of a read or write.
#[derive(Clone, Copy)]
enum Step {
    Done,
    /// There is no entry for the page.
    Missing,
    /// The caller's buffer cannot be used.
    BadBuffer,
}

/// Where a page's bytes go to or come from, with the page's number in the command.
type Copier<'a> = dyn FnMut(usize, &mut [u8; PAGE_SIZE]) -> bool + 'a;

impl<S: Space> Mirror<S> {
    /// Opens a device: from now on it mirrors the address space.
    ///
    /// # Errors
    /// [`Failure::NoMemory`] when nothing can be watched; does not happen.
    pub fn open(device: Number, memory: Arc<Memory>, space: Arc<S>) -> Result<Self, Failure> {
        let everything = PageRange { start: Vpn(0), end: Vpn(ALL_PAGES) };
        let table: Arc<Mutex<Table>> = Arc::default();
        let follow = Follow::new(owner_of(device));
        let notifier = Notifier::new(space.notifiers(), everything, table, follow)
            .map_err(|_empty| Failure::NoMemory)?;
        Ok(Self { device, memory, space, notifier, flags: AtomicU64::new(0) })
    }

    /// Closes it: everything in the device's memory comes home.
    pub fn close(self) {
        let Self { device, memory, space, notifier, .. } = self;
        drop(notifier);
        space.evict(device);
        memory.remove_chunks();
    }

    /// Has the mirror hear of every change of mappings that was made before: in front of a command.
    pub fn settle(&self) {
        self.space.settle();
    }

    /// Which device it is.
    pub fn device(&self) -> Number {
        self.device
    }

    /// Carries out a command. What it returns is to be given back to the caller.
    ///
    /// # Errors
    /// See [`Failure`]; then the caller's structure stays as it was.
    pub fn command(&self, command: Command, cmd: Cmd, caller: &dyn Caller) -> Result<Cmd, Failure> {
        let range = range_of(&cmd)?;
        let mut out = Cmd { copied_pages: 0, faults: 0, ..cmd };
        match command {
            Command::Read | Command::ReadUnlocked => self.read(range, &mut out, caller)?,
            Command::Write => self.write(range, &mut out, caller)?,
            Command::MigrateToDevice => {
                self.migrate_to_device(range)?;
                out.copied_pages = self.read_back(range, cmd.ptr, caller)?;
            }
            Command::MigrateToSystem => out.copied_pages = self.migrate_to_system(range)?,
            Command::Snapshot => self.snapshot(range, &mut out, caller)?,
            Command::Exclusive => {
                self.make_exclusive(range)?;
                out.copied_pages = self.read_back(range, cmd.ptr, caller)?;
            }
            Command::CheckExclusive => self.check_exclusive(range)?,
            Command::Release => {
                self.space.evict(self.device);
                self.memory.remove_chunks();
            }
            Command::Flags => self.flags.store(cmd.nr_pages, Ordering::Relaxed),
        }
        Ok(out)
    }

    /// Whether the next allocation of memory shall fail; asking ends it.
    pub(crate) fn take_failure(&self) -> bool {
        self.flags.fetch_and(!FAIL_ALLOC, Ordering::Relaxed) & FAIL_ALLOC != 0
    }

    fn read(&self, range: PageRange, out: &mut Cmd, caller: &dyn Caller) -> Result<(), Failure> {
        let mut bytes = Buffer::new(range)?;
        self.copy(range, out, Request::Read, &mut |index, page| {
            bytes.page(index).copy_from_slice(page);
            true
        })?;
        if caller.write(out.ptr, &bytes.0) { Ok(()) } else { Err(Failure::Fault) }
    }

    fn write(&self, range: PageRange, out: &mut Cmd, caller: &dyn Caller) -> Result<(), Failure> {
        let mut bytes = Buffer::new(range)?;
        if !caller.read(out.ptr, &mut bytes.0) {
            return Err(Failure::Fault);
        }
        self.copy(range, out, Request::Write, &mut |index, page| {
            page.copy_from_slice(bytes.page(index));
            true
        })
    }

    /// Copies every page, faulting what is missing.
    fn copy(
        &self,
        range: PageRange,
        out: &mut Cmd,
        how: Request,
        copier: &mut Copier<'_>,
    ) -> Result<(), Failure> {
        loop {
            let next = range.start.add(out.copied_pages);
            match self.copy_mapped(
                PageRange { start: next, end: range.end },
                how,
                &mut out.copied_pages,
                copier,
            ) {
                Step::Done => return Ok(()),
                Step::BadBuffer => return Err(Failure::Fault),
                Step::Missing => {
                    let rest = PageRange { start: range.start.add(out.copied_pages), end: range.end };
                    self.fault(rest, how)?;
                    out.faults += 1;
                }
            }
        }
    }

    /// Copies pages until one has no entry, and counts them.
    fn copy_mapped(&self, range: PageRange, how: Request, copied: &mut u64, copier: &mut Copier<'_>) -> Step {
        let mut page = Box::new([0; PAGE_SIZE]);
        for vpn in range.iter() {
            let Ok(index) = usize::try_from(*copied) else { return Step::BadBuffer };
            let step = match how {
                Request::Write => {
                    if copier(index, &mut page) {
                        self.store_page(vpn, &page)
                    } else {
                        Step::BadBuffer
                    }
                }
                Request::Read | Request::Snapshot => match self.load_page(vpn, &mut page) {
                    Step::Done if !copier(index, &mut page) => Step::BadBuffer,
                    step @ (Step::Done | Step::Missing | Step::BadBuffer) => step,
                },
            };
            if !matches!(step, Step::Done) {
                return step;
            }
            *copied += 1;
        }
        Step::Done
    }

    fn load_page(&self, page: Vpn, to: &mut [u8; PAGE_SIZE]) -> Step {
        let table = self.notifier.table();
        let entry = table.get(page);
        let loaded = match entry.map(|entry| entry.place) {
            None => false,
            Some(Place::Frame(pfn)) => self.memory.fetch(Fetch { frames: &[pfn], bytes: to }).stop.is_none(),
            Some(Place::Exclusive(addr)) => {
                self.space.load_exclusive(addr, to);
                true
            }
            Some(Place::System { zero }) => {
                drop(table);
                let may_be_another = entry.is_some_and(|entry| !entry.write);
                let is_there = !(may_be_another && self.is_outdated(page, zero));
                return self.by_address(page, is_there && self.space.load(page, to));
            }
        };
        if loaded { Step::Done } else { Step::Missing }
    }

    fn store_page(&self, page: Vpn, from: &[u8; PAGE_SIZE]) -> Step {
        let table = self.notifier.table();
        let stored = match table.get(page).filter(|entry| entry.write).map(|entry| entry.place) {
            Some(Place::Frame(pfn)) => self
                .memory
                .store(Store { frames: &[pfn], bytes: from, access: Access::Random })
                .stop
                .is_none(),
            Some(Place::System { .. }) => {
                drop(table);
                return self.by_address(page, self.space.store(page, from));
            }
            None | Some(Place::Exclusive(_)) => false,
        };
        if stored { Step::Done } else { Step::Missing }
    }

    /// What an access by the program's address came to. If it was refused the mapping or the page has changed without a word:
    /// the entry is worth nothing.
    fn by_address(&self, page: Vpn, done: bool) -> Step {
        if done {
            return Step::Done;
        }
        self.notifier.table().remove(PageRange::new(page, 1));
        Step::Missing
    }

    fn snapshot(&self, range: PageRange, out: &mut Cmd, caller: &dyn Caller) -> Result<(), Failure> {
        let mut seen = [Seen::default(); BATCH_PAGES];
        let mut at = range.start;
        while at < range.end {
            let batch = PageRange::new(at, BATCH_PAGES as u64).intersect(range);
            let len = usize::try_from(batch.nr_pages()).unwrap_or(BATCH_PAGES);
            let bytes = self.look(batch, Request::Snapshot, &mut seen[..len], |_, seen| {
                let mut bytes = [0; BATCH_PAGES];
                bytes.iter_mut().zip(seen).for_each(|(byte, seen)| *byte = snapshot_byte(self.device, *seen));
                bytes
            })?;
            if !caller.write(out.ptr + out.copied_pages, &bytes[..len]) {
                return Err(Failure::Fault);
            }
            out.copied_pages += len as u64;
            at = batch.end;
        }
        Ok(())
    }

    fn make_exclusive(&self, range: PageRange) -> Result<(), Failure> {
        range.iter().try_for_each(|page| self.make_page_exclusive(page))
    }

    fn make_page_exclusive(&self, page: Vpn) -> Result<(), Failure> {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            // Now the page is in system memory, and nobody's: bringing it there in between would collide.
            if matches!(self.snapshot_of(page)?.kind, Kind::Private(_)) {
                self.space.touch(page);
            }
            self.fault(PageRange::new(page, 1), Request::Write).map_err(|failure| match failure {
                Failure::Permission => Failure::Fault,
                Failure::Invalid
                | Failure::Fault
                | Failure::NoEntry
                | Failure::NoMemory
                | Failure::Busy
                | Failure::Unsupported => failure,
            })?;
            let seq = self.notifier.read_begin();
            let addr = self.notifier.watch().migrating(|| self.space.make_exclusive(self.device, page))?;
            let entry = Entry { place: Place::Exclusive(addr), write: false };
            if self.notifier.install_own(seq, |table| table.set(page, entry)).is_ok() {
                return Ok(());
            }
        }
        Err(Failure::Busy)
    }

    fn check_exclusive(&self, range: PageRange) -> Result<(), Failure> {
        if self.notifier.table().any_exclusive(range) { Err(Failure::Permission) } else { Ok(()) }
    }

    /// Copies everything to the caller as the device sees it, and faults nothing.
    fn read_back(&self, range: PageRange, ptr: u64, caller: &dyn Caller) -> Result<u64, Failure> {
        let mut bytes = Buffer::new(range)?;
        let mut copied = 0;
        let step = self.copy_mapped(range, Request::Read, &mut copied, &mut |index, page| {
            bytes.page(index).copy_from_slice(page);
            true
        });
        match step {
            Step::Done if caller.write(ptr, &bytes.0) => Ok(copied),
            Step::Missing => Err(Failure::NoEntry),
            Step::Done | Step::BadBuffer => Err(Failure::Fault),
        }
    }
}

/// The bytes of all pages of a command, between the caller and the device.
struct Buffer(Vec<u8>);

impl Buffer {
    fn new(range: PageRange) -> Result<Self, Failure> {
        let len = usize::try_from(range.nr_pages()).ok().and_then(|pages| pages.checked_mul(PAGE_SIZE));
        let len = len.ok_or(Failure::NoMemory)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_no_memory| Failure::NoMemory)?;
        bytes.resize(len, 0);
        Ok(Self(bytes))
    }

    fn page(&mut self, index: usize) -> &mut [u8] {
        &mut self.0[index * PAGE_SIZE..(index + 1) * PAGE_SIZE]
    }
}

/// The pages of a command.
fn range_of(cmd: &Cmd) -> Result<PageRange, Failure> {
    let bytes = cmd.nr_pages.checked_mul(PAGE_SIZE as u64).ok_or(Failure::Invalid)?;
    let end = cmd.addr.checked_add(bytes).ok_or(Failure::Invalid)?;
    if !cmd.addr.is_multiple_of(PAGE_SIZE as u64) || end <= cmd.addr {
        return Err(Failure::Invalid);
    }
    Ok(PageRange { start: Vpn::of_addr(cmd.addr), end: Vpn::of_addr(end) })
}

fn snapshot_byte(device: Number, seen: Seen) -> u8 {
    let kind = match seen.kind {
        Kind::Error => return snapshot::ERROR,
        Kind::None => return snapshot::NONE,
        // Linux's device knows the small page of zeroes; the huge one is a page like others to it.
        Kind::System { zero: true } if seen.order == 0 => snapshot::ZERO,
        Kind::System { .. } => 0,
        Kind::Private(_) => snapshot::PRIVATE_LOCAL,
        Kind::Coherent(owner) if owner == device => snapshot::COHERENT_LOCAL,
        Kind::Coherent(_) => snapshot::COHERENT_REMOTE,
    };
    let size = match seen.order {
        18.. => snapshot::PUD,
        9.. => snapshot::PMD,
        _ => 0,
    };
    kind | size | if seen.write { snapshot::WRITE } else { snapshot::READ }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_linux() {
        let device = |number| Number::new(number).expect("a device");
        let byte = |kind, write, order| snapshot_byte(device(2), Seen { kind, write, order });
        assert_eq!(byte(Kind::Error, false, 0), 0xff);
        assert_eq!(byte(Kind::None, false, 0), 0);
        assert_eq!(byte(Kind::System { zero: true }, false, 0), 0x11);
        assert_eq!(byte(Kind::System { zero: true }, false, 9), 0x05, "the huge page of zeroes");
        assert_eq!(byte(Kind::System { zero: false }, true, 9), 0x06);
        assert_eq!(byte(Kind::System { zero: false }, true, 18), 0x0a);
        assert_eq!(byte(Kind::Private(hmm_device::DevicePfn(1)), false, 0), 0x21);
        assert_eq!(byte(Kind::Coherent(device(2)), true, 0), 0x42);
        assert_eq!(byte(Kind::Coherent(device(3)), true, 0), 0x52);
    }
}
