//! Serving a batch of faults.
//!
//! ```text
//!     drop duplicates
//!     for each page: what do the hints say?          policy, thrash, gone
//!       to be migrated: how much around it?          grow, streams; what comes next: ahead
//!     make room; migrate                             room
//!     for each run of pages:
//!       again: seq = read_begin
//!       range fault: what was asked for is faulted in, what is around it only looked at
//!       install(seq): entries for what is there      Collided: goto again
//! ```
//!
//! All is done block by block, so that a huge page is brought, entered and evicted as one.
//!
//! What migrated is found by the range fault like everything else, so that there is one place where entries are made. A
//! page that should have migrated and did not is entered where it is.
//! How pages are entered is told in `enter`.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hmm_core::addr::{BLOCK_PAGES, PageRange, Vpn};
use hmm_core::hints::Hint;
use hmm_core::stream::Streams;
use hmm_core::stride::Stride;

use crate::buffer::{BATCH, Fault, drop_duplicates};
use crate::device::Shared;
use crate::duplicate::{duplicate, faults_in, is_served};
use crate::enter::map;
use crate::grow::{UNIT_PAGES, grow};
use crate::host::{Found, Want};
use crate::policy::{Action, decide, may_stay};
use crate::room::Room;
use crate::thrash::Thrash;

/// What serving remembers from batch to batch.
#[derive(Debug)]
pub(crate) struct Service {
    /// What a fault may bring at most.
    most_pages: usize,
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
    /// What the hints say.
    wanted: Action,
}

impl Service {
    pub(crate) fn new(nr_frames: usize) -> Self {
        // At most a quarter of the memory at once.
        let most_pages = (nr_frames / 4).clamp(1, BLOCK_PAGES);
        let streams = Streams::new(u32::try_from(most_pages).unwrap_or(u32::MAX));
        let room = Room::new(nr_frames, most_pages);
        let state = State { thrash: Thrash::new(), room, streams, start: Instant::now() };
        Self { most_pages, state: Mutex::new(state) }
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
    // Another unit's fault may have brought a page along meanwhile.
    drop_served(device, &mut batch);
    let mut windows = plan(device, &mut state, &batch);
    for window in &windows {
        match window.action {
            Action::Migrate => drop(bring(device, &mut state, window.range)),
            Action::Copy => {
                let faults = faults_in(&batch, window.range);
                duplicate(device, &mut state, window.range, faults);
            }
            Action::InPlace | Action::Stay => {}
        }
    }
    // Copies have their entries already.
    let is_done = |window: &Window| {
        let table = device.notifier.table();
        window.action == Action::Copy
            && faults_in(&batch, window.range).iter().all(|fault| is_served(&table, fault))
    };
    windows.retain(|window| !is_done(window));
    let stays = |window: &Window| (window.action == Action::Stay).then_some(window.range);
    let stay: Vec<_> = windows.iter().filter_map(stays).collect();
    for run in runs(&windows) {
        map(device, run, &batch, &stay);
    }
}

/// Drops faults for pages that another one has brought along meanwhile.
fn drop_served(device: &Shared, batch: &mut Vec<Fault>) {
    let mut served = [false; BATCH];
    for (served, fault) in served.iter_mut().zip(&*batch) {
        *served = is_served(&device.notifier.table(), fault);
    }
    let mut served = served.into_iter();
    batch.retain(|_| !served.next().unwrap_or(false));
}

/// What is to be done for the faults of a batch, in order of addresses.
fn plan(device: &Shared, state: &mut State, batch: &[Fault]) -> Vec<Window> {
    let mut windows: Vec<Window> = Vec::new();
    for fault in batch {
        let (hint, extent) = device.host.hint(fault.page);
        let action = decide(hint, device.index, fault.write, device.copies_reads);
        let is_planned = |last: &Window| last.wanted == action && last.range.contains(fault.page);
        if action != Action::InPlace && windows.last().is_some_and(is_planned) {
            continue;
        }
        windows.push(window_of(device, state, *fault, action, (hint, extent)));
    }
    windows
}

/// What is to be done for a fault for which the hints say `action`.
fn window_of(
    device: &Shared,
    state: &mut State,
    fault: Fault,
    action: Action,
    (hint, extent): (Hint, PageRange),
) -> Window {
    let now = state.now();
    let near = around(fault.page, UNIT_PAGES).intersect(extent);
    if action == Action::InPlace {
        return Window { range: near, action, wanted: action };
    }
    let wanted = action;
    if let Some(range) = here(device, fault.page, extent) {
        // It was brought ahead.
        let hit = state.streams.fault(fault.page, 16);
        state.streams.expect(hit, range, hit.stride.behind(range));
        if hit.stride == Stride::UP {
            expect(device, fault, range);
        }
        return Window { range, action: Action::InPlace, wanted };
    }
    if state.thrash.comes(fault.page, now) {
        device.stats.bounced.add(1);
        // That is said of this page only.
        return Window { range: near, action: Action::InPlace, wanted: Action::InPlace };
    }
    if let Some(range) = crowded(device, state, fault.page, action, hint) {
        device.stats.crowded.add(1);
        return Window { range: range.intersect(extent), action: Action::Stay, wanted };
    }
    Window { range: bringing(device, state, fault, extent), action, wanted }
}

/// What may stay in system memory with a page, for which there is no room but that of others which are wanted as soon.
fn crowded(device: &Shared, state: &State, page: Vpn, action: Action, hint: Hint) -> Option<PageRange> {
    let range = state.room.gone.too_soon(page)?;
    let is_full = (device.memory.nr_free() as u64) < range.nr_pages();
    (action == Action::Migrate && may_stay(hint, device.copies_reads) && is_full).then_some(range)
}

/// What to bring along with a page: nothing of another block, and all of a huge page.
fn bringing(device: &Shared, state: &mut State, fault: Fault, extent: PageRange) -> PageRange {
    let (page, block, now) = (fault.page, fault.page.block(), state.now());
    let hit = state.streams.fault(page, 16);
    let mut range = if device.service.most_pages == BLOCK_PAGES && look(device, PageRange::new(page, 1)).1 {
        block.pages()
    } else {
        let window = hit.window as u64;
        let pages = match hit.stride {
            Stride::UP => PageRange::new(page, window),
            Stride::DOWN => PageRange { start: Stride::DOWN.on(page, window - 1), end: page.add(1) },
            _ => {
                let frames = device.notifier.table().frames_of(block);
                let grown = grow(&frames, page.index(), device.service.most_pages);
                PageRange { start: block.page(grown.start), end: block.page(grown.end) }
            }
        };
        pages.intersect(block.pages())
    };
    range = device.host.clip(page, range.intersect(extent));
    // Only up to a page that has to stay where it is.
    let stays = |page: &Vpn| state.thrash.stays(*page, now);
    if let Some(end) = (PageRange { start: page.add(1), ..range }).iter().find(stays) {
        range.end = end;
    }
    if let Some(before) = (PageRange { end: page, ..range }).iter().filter(stays).last() {
        range.start = before.add(1);
    }
    state.streams.expect(hit, range, hit.stride.behind(range));
    if hit.stride == Stride::UP && hit.window == BLOCK_PAGES {
        expect(device, fault, range);
    }
    range
}

/// Has the block behind a range brought that a stream has come to.
fn expect(device: &Shared, fault: Fault, range: PageRange) {
    if range.end.index() == 0 && device.service.most_pages == BLOCK_PAGES {
        device.ahead.expect(Fault { page: range.end, ..fault });
    }
}

/// Brings the block that a stream comes to next, as its fault would, and makes room for it.
pub(crate) fn bring_ahead(device: &Shared, next: Fault) {
    let mut state = device.service.lock();
    let (hint, extent) = device.host.hint(next.page);
    let action = decide(hint, device.index, next.write, device.copies_reads);
    let stays = state.thrash.stays(next.page, state.now());
    if action != Action::Migrate || stays || crowded(device, &state, next.page, action, hint).is_some() {
        return;
    }
    let previous = Vpn(next.page.0.saturating_sub(1));
    // Of the mapping that the stream is in.
    let range = PageRange { start: previous, end: next.page.block().pages().end };
    let mut range = device.host.clip(previous, range).intersect(extent);
    range.start = range.start.max(next.page);
    if !range.is_empty() && here(device, next.page, range).is_none() {
        let nr = bring(device, &mut state, range);
        device.stats.ahead.add(nr);
    }
}

/// The pages of this device's memory that a page is one of, as far as they are in its block and in a range.
fn here(device: &Shared, page: Vpn, range: PageRange) -> Option<PageRange> {
    let is_here = |found: &Found| matches!(found, Found::Frame { device: of, .. } if *of == device.index);
    let (found, _) = look(device, PageRange::new(page, 1));
    is_here(&found[0]).then(|| {
        let range = PageRange { start: page, end: range.end }.intersect(page.block().pages());
        let nr = look(device, range).0.iter().take_while(|found| is_here(found)).count();
        PageRange::new(page, nr.max(1) as u64)
    })
}

/// Where pages of a block are, and whether some are part of a huge page: that should not be taken apart.
fn look(device: &Shared, range: PageRange) -> ([Found; BLOCK_PAGES], bool) {
    let (wants, mut found) = ([Want::Look; BLOCK_PAGES], [Found::None; BLOCK_PAGES]);
    let nr = usize::try_from(range.nr_pages()).unwrap_or(0);
    let seq = device.notifier.read_begin();
    let looked =
        device.host.range_fault(&device.notifier, seq, device.owner, range, &wants[..nr], &mut found[..nr]);
    // What changes just now is dealt with as if it were nowhere, and small, as it may well be by then.
    looked.map_or(([Found::None; BLOCK_PAGES], false), |is_huge| (found, is_huge))
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
    let migrated = device.host.migrate_in(device.index, device.owner, range, &mut |peer, frame, nr| {
        let copied = device.copy_from_peer(peer, frame, nr)?;
        from_peers += nr;
        Some(copied)
    });
    device.stats.migrated.add(migrated.saturating_sub(from_peers));
    device.stats.from_peers.add(from_peers);
    if migrated > 0 {
        state.room.gone.comes_back(range.start);
        state.room.came(range);
    }
    migrated
}

/// Joins windows that touch to runs, each of one block.
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
    joined.into_iter().flat_map(blocks_of).collect()
}

/// The parts of a range, each of one block.
pub(crate) fn blocks_of(range: PageRange) -> impl Iterator<Item = PageRange> {
    range.blocks().map(move |(block, _)| block.pages().intersect(range))
}
