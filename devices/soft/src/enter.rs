//! How pages are entered into the page table.
//!
//! ```text
//!     again: seq = read_begin
//!     range fault: what was asked for is faulted in, what is around it only looked at
//!     part of a huge page?                all of its block is looked at; goto again
//!     install(seq): entries for what is there      Collided: goto again
//! ```
//!
//! A huge page, of the system's or in a large run of frames, gets one entry if it would get 512 that agree.
//!
//! A page that cannot be had gets an entry that says so. The unit that waits for it takes the entry away.

use hmm_core::addr::{BLOCK_PAGES, BlockId, PageRange, Vpn};

use crate::buffer::Fault;
use crate::device::Shared;
use crate::duplicate::faults_in;
use crate::error::Why;
use crate::host::{FaultError, Found, Want};
use crate::policy::{Action, decide};
use crate::table::{Entry, Table};

/// Times that a range is read again because it changed, before its faults are left to be raised again.
const MAX_COLLISIONS: usize = 64;

/// Enters a run of pages. Those of `batch` are faulted in, and those of `stay` may be written in place.
pub(crate) fn map(device: &Shared, run: PageRange, batch: &[Fault], stay: &[PageRange]) {
    let faults = faults_in(batch, run);
    let Err(error) = try_map(device, run, faults, stay) else { return };
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
        map(device, PageRange::new(fault.page, 1), std::slice::from_ref(fault), stay);
    }
}

fn try_map(
    device: &Shared,
    mut run: PageRange,
    faults: &[Fault],
    stay: &[PageRange],
) -> Result<(), FaultError> {
    let mut found = [Found::None; BLOCK_PAGES];
    for _ in 0..MAX_COLLISIONS {
        let nr_pages = usize::try_from(run.nr_pages()).unwrap_or(0);
        let mut wants = [Want::Look; BLOCK_PAGES];
        let (wants, found) = (&mut wants[..nr_pages], &mut found[..nr_pages]);
        wants_of(run, faults, wants);
        let seq = device.notifier.read_begin();
        let is_huge = match device.host.range_fault(&device.notifier, seq, device.owner, run, wants, found) {
            Ok(is_huge) => is_huge,
            Err(FaultError::Busy) => {
                device.stats.collisions.add(1);
                continue;
            }
            Err(error) => return Err(error),
        };
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
        let block = run.start.block();
        if is_huge && nr_pages < BLOCK_PAGES {
            // All of it is entered as one.
            run = block.pages();
            continue;
        }
        let entered = entries(device, run, wants, found, stay);
        let huge = is_huge.then_some(block);
        if let Ok(in_place) = device.notifier.install(seq, |table| enter(device, table, run, &entered, huge))
        {
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

/// What was found, and whether the entry for it may be written to if the page may be. Else a write is a fault, which may
/// migrate the page.
fn entries(
    device: &Shared,
    run: PageRange,
    wants: &[Want],
    found: &[Found],
    stay: &[PageRange],
) -> Vec<(Found, bool)> {
    let mut hint = device.host.hint(run.start);
    let entry = |((page, want), found): ((Vpn, &Want), &Found)| {
        if !hint.1.contains(page) {
            hint = device.host.hint(page);
        }
        let may_write = match want {
            // It should have migrated if it were to, and did not.
            Want::Write => true,
            Want::Read | Want::Look => {
                decide(hint.0, device.index, true, device.copies_reads) == Action::InPlace
                    || stay.iter().any(|range| range.contains(page))
            }
        };
        (*found, may_write)
    };
    run.iter().zip(wants).zip(found).map(entry).collect()
}

/// Makes the entries, under the table's lock: one for a huge page, if they agree. Returns how many are in place.
fn enter(
    device: &Shared,
    table: &mut Table,
    run: PageRange,
    found: &[(Found, bool)],
    huge: Option<BlockId>,
) -> usize {
    let pages = || run.iter().zip(found);
    let is_new = |(page, (found, may_write)): &(Vpn, &(Found, bool))| {
        let entry = entry_of(device, table, *page, *found, *may_write);
        matches!(entry, Some(Entry::System { .. })) && entry != Some(table.get(*page))
    };
    let in_place = pages().filter(is_new).count();
    if let Some(block) = huge
        && let Some(first) = entry_of(device, table, run.start, found[0].0, found[0].1)
        && pages().enumerate().all(|(index, (page, (found, may_write)))| {
            entry_of(device, table, page, *found, *may_write) == Some(first.part(index))
        })
    {
        table.set_huge(block, first);
        device.stats.huge.add(1);
        return in_place;
    }
    for (page, (found, may_write)) in pages() {
        if let Some(entry) = entry_of(device, table, page, *found, *may_write) {
            table.set(page, entry);
        }
    }
    in_place
}

/// The entry to make for what was found of a page, if one is to be made.
fn entry_of(device: &Shared, table: &Table, page: Vpn, found: Found, may_write: bool) -> Option<Entry> {
    match found {
        Found::Frame { device: owner, frame, write } if owner == device.index => {
            Some(Entry::Frame { frame: frame.0, write })
        }
        // A copy is the same.
        Found::System { .. } if matches!(table.get(page), Entry::Copy { .. }) => None,
        Found::System { write, .. } => {
            // What a write was granted for before stays so.
            let granted = table.get(page) == Entry::System { write: true };
            Some(Entry::System { write: write && (may_write || granted) })
        }
        Found::None | Found::Frame { .. } => None,
    }
}
