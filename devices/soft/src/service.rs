//! Serving a batch of faults.
//!
//! ```text
//!     drop duplicates
//!     for each page: what do the hints say?          policy, thrash
//!       to be migrated: how much around it?          grow, streams
//!     make room; migrate                             room
//!     for each run of pages:
//!       again: seq = read_begin
//!       range fault: what was asked for is faulted in, what is around it only looked at
//!       install(seq): entries for what is there      Collided: goto again
//! ```
//!
//! What migrated is found by the range fault like everything else, so that there is one place where entries are made. A
//! page that should have migrated and did not is entered where it is.
//!
//! A page that cannot be had gets an entry that says so. The unit that waits for it takes the entry away.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hmm_core::addr::{BLOCK_PAGES, PageRange, Vpn};
use hmm_core::stream::Streams;

use crate::buffer::{Fault, drop_duplicates};
use crate::device::Shared;
use crate::duplicate::{duplicate, faults_in, is_served};
use crate::error::Why;
use crate::grow::{UNIT_PAGES, grow};
use crate::host::{FaultError, Found, Want};
use crate::policy::{Action, decide};
use crate::room::Room;
use crate::table::{Entry, Table};
use crate::thrash::Thrash;

/// Times that a range is read again because it changed, before its faults are left to be raised again.
const MAX_COLLISIONS: usize = 64;

/// What serving remembers from batch to batch.
#[derive(Debug)]
pub(crate) struct Service {
    state: Mutex<State>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) thrash: Thrash,
    pub(crate) room: Room,
    streams: Streams,
    start: Instant,
}

/// Pages around a fault that are dealt with together.
#[derive(Clone, Copy, Debug)]
struct Window {
    range: PageRange,
    action: Action,
}

impl Service {
    pub(crate) fn new(nr_frames: usize) -> Self {
        // A stream may bring at most a quarter of the memory at once.
        let most = (nr_frames / 4).clamp(1, BLOCK_PAGES);
        let streams = Streams::new(u32::try_from(most).unwrap_or(u32::MAX));
        let state = State { thrash: Thrash::new(), room: Room::new(), streams, start: Instant::now() };
        Self { state: Mutex::new(state) }
    }

    /// Held while faults are served, or memory is made free. No callback takes it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

/// Serves a batch: afterwards each page has an entry, or its unit will raise the fault again.
pub(crate) fn serve(device: &Shared, mut batch: Vec<Fault>) {
    let mut state = device.service.lock();
    let posted = batch.len();
    drop_duplicates(&mut batch);
    device.stats.batches.add(1);
    device.stats.faults.add(posted);
    device.stats.duplicates.add(posted - batch.len());
    let mut windows = plan(device, &mut state, &batch);
    for window in &windows {
        match window.action {
            Action::Migrate => drop(bring(device, &mut state, window.range)),
            Action::Copy => {
                let faults = faults_in(&batch, window.range);
                duplicate(device, &mut state, window.range, faults);
            }
            Action::InPlace => {}
        }
    }
    // Copies have their entries already.
    let is_done = |window: &Window| {
        let table = device.notifier.table();
        window.action == Action::Copy
            && faults_in(&batch, window.range).iter().all(|fault| is_served(&table, fault))
    };
    windows.retain(|window| !is_done(window));
    for run in runs(&windows) {
        map(device, run, &batch);
    }
}

/// What is to be done for the faults of a batch, in order of addresses.
fn plan(device: &Shared, state: &mut State, batch: &[Fault]) -> Vec<Window> {
    let now = state.now();
    let mut windows: Vec<Window> = Vec::new();
    for fault in batch {
        let (hint, extent) = device.host.hint(fault.page);
        let mut action = decide(hint, device.index, fault.write, device.copies_reads);
        let is_planned = |last: &Window| last.action == action && last.range.contains(fault.page);
        if action != Action::InPlace && windows.last().is_some_and(is_planned) {
            continue;
        }
        if action != Action::InPlace && state.thrash.comes(fault.page, now) {
            device.stats.bounced.add(1);
            action = Action::InPlace;
        }
        let range = match action {
            Action::Migrate | Action::Copy => bringing(device, state, fault.page, extent, now),
            Action::InPlace => around(fault.page, UNIT_PAGES).intersect(extent),
        };
        windows.push(Window { range, action });
    }
    windows
}

/// What to bring along with a page.
fn bringing(device: &Shared, state: &mut State, page: Vpn, extent: PageRange, now: Duration) -> PageRange {
    let hit = state.streams.fault(page, 16);
    let range = if hit.sequential {
        PageRange::new(page, hit.window as u64)
    } else {
        let block = page.block();
        let grown = grow(&device.notifier.table().frames_of(block), page.index());
        PageRange { start: block.page(grown.start), end: block.page(grown.end) }
    };
    let mut range = device.host.clip(page, range.intersect(extent));
    // Only up to a page that has to stay where it is.
    let stays = |page: &Vpn| state.thrash.stays(*page, now);
    if let Some(end) = (PageRange { start: page.add(1), ..range }).iter().find(stays) {
        range.end = end;
    }
    if let Some(before) = (PageRange { end: page, ..range }).iter().filter(stays).last() {
        range.start = before.add(1);
    }
    state.streams.expect(hit, range.end);
    range
}

fn around(page: Vpn, nr_pages: usize) -> PageRange {
    let nr_pages = nr_pages as u64;
    PageRange::new(Vpn(page.0 / nr_pages * nr_pages), nr_pages)
}

/// Makes room for a range, and migrates it. Pages that bounced on a device of the group come home instead.
pub(crate) fn bring(device: &Shared, state: &mut State, range: PageRange) -> usize {
    let wanted = usize::try_from(range.nr_pages()).unwrap_or(usize::MAX);
    state.room.make(device, &mut state.thrash, wanted.min(device.memory.nr_frames()));
    let mut from_peers = 0;
    let migrated = device.host.migrate_in(device.index, device.owner, range, &mut |peer, frame| {
        let copied = device.copy_from_peer(peer, frame)?;
        from_peers += 1;
        Some(copied)
    });
    device.stats.migrated.add(migrated.saturating_sub(from_peers));
    device.stats.from_peers.add(from_peers);
    if migrated > 0 {
        state.room.came(range);
    }
    migrated
}

/// Joins windows that touch to runs of at most a block's length.
fn runs(windows: &[Window]) -> Vec<PageRange> {
    let mut ranges: Vec<_> = windows.iter().map(|window| window.range).collect();
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<PageRange> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    let cut = |range: PageRange| {
        (range.start.0..range.end.0)
            .step_by(BLOCK_PAGES)
            .map(move |start| PageRange::new(Vpn(start), BLOCK_PAGES as u64).intersect(range))
    };
    joined.into_iter().flat_map(cut).collect()
}

/// Enters a run of pages. Those of `batch` are faulted in.
fn map(device: &Shared, run: PageRange, batch: &[Fault]) {
    let faults = faults_in(batch, run);
    let Err(error) = try_map(device, run, faults) else { return };
    if let [fault] = faults
        && run.nr_pages() == 1
    {
        let why = match error {
            // Its unit raises it again.
            FaultError::Busy => return,
            FaultError::NoMapping => Why::NoMapping,
            FaultError::Permission => Why::Permission,
            FaultError::NoMemory => Why::NoMemory,
        };
        device.stats.failed.add(1);
        device.notifier.table().set(fault.page, Entry::Failed(why));
        return;
    }
    // One page must not fail the others.
    for fault in faults {
        map(device, PageRange::new(fault.page, 1), std::slice::from_ref(fault));
    }
}

fn try_map(device: &Shared, run: PageRange, faults: &[Fault]) -> Result<(), FaultError> {
    let nr_pages = usize::try_from(run.nr_pages()).unwrap_or(0);
    let mut wants = [Want::Look; BLOCK_PAGES];
    let mut found = [Found::None; BLOCK_PAGES];
    let (wants, found) = (&mut wants[..nr_pages], &mut found[..nr_pages]);
    wants_of(run, faults, wants);
    for _ in 0..MAX_COLLISIONS {
        let seq = device.notifier.read_begin();
        match device.host.range_fault(&device.notifier, seq, device.owner, run, wants, found) {
            Ok(()) => {}
            Err(FaultError::Busy) => {
                device.stats.collisions.add(1);
                continue;
            }
            Err(error) => return Err(error),
        }
        if recall(device, run, wants, found) {
            continue;
        }
        // The own device's frames are shown whatever the mapping allows.
        let is_refused = |(want, found): (&Want, &Found)| {
            *want == Want::Write && matches!(found, Found::Frame { write: false, .. })
        };
        if wants.iter().zip(found.iter()).any(is_refused) {
            return Err(FaultError::Permission);
        }
        let may_write = |index| may_write(device, run.start.add(index as u64), wants[index]);
        let entered: Vec<_> =
            found.iter().enumerate().map(|(index, found)| (*found, may_write(index))).collect();
        if let Ok(in_place) = device.notifier.install(seq, |table| enter(device, table, run, &entered)) {
            device.stats.in_place.add(in_place);
            return Ok(());
        }
        device.stats.collisions.add(1);
    }
    Err(FaultError::Busy)
}

/// What faults want of a range.
pub(crate) fn wants_of(range: PageRange, faults: &[Fault], wants: &mut [Want]) {
    for fault in faults {
        let index = usize::try_from(fault.page.0 - range.start.0).unwrap_or(0);
        wants[index] = if fault.write { Want::Write } else { Want::Read };
    }
}

/// A page that is wanted and is still on another device of the group, because it did not come, or has to stay in system
/// memory: brings it home. Whether there was one.
pub(crate) fn recall(device: &Shared, run: PageRange, wants: &[Want], found: &[Found]) -> bool {
    let mut any = false;
    for (index, (want, found)) in wants.iter().zip(found).enumerate() {
        if *want != Want::Look && matches!(found, Found::Frame { device: peer, .. } if *peer != device.index)
        {
            device.host.migrate_home(device.owner, PageRange::new(run.start.add(index as u64), 1));
            any = true;
        }
    }
    any
}

/// Whether the entry for a page may be written if the page may be. Else a write is a fault, which may migrate the page.
fn may_write(device: &Shared, page: Vpn, want: Want) -> bool {
    match want {
        // It should have migrated if it were to, and did not.
        Want::Write => true,
        Want::Read | Want::Look => {
            let hint = device.host.hint(page).0;
            decide(hint, device.index, true, device.copies_reads) == Action::InPlace
        }
    }
}

/// Makes the entries, under the table's lock. Returns how many are in place.
fn enter(device: &Shared, table: &mut Table, run: PageRange, found: &[(Found, bool)]) -> usize {
    let mut in_place = 0;
    for (page, (found, may_write)) in run.iter().zip(found) {
        let entry = match *found {
            Found::Frame { device: owner, frame, write } if owner == device.index => {
                Entry::Frame { frame: frame.0, write }
            }
            // A copy is the same.
            Found::System { .. } if matches!(table.get(page), Entry::Copy { .. }) => continue,
            Found::System { write, .. } => {
                // What a write was granted for before stays so.
                let granted = table.get(page) == Entry::System { write: true };
                Entry::System { write: write && (*may_write || granted) }
            }
            Found::None | Found::Frame { .. } => continue,
        };
        in_place += usize::from(matches!(entry, Entry::System { .. }) && table.get(page) != entry);
        table.set(page, entry);
    }
    in_place
}
