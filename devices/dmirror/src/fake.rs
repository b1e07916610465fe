//! A small address space, for tests of the driver: pages in a map, no kernel.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use hmm_core::addr::{PAGE_SIZE, PageRange, Vpn};
use hmm_core::notifier::{Cause, Change, Notifier, Notifiers, Sequence};
use hmm_device::{Device, DevicePfn, Fetch, MemKind};
use hmm_uapi::Mapping;

use crate::abi::{Failure, Number};
use crate::memory::{CHUNK_BYTES, Memory};
use crate::mirror::Caller;
use crate::space::{Drain, Fill, Kind, Moved, Request, Seen, Space, Vma};
use crate::table::{Follow, owner_of};

type Bytes = Box<[u8; PAGE_SIZE]>;

/// Where a page of the program is.
#[derive(Clone)]
enum Home {
    Hole,
    Zero,
    System(Bytes),
    Device(Number, DevicePfn),
    Exclusive(Bytes),
}

struct Page {
    home: Home,
    read: bool,
    write: bool,
    special: bool,
}

/// The program and its memory, which is also the caller of commands.
pub(crate) struct Fake {
    notifiers: Arc<Notifiers>,
    pages: Mutex<BTreeMap<u64, Page>>,
    pub(crate) memories: Vec<Arc<Memory>>,
    /// Where commands copy to and from; nothing else can be a buffer.
    pub(crate) buffer: Mutex<Vec<u8>>,
    /// Changes that happen in the middle of the next looks.
    pub(crate) disturb: Mutex<usize>,
}

/// The address of the caller's buffer.
pub(crate) const BUFFER: u64 = 0x7000_0000;

pub(crate) fn number(number: u8) -> Number {
    Number::new(number).expect("a device")
}

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        let memory =
            |device| Arc::new(Memory::new(device, Mapping::reserve(CHUNK_BYTES).expect("addresses")));
        Arc::new(Self {
            notifiers: Arc::default(),
            pages: Mutex::default(),
            memories: Number::all().map(memory).collect(),
            buffer: Mutex::new(vec![0; 64 * PAGE_SIZE]),
            disturb: Mutex::new(0),
        })
    }

    fn pages(&self) -> MutexGuard<'_, BTreeMap<u64, Page>> {
        self.pages.lock().expect("not poisoned")
    }

    fn change(&self, page: Vpn, cause: Cause, device: Option<Number>) {
        let owner = device.map(owner_of);
        drop(self.notifiers.invalidate(Change { range: PageRange::new(page, 1), cause, owner }));
    }

    /// A mapping of holes.
    pub(crate) fn map(&self, range: PageRange) {
        for page in range.iter() {
            self.pages().insert(page.0, Page { home: Home::Hole, read: true, write: true, special: false });
        }
    }

    pub(crate) fn unmap(&self, page: Vpn) {
        self.change(page, Cause::Unmap, None);
        self.pages().remove(&page.0);
    }

    pub(crate) fn protect(&self, page: Vpn, read: bool, write: bool) {
        self.change(page, Cause::ProtectVma, None);
        if let Some(page) = self.pages().get_mut(&page.0) {
            (page.read, page.write) = (read, write);
        }
    }

    pub(crate) fn make_special(&self, page: Vpn) {
        self.pages().get_mut(&page.0).expect("mapped").special = true;
    }

    /// The CPU writes the page, which comes home for it.
    pub(crate) fn cpu_write(&self, page: Vpn, byte: u8) {
        self.come_home(page);
        self.pages().get_mut(&page.0).expect("mapped").home = Home::System(Box::new([byte; PAGE_SIZE]));
    }

    /// The CPU reads the page.
    pub(crate) fn cpu_read(&self, page: Vpn) -> u8 {
        self.come_home(page);
        let mut pages = self.pages();
        let page = pages.get_mut(&page.0).expect("mapped");
        match &page.home {
            Home::System(bytes) => bytes[0],
            Home::Hole => {
                page.home = Home::Zero;
                0
            }
            Home::Zero => 0,
            Home::Device(..) | Home::Exclusive(_) => panic!("it has come home"),
        }
    }

    pub(crate) fn is_on(&self, page: Vpn) -> Option<Number> {
        match self.pages().get(&page.0)?.home {
            Home::Device(device, _) => Some(device),
            Home::Hole | Home::Zero | Home::System(_) | Home::Exclusive(_) => None,
        }
    }

    /// The CPU touches the page, or somebody else's device wants it.
    fn come_home(&self, page: Vpn) {
        let home = self.pages().get(&page.0).map(|page| page.home.clone());
        match home {
            Some(Home::Device(device, pfn)) if device.kind() == MemKind::Private => {
                self.change(page, Cause::Migrate, Some(device));
                let mut bytes: Bytes = Box::new([0; PAGE_SIZE]);
                let memory = &self.memories[usize::from(device.get())];
                assert_eq!(memory.fetch(Fetch { frames: &[pfn], bytes: &mut bytes[..] }).stop, None);
                memory.free(&[pfn]);
                self.pages().get_mut(&page.0).expect("mapped").home = Home::System(bytes);
            }
            Some(Home::Exclusive(bytes)) => {
                self.change(page, Cause::Clear, None);
                self.pages().get_mut(&page.0).expect("mapped").home = Home::System(bytes);
            }
            None | Some(Home::Hole | Home::Zero | Home::System(_) | Home::Device(..)) => {}
        }
    }

    fn fault(&self, page: Vpn, request: Request, device: Number) -> Result<(), Failure> {
        let local = self.is_on(page).is_some_and(|on| on == device || on.kind() == MemKind::Coherent);
        if !local {
            self.come_home(page);
        }
        let mut pages = self.pages();
        let page = pages.get_mut(&page.0).filter(|page| page.read).ok_or(Failure::Fault)?;
        if request == Request::Write && !page.write {
            return Err(Failure::Permission);
        }
        page.home = match (&page.home, request) {
            (Home::Hole, Request::Read) => Home::Zero,
            (Home::Hole | Home::Zero, Request::Write) => Home::System(Box::new([0; PAGE_SIZE])),
            (other, _) => other.clone(),
        };
        Ok(())
    }

    fn see(&self, page: Vpn, device: Number) -> Seen {
        let pages = self.pages();
        let Some(page) = pages.get(&page.0).filter(|page| page.read) else {
            return Seen { kind: Kind::Error, ..Seen::default() };
        };
        let kind = match page.home {
            Home::Hole | Home::Exclusive(_) => Kind::None,
            Home::Zero => Kind::System { zero: true },
            Home::System(_) => Kind::System { zero: false },
            Home::Device(on, _) if on.kind() == MemKind::Coherent => Kind::Coherent(on),
            Home::Device(on, pfn) if on == device => Kind::Private(pfn),
            Home::Device(..) => Kind::None,
        };
        let write = page.write && !matches!(kind, Kind::System { zero: true } | Kind::None);
        Seen { kind, write, order: 0 }
    }
}

impl Space for Fake {
    fn notifiers(&self) -> &Arc<Notifiers> {
        &self.notifiers
    }

    // Its changes are told at once.
    fn settle(&self) {}

    fn range_fault(
        &self,
        device: Number,
        (notifier, seq): (&Notifier<Follow>, Sequence),
        range: PageRange,
        request: Request,
        seen: &mut [Seen],
    ) -> Result<(), Failure> {
        for (page, seen) in range.iter().zip(seen) {
            if request != Request::Snapshot {
                self.fault(page, request, device)?;
            }
            *seen = self.see(page, device);
        }
        let mut disturb = self.disturb.lock().expect("not poisoned");
        if *disturb > 0 {
            *disturb -= 1;
            self.change(range.start, Cause::Clear, None);
        }
        if notifier.check_retry(seq) { Err(Failure::Busy) } else { Ok(()) }
    }

    fn vma(&self, page: Vpn) -> Option<Vma> {
        let pages = self.pages();
        let first = pages.get(&page.0)?;
        let same =
            |page: &Page| (page.read, page.write, page.special) == (first.read, first.write, first.special);
        let end = (page.0..).find(|page| !pages.get(page).is_some_and(same))?;
        Some(Vma { end: Vpn(end), readable: first.read, writable: first.write, can_migrate: !first.special })
    }

    fn load(&self, page: Vpn, to: &mut [u8; PAGE_SIZE]) -> bool {
        let pages = self.pages();
        let Some(page) = pages.get(&page.0).filter(|page| page.read) else { return false };
        match &page.home {
            Home::System(bytes) => to.copy_from_slice(&bytes[..]),
            Home::Zero => to.fill(0),
            Home::Device(on, pfn) => {
                let memory = &self.memories[usize::from(on.get())];
                assert_eq!(memory.fetch(Fetch { frames: &[*pfn], bytes: to }).stop, None);
            }
            Home::Hole | Home::Exclusive(_) => panic!("a stale entry"),
        }
        true
    }

    fn store(&self, page: Vpn, from: &[u8; PAGE_SIZE]) -> bool {
        let mut pages = self.pages();
        let Some(page) = pages.get_mut(&page.0).filter(|page| page.write) else { return false };
        assert!(matches!(page.home, Home::System(_)), "a stale entry");
        page.home = Home::System(Box::new(*from));
        true
    }

    fn touch(&self, page: Vpn) {
        self.come_home(page);
    }

    fn migrate_to_device(
        &self,
        device: Number,
        range: PageRange,
        fill: &mut Fill<'_>,
        moved: &mut Moved<'_>,
    ) -> Result<(), Failure> {
        for page in range.iter() {
            self.change(page, Cause::Migrate, Some(device));
            let bytes = match &self.pages().get(&page.0).ok_or(Failure::Invalid)?.home {
                Home::Hole | Home::Zero => None,
                Home::System(bytes) => Some(bytes.clone()),
                Home::Device(..) | Home::Exclusive(_) => continue,
            };
            let Some(pfn) = fill(page, bytes.as_deref().map(|bytes| &bytes[..])) else { continue };
            let mut pages = self.pages();
            let entry = pages.get_mut(&page.0).ok_or(Failure::Invalid)?;
            entry.home = Home::Device(device, pfn);
            let write = entry.write;
            drop(pages);
            moved(page, pfn, write);
        }
        Ok(())
    }

    fn migrate_to_system(
        &self,
        device: Number,
        range: PageRange,
        drain: &mut Drain<'_>,
        moved: &mut Moved<'_>,
    ) -> Result<(), Failure> {
        for page in range.iter() {
            let Some(Home::Device(on, pfn)) = self.pages().get(&page.0).map(|page| page.home.clone()) else {
                continue;
            };
            let mut bytes: Bytes = Box::new([0; PAGE_SIZE]);
            if on != device || !drain(page, pfn, &mut bytes[..]) {
                continue;
            }
            self.change(page, Cause::Migrate, Some(device));
            self.memories[usize::from(device.get())].free(&[pfn]);
            self.pages().get_mut(&page.0).ok_or(Failure::Invalid)?.home = Home::System(bytes);
            moved(page, pfn, true);
        }
        Ok(())
    }

    fn make_exclusive(&self, device: Number, page: Vpn) -> Result<u64, Failure> {
        self.fault(page, Request::Write, device).map_err(|_any| Failure::Fault)?;
        self.change(page, Cause::Exclusive, Some(device));
        let mut pages = self.pages();
        let entry = pages.get_mut(&page.0).ok_or(Failure::Fault)?;
        if let Home::System(bytes) = &entry.home {
            entry.home = Home::Exclusive(bytes.clone());
        }
        Ok(page.addr())
    }

    fn load_exclusive(&self, addr: u64, to: &mut [u8; PAGE_SIZE]) {
        match &self.pages().get(&Vpn::of_addr(addr).0).expect("mapped").home {
            Home::Exclusive(bytes) => to.copy_from_slice(&bytes[..]),
            Home::Hole | Home::Zero | Home::System(_) | Home::Device(..) => panic!("a stale entry"),
        }
    }

    fn evict(&self, device: Number) {
        let all: Vec<_> = self.pages().keys().copied().collect();
        for page in all.into_iter().map(Vpn).filter(|page| self.is_on(*page) == Some(device)) {
            let mut bytes: Bytes = Box::new([0; PAGE_SIZE]);
            assert!(self.load(page, &mut bytes));
            self.change(page, Cause::Migrate, Some(device));
            let mut pages = self.pages();
            let entry = pages.get_mut(&page.0).expect("mapped");
            let before = std::mem::replace(&mut entry.home, Home::System(bytes));
            if let Home::Device(_, pfn) = before {
                self.memories[usize::from(device.get())].free(&[pfn]);
            }
        }
    }
}

impl Caller for Fake {
    fn read(&self, addr: u64, to: &mut [u8]) -> bool {
        let buffer = self.buffer.lock().expect("not poisoned");
        let from =
            addr.checked_sub(BUFFER).and_then(|at| buffer.get(usize::try_from(at).ok()?..)?.get(..to.len()));
        from.inspect(|from| to.copy_from_slice(from)).is_some()
    }

    fn write(&self, addr: u64, from: &[u8]) -> bool {
        let mut buffer = self.buffer.lock().expect("not poisoned");
        let at = addr.checked_sub(BUFFER).and_then(|at| usize::try_from(at).ok());
        let to = at.and_then(|at| buffer.get_mut(at..)?.get_mut(..from.len()));
        to.map(|to| to.copy_from_slice(from)).is_some()
    }
}
