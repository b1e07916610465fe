//! An address space of a few mappings, in which nothing happens by itself: for tests of the device alone.
//!
//! System pages are real memory. A page that is on a device is filled with `AWAY` there, so that whoever reads the wrong copy
//! is noticed.

#![expect(clippy::cast_possible_truncation, reason = "addresses have 64 bits here")]

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use hmm_core::addr::{BLOCK_PAGES, BlockId, PAGE_SIZE, PageRange, Vpn};
use hmm_core::hints::{Hint, Hints};
use hmm_core::notifier::{Cause, Change, Notifier, Notifiers, Owner, Sequence};
use hmm_device::{Access, Device, DevicePfn, Fetch, Store};
use hmm_uapi::mapping::Mapping;

use crate::host::{FaultError, Found, FromPeer, Host, Want};
use crate::mirror::Mirror;
use crate::table::{ALL, Table};

const AWAY: u8 = 0xa5;

#[derive(Debug, Default)]
struct State {
    devices: Vec<Option<(Arc<dyn Device>, Owner)>>,
    /// Pages that are on a device.
    away: HashMap<Vpn, (u8, DevicePfn)>,
    /// Pages of our mappings, and whether they may be written.
    mapped: HashMap<Vpn, bool>,
    /// Pages that are write-protected.
    protected: HashSet<Vpn>,
    /// Blocks that are huge pages of the system's.
    huge: HashSet<BlockId>,
}

impl State {
    /// Whether a page is part of a huge page, here or on a device.
    fn is_huge(&self, page: Vpn) -> bool {
        let (block, first) = (page.block(), self.away.get(&page.block().page(0)));
        match first {
            None => self.huge.contains(&block),
            Some((device, first)) => (0..512).all(|index| {
                self.away.get(&block.page(index)) == Some(&(*device, first.add(index)))
                    && first.is_large_start()
            }),
        }
    }

    /// The whole of a range of one block, if it is a huge page.
    fn huge_in(&self, range: PageRange) -> Option<BlockId> {
        let block = range.start.block();
        (range == block.pages() && self.is_huge(range.start)).then_some(block)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Fake {
    notifiers: Arc<Notifiers>,
    pub(crate) hints: Hints,
    state: Mutex<State>,
    /// Called in the middle of a range fault.
    pub(crate) meanwhile: Mutex<Option<Meanwhile>>,
    /// Called at the end of each range fault that succeeds: what was found is not copied or entered yet.
    pub(crate) afterwards: Mutex<Option<Meanwhile>>,
}

pub(crate) struct Meanwhile(pub(crate) Box<dyn FnMut(&Fake) + Send>);

impl std::fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meanwhile")
    }
}

impl Fake {
    /// A page is about to change.
    pub(crate) fn announce(&self, range: PageRange, cause: Cause) {
        drop(self.notifiers.invalidate(Change { range, cause, owner: None }));
    }

    /// Memory of the program.
    pub(crate) fn map(&self, nr_pages: usize, write: bool) -> (Mapping, PageRange) {
        let len = nr_pages * PAGE_SIZE;
        let mapping = Mapping::reserve_aligned(len, 2 << 20).unwrap();
        mapping.commit(0, len).unwrap();
        let range = mapping.range();
        let pages = PageRange::of_bytes(range.start, range.end);
        let mut state = self.state.lock().unwrap();
        pages.iter().for_each(|page| assert!(state.mapped.insert(page, write).is_none()));
        (mapping, pages)
    }

    /// Memory that is a huge page.
    pub(crate) fn map_huge(&self) -> (Mapping, PageRange) {
        let (mapping, pages) = self.map(BLOCK_PAGES, true);
        self.state.lock().unwrap().huge.insert(pages.start.block());
        (mapping, pages)
    }

    /// Whether a block is a huge page, wherever it is.
    pub(crate) fn is_huge(&self, block: BlockId) -> bool {
        self.state.lock().unwrap().is_huge(block.page(0))
    }

    /// The program unmaps pages; told before (`announced`), or not at all.
    pub(crate) fn unmap(&self, mapping: &Mapping, pages: PageRange, announced: bool) {
        let change = Change { range: pages, cause: Cause::Unmap, owner: None };
        let _changing = announced.then(|| self.notifiers.invalidate(change));
        let mut state = self.state.lock().unwrap();
        state.huge.remove(&pages.start.block());
        pages.iter().for_each(|page| {
            state.mapped.remove(&page);
            if let Some((device, frame)) = state.away.remove(&page) {
                state.devices[usize::from(device)].as_ref().unwrap().0.free(&[frame]);
            }
        });
        let offset = (pages.start.addr() - mapping.range().start) as usize;
        mapping.protect(offset, pages.nr_pages() as usize * PAGE_SIZE).unwrap();
    }

    /// The program touches a page to write to it, and sees its bytes.
    pub(crate) fn touch(&self, page: Vpn) -> *mut u8 {
        self.bring_home(PageRange::new(page, 1), |_| true);
        std::ptr::with_exposed_provenance_mut(page.addr() as usize)
    }

    /// Whether drivers are told before the program writes to the page.
    pub(crate) fn is_protected(&self, page: Vpn) -> bool {
        self.state.lock().unwrap().protected.contains(&page)
    }

    /// Which device has the page.
    pub(crate) fn where_is(&self, page: Vpn) -> Option<u8> {
        self.state.lock().unwrap().away.get(&page).map(|(device, _)| *device)
    }

    fn bring_home(&self, range: PageRange, which: impl Fn(u8) -> bool) -> usize {
        let change = Change { range, cause: Cause::Clear, owner: None };
        let _changing = self.notifiers.invalidate(change);
        let mut state = self.state.lock().unwrap();
        let huge = state.huge_in(range);
        let mut nr = 0;
        for page in range.iter() {
            state.protected.remove(&page);
            let Some((device, frame)) = state.away.get(&page).copied().filter(|(device, _)| which(*device))
            else {
                continue;
            };
            state.away.remove(&page);
            let device = &state.devices[usize::from(device)].as_ref().unwrap().0;
            assert_eq!(device.fetch(Fetch { frames: &[frame], bytes: bytes_of(page) }).stop, None);
            device.free(&[frame]);
            nr += 1;
        }
        state.huge.extend(huge);
        nr
    }
}

fn bytes_of(page: Vpn) -> &'static mut [u8] {
    let at: *mut u8 = std::ptr::with_exposed_provenance_mut(page.addr() as usize);
    // SAFETY: a page of a mapping that the test keeps; the fake's lock is held, and units have no entry for it.
    unsafe { std::slice::from_raw_parts_mut(at, PAGE_SIZE) }
}

impl Host for Fake {
    fn watch(&self, table: Table, mirror: Mirror) -> Result<Notifier<Mirror>, String> {
        Ok(Notifier::new(&self.notifiers, ALL, Arc::new(Mutex::new(table)), mirror).unwrap())
    }

    fn add(&self, memory: Arc<dyn Device>, owner: Owner) -> Result<u8, String> {
        let mut state = self.state.lock().unwrap();
        state.devices.push(Some((memory, owner)));
        Ok((state.devices.len() - 1) as u8)
    }

    fn remove(&self, device: u8) {
        let all = PageRange { start: Vpn(0), end: Vpn(1 << 35) };
        let away: Vec<_> =
            self.state.lock().unwrap().away.keys().copied().filter(|p| all.contains(*p)).collect();
        away.into_iter().for_each(|page| {
            self.bring_home(PageRange::new(page, 1), |of| of == device);
        });
        self.state.lock().unwrap().devices[usize::from(device)] = None;
    }

    fn settle(&self) {}

    fn enter(&self) {}

    fn clip(&self, _page: Vpn, range: PageRange) -> PageRange {
        range
    }

    fn hint(&self, page: Vpn) -> (Hint, PageRange) {
        self.hints.get(page)
    }

    fn range_fault(
        &self,
        notifier: &Notifier<Mirror>,
        seq: Sequence,
        owner: Owner,
        range: PageRange,
        wants: &[Want],
        found: &mut [Found],
    ) -> Result<bool, FaultError> {
        for ((page, want), found) in range.iter().zip(wants).zip(found) {
            let state = self.state.lock().unwrap();
            let may_write = state.mapped.get(&page).copied();
            let away = state.away.get(&page).copied();
            let is_own = |device: u8| state.devices[usize::from(device)].as_ref().unwrap().1 == owner;
            let is_own = away.is_some_and(|(device, _)| is_own(device));
            drop(state);
            *found = match (may_write, want) {
                (None, Want::Look) => Found::None,
                (None, _) => return Err(FaultError::NoMapping),
                (Some(false), Want::Write) => return Err(FaultError::Permission),
                (Some(write), want) => match away {
                    Some((device, frame)) if is_own => Found::Frame { device, frame, write },
                    Some(_) if *want == Want::Look => Found::None,
                    Some(_) => {
                        self.touch(page);
                        Found::System { write, protected: false }
                    }
                    None => {
                        let mut protected = self.state.lock().unwrap().protected.contains(&page);
                        if protected && *want == Want::Write {
                            self.touch(page);
                            protected = false;
                        }
                        Found::System { write: write && !protected, protected }
                    }
                },
            };
        }
        // What happens at the worst moment: everything was read, nothing is entered yet.
        let meanwhile = self.meanwhile.lock().unwrap().take();
        if let Some(mut meanwhile) = meanwhile {
            (meanwhile.0)(self);
        }
        let is_huge = self.state.lock().unwrap().is_huge(range.start);
        if notifier.check_retry(seq) {
            return Err(FaultError::Busy);
        }
        if let Some(afterwards) = &mut *self.afterwards.lock().unwrap() {
            (afterwards.0)(self);
        }
        Ok(is_huge)
    }

    fn protect(&self, _owner: Owner, range: PageRange) {
        let change = Change { range, cause: Cause::Clear, owner: None };
        let _changing = self.notifiers.invalidate(change);
        let mut state = self.state.lock().unwrap();
        let pages: Vec<_> = range.iter().filter(|page| state.mapped.contains_key(page)).collect();
        let here = pages.into_iter().filter(|page| !state.away.contains_key(page)).collect::<Vec<_>>();
        state.protected.extend(here);
    }

    fn migrate_in(&self, device: u8, owner: Owner, range: PageRange, from_peer: &mut FromPeer<'_>) -> usize {
        let change = Change { range, cause: Cause::Migrate, owner: Some(owner) };
        let _changing = self.notifiers.invalidate(change);
        let mut state = self.state.lock().unwrap();
        let memory = Arc::clone(&state.devices[usize::from(device)].as_ref().unwrap().0);
        let mut large = match state.huge_in(range) {
            Some(block) if !state.away.contains_key(&range.start) => {
                state.huge.remove(&block);
                memory.alloc_large().map(|first| first.0)
            }
            _ => None,
        };
        state.huge.remove(&range.start.block());
        let mut nr = 0;
        for page in range.iter().filter(|page| state.mapped.get(page) == Some(&true)).collect::<Vec<_>>() {
            state.protected.remove(&page);
            let new = match state.away.get(&page).copied() {
                Some((old, _)) if old == device => None,
                Some((old, frame)) => {
                    let peer = state.devices[usize::from(old)].as_ref().unwrap();
                    let new = (peer.1 == owner).then(|| from_peer(old, frame, 1)).flatten();
                    new.inspect(|_| peer.0.free(&[frame]))
                }
                None => {
                    let mut frame = [DevicePfn(large.unwrap_or(0))];
                    large = large.map(|next| next + 1);
                    if large.is_none() && memory.alloc(&mut frame) == 0 {
                        break;
                    }
                    let bytes = bytes_of(page);
                    let run = Store { frames: &frame, bytes, access: Access::Random };
                    assert_eq!(memory.store(run).stop, None);
                    bytes.fill(AWAY);
                    Some(frame[0])
                }
            };
            if let Some(frame) = new {
                state.away.insert(page, (device, frame));
                nr += 1;
            }
        }
        nr
    }

    fn migrate_home(&self, owner: Owner, range: PageRange) -> usize {
        let owners: Vec<_> = self
            .state
            .lock()
            .unwrap()
            .devices
            .iter()
            .map(|device| device.as_ref().is_some_and(|device| device.1 == owner))
            .collect();
        self.bring_home(range, |device| owners[usize::from(device)])
    }
}
