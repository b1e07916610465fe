//! Copies of pages that everybody only reads (`hmm_core::duplicate`): the system keeps the page, write-protected.
//!
//! ```text
//!     again: seq = read_begin
//!     range fault: what was asked for is faulted in
//!     the first time: have what is not write-protected yet be so; goto again
//!     copy what is                        into frames of our own, which the engine knows nothing of
//!     install(seq): entries for them      Collided: free the frames, goto again
//! ```
//!
//! What cannot be protected is left to be entered in place.

use hmm_core::addr::{BLOCK_PAGES, PageRange, Vpn};
use hmm_device::{Device as _, DevicePfn};

use crate::buffer::Fault;
use crate::device::Shared;
use crate::enter::{recall, wants_of};
use crate::host::{Found, Want};
use crate::service::State;
use crate::table::{Entry, Table};

/// Times that a range is read again because it changed, before it is left to be entered in place.
const MAX_TRIES: usize = 8;

/// Copies that are made, and not entered yet.
struct Copies {
    /// The frames of the range's pages.
    frames: [Option<DevicePfn>; BLOCK_PAGES],
}

/// Makes room for a range of at most 512 pages, and has the device copy it as far as it can be. Pages of `faults` are
/// faulted in. Returns how many copies were made.
pub(crate) fn duplicate(device: &Shared, state: &mut State, range: PageRange, faults: &[Fault]) -> usize {
    let nr_pages = usize::try_from(range.nr_pages()).unwrap_or(0);
    state.room.make(device, &mut state.thrash, nr_pages.min(device.memory.nr_frames()));
    let mut wants = [Want::Look; BLOCK_PAGES];
    let wants = &mut wants[..nr_pages];
    wants_of(range, faults, wants);
    let mut is_protected = false;
    for _ in 0..MAX_TRIES {
        let mut found = [Found::None; BLOCK_PAGES];
        let found = &mut found[..nr_pages];
        let seq = device.notifier.read_begin();
        let looked = device.host.range_fault(&device.notifier, seq, device.owner, range, wants, found);
        if looked.is_err() {
            // Whatever it is, the way in place says what.
            return 0;
        }
        if recall(device, range, wants, found) {
            continue;
        }
        if !std::mem::replace(&mut is_protected, true)
            && let Some(part) = unprotected(range, found)
        {
            device.host.protect(device.owner, part);
            continue;
        }
        let mut copies = copy(device, range, found);
        let nr = device.notifier.install(seq, |table| enter(table, range, &mut copies));
        // What was not entered.
        copies.frames.iter().flatten().for_each(|frame| device.memory.free(&[*frame]));
        match nr {
            Ok(nr) => {
                device.stats.duplicated.add(nr);
                if nr > 0 {
                    state.room.came(range);
                }
                return nr;
            }
            Err(_) => device.stats.collisions.add(1),
        }
    }
    0
}

/// The pages from the first to the last that is in system memory and not protected.
fn unprotected(range: PageRange, found: &[Found]) -> Option<PageRange> {
    let is_open = |found: &Found| matches!(found, Found::System { protected: false, .. });
    let first = found.iter().position(is_open)?;
    let last = found.iter().rposition(is_open)?;
    Some(PageRange { start: range.start.add(first as u64), end: range.start.add(last as u64 + 1) })
}

/// Copies the pages that are protected, and have no copy yet, as far as there are frames.
fn copy(device: &Shared, range: PageRange, found: &[Found]) -> Copies {
    let mut copies = Copies { frames: [None; BLOCK_PAGES] };
    let is_new = {
        let table = device.notifier.table();
        let mut is_new = [false; BLOCK_PAGES];
        for ((is_new, page), found) in is_new.iter_mut().zip(range.iter()).zip(found) {
            *is_new = matches!(found, Found::System { protected: true, .. })
                && !matches!(table.get(page), Entry::Copy { .. });
        }
        is_new
    };
    for (index, page) in range.iter().enumerate().filter(|(index, _)| is_new[*index]) {
        let mut frame = [DevicePfn(0)];
        if device.memory.alloc(&mut frame) == 0 {
            break;
        }
        // SAFETY: a page of the program's that a kernel reads; who launched it, or asked for it beforehand, answers for
        // that. That it may be gone by now is allowed.
        match unsafe { device.memory.copy_system(frame[0], page) } {
            Ok(()) => copies.frames[index] = Some(frame[0]),
            Err(crate::trap::Trapped) => device.memory.free(&frame),
        }
    }
    copies
}

/// Makes the entries, under the table's lock. Returns how many.
fn enter(table: &mut Table, range: PageRange, copies: &mut Copies) -> usize {
    let mut nr = 0;
    for (page, frame) in range.iter().zip(&mut copies.frames) {
        if let Some(frame) = frame.take() {
            table.set(page, Entry::Copy { frame: frame.0 });
            nr += 1;
        }
    }
    nr
}

/// Whether the table has what a fault wants.
pub(crate) fn is_served(table: &Table, fault: &Fault) -> bool {
    match table.get(fault.page) {
        Entry::Copy { .. } => !fault.write,
        Entry::Frame { write, .. } | Entry::System { write } => write || !fault.write,
        Entry::None | Entry::Failed(_) => false,
    }
}

/// The faults of a batch that are in a range.
pub(crate) fn faults_in(batch: &[Fault], range: PageRange) -> &[Fault] {
    let at = |page: Vpn| batch.partition_point(|fault| fault.page < page);
    let (first, end) = (at(range.start), at(range.end));
    &batch[first..end]
}
