//! Finding the program's memory, by what the kernel says of its mappings.
//!
//! Managed are private anonymous mappings, readable and writable or reserved for it, with four exceptions: our own, the
//! main thread's stack, the tails of libraries' data (their code's variables, which our own threads may need through
//! libc), and mappings with executable pages.

use hmm_core::Engine;
use hmm_core::addr::{PAGE_SIZE, PageRange, Vpn};
use hmm_uapi::AddrRange;
use hmm_uapi::maps::{Perms, Vma, VmaKind};
use hmm_uapi::pagemap::{Categories, ScanArgs};
use hmm_uapi::uffd::Modes;
use rustix::io::Errno;

use crate::calls::{Calls, Patience};
use crate::mm::{Mm, range_of};
use crate::runtime::{RETRY_PAUSE_NS, pause};

/// Bytes behind a file's mapping that are taken for the tail of its data: a mapping of that size is left alone, in a
/// larger one they stay resident.
pub(crate) const DATA_TAIL_BYTES: u64 = 1 << 20;

/// Behind all addresses that a program can have, with room for rounding up.
const END_OF_ADDRESSES: u64 = 1 << 63;

/// Whether the mapping is of a kind that can be managed.
pub fn is_manageable(vma: &Vma) -> bool {
    matches!(vma.kind, VmaKind::Anonymous | VmaKind::Heap)
        && !vma.perms.intersects(Perms::SHARED | Perms::EXEC)
        && vma.page_size == PAGE_SIZE as u64
}

/// What one look at the mappings found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Ranges that were not managed before.
    pub ranges: u64,
    /// Pages in them that were resident.
    pub resident_pages: u64,
    /// Ranges that the kernel refused to register.
    pub refused: u64,
}

/// A look at the mappings, and what it needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look<'l> {
    pub(crate) engine: &'l Engine<Mm>,
    /// Ranges that are never managed: everything that the threads which answer faults stand on (I6).
    pub(crate) exclude: &'l [AddrRange],
    pub(crate) calls: &'l Calls,
    pub(crate) patience: Patience,
}

/// Looks at the mappings that touch `within`, and takes over what is not managed yet.
pub(crate) fn discover(look: &Look<'_>, within: AddrRange) -> Found {
    let mut found = Found::default();
    let mm = look.engine.kernel();
    let mut end_of_file = None;
    let mut at = within.start;
    while at < within.end {
        let Ok(Some(vma)) = mm.maps().next_vma(at) else { break };
        if vma.end <= at || vma.start >= within.end {
            break;
        }
        at = vma.end;
        if vma.kind == VmaKind::File {
            end_of_file = Some(vma.end);
            continue;
        }
        if !is_manageable(&vma) {
            continue;
        }
        let range = vma.range();
        // The first one may begin in front of `within`: small mappings find room behind data, and are one with it then.
        if range.start == end_of_file.unwrap_or_else(|| end_before(mm, range.start)) {
            if range.len() <= DATA_TAIL_BYTES {
                continue;
            }
            // Data and other memory in one mapping: all of it or nothing, or else the program could not mremap it. Also
            // what was never touched of the data has to be there: we might be the first to touch it.
            let tail = AddrRange::new(range.start, DATA_TAIL_BYTES);
            let _ = hmm_uapi::sys::populate_write(tail);
            look.engine.pin(PageRange::of_bytes(tail.start, tail.end), true);
        }
        end_of_file.get_or_insert(0);
        for_parts_outside(range, look.exclude, &mut |part| take_over(look, part, &mut found));
    }
    found
}

/// Takes over the parts of manageable mappings that are inside of `within`, and no more of them. The caller has excluded
/// what must not be managed.
pub(crate) fn take_part(look: &Look<'_>, within: AddrRange) -> Found {
    let outside =
        [AddrRange { start: 0, end: within.start }, AddrRange { start: within.end, end: END_OF_ADDRESSES }];
    let look = Look { exclude: &outside, ..*look };
    let mut found = Found::default();
    let mut at = within.start;
    while at < within.end {
        let Ok(Some(vma)) = look.engine.kernel().maps().next_vma(at) else { break };
        if vma.start >= within.end {
            break;
        }
        let part = AddrRange { start: vma.start.max(within.start), end: vma.end.min(within.end) };
        at = vma.end;
        if is_manageable(&vma) {
            take_over(&look, part, &mut found);
        }
    }
    found
}

/// Where the file ends that is mapped right in front of the address; 0 if there is none.
fn end_before(mm: &Mm, addr: u64) -> u64 {
    let before = mm.maps().next_vma(addr.saturating_sub(1)).ok().flatten();
    before.filter(|vma| vma.kind == VmaKind::File && vma.end == addr).map_or(0, |vma| vma.end)
}

/// Calls `each` for the parts of the range that are in none of `exclude`.
fn for_parts_outside(range: AddrRange, exclude: &[AddrRange], each: &mut dyn FnMut(AddrRange)) {
    let mut start = range.start;
    while start < range.end {
        let inside = exclude.iter().find(|ours| ours.contains(start));
        if let Some(ours) = inside {
            start = ours.end;
            continue;
        }
        let next =
            exclude.iter().map(|ours| ours.start).filter(|next| *next > start).min().unwrap_or(range.end);
        let end = next.min(range.end);
        each(AddrRange { start, end });
        start = end;
    }
}

/// Registers what is not registered of a mapping (or a part of one), and adopts what is resident there.
fn take_over(look: &Look<'_>, part: AddrRange, found: &mut Found) {
    let pages = PageRange::of_bytes(part.start, part.end);
    let mut rest = pages;
    let mut tries = 0;
    // Asked first without holding anybody back: as a rule all is known.
    while look.engine.kernel().extents().first_gap(rest).is_some() {
        match register_next(look, rest) {
            Step::Registered(gap) => {
                found.ranges += 1;
                found.resident_pages += adopt_resident(look.engine, gap);
                rest.start = gap.end;
            }
            Step::Refused(gap) => {
                found.refused += 1;
                rest.start = gap.end;
            }
            Step::Again if tries < look.patience.tries() => {
                tries += 1;
                pause(RETRY_PAUSE_NS);
            }
            Step::Again | Step::Nothing => break,
        }
    }
    merge(look.engine, pages);
}

/// What became of the next part that was not known.
enum Step {
    Registered(PageRange),
    /// The kernel does not want to, or it has changed meanwhile: left for the next look.
    Refused(PageRange),
    /// An event has to be read first.
    Again,
    Nothing,
}

/// Registers the first mapping in `rest` that is not known, or the first such part of one, and notes it.
///
/// Memory that is not registered yet goes and comes without an event. So the mapping is looked at while the program's
/// calls are held back, and again after it was registered; from then on changes send events, which nobody reads before
/// the guard is gone. What is known has to be asked under the guard, too: a mapping that was moved comes to be known when
/// its event is read, and its states must not be taken for those of one that is gone.
///
/// All of the mapping is registered, also where we believe to have done so: what we believe is out of date while an event
/// is unread. Of a mapping that is registered in parts the kernel makes two, for ever if pages come to both of them
/// before the rest is registered; then the program cannot mremap it any more.
fn register_next(look: &Look<'_>, rest: PageRange) -> Step {
    let mm = look.engine.kernel();
    let _quiet = look.calls.hold_back(look.patience);
    let events = look.engine.events();
    let Some(gap) = mm.extents().first_gap(rest) else { return Step::Nothing };
    let Ok(Some(vma)) = mm.maps().next_vma(gap.start.addr()) else { return Step::Nothing };
    let mapping = PageRange::of_bytes(vma.start, vma.end);
    // Its front may have been unmapped since.
    let start = gap.start.max(mapping.start);
    let whole = part_around(mapping, start, look.exclude);
    let gap = gap.intersect(whole);
    if !gap.contains(start) {
        return Step::Nothing;
    }
    if !is_manageable(&vma) {
        return Step::Refused(gap);
    }
    events.removed(gap);
    // SAFETY: as in `register`.
    if unsafe { mm.uffd().register(range_of(whole), Modes::MISSING) }.is_err() {
        return Step::Refused(gap);
    }
    if !mm.keep_together(start) {
        return Step::Again;
    }
    if one_mapping(mm, gap).is_none_or(|now| gap.intersect(now) != gap) {
        return Step::Refused(gap);
    }
    mm.extents().set_vma(gap);
    Step::Registered(gap)
}

/// The part of the range around the page that is outside of all of `exclude`.
fn part_around(range: PageRange, page: Vpn, exclude: &[AddrRange]) -> PageRange {
    exclude.iter().fold(range, |part, ours| {
        let ours = PageRange::of_bytes(ours.start, ours.end);
        if ours.end <= page {
            PageRange { start: part.start.max(ours.end), ..part }
        } else {
            PageRange { end: part.end.min(ours.start), ..part }
        }
    })
}

/// The manageable mapping that the range begins in.
fn one_mapping(mm: &Mm, range: PageRange) -> Option<PageRange> {
    let vma = mm.maps().next_vma(range.start.addr()).ok()??;
    let pages = PageRange::of_bytes(vma.start, vma.end);
    (is_manageable(&vma) && pages.contains(range.start)).then_some(pages)
}

/// Makes one extent of the extents of one mapping.
fn merge(engine: &Engine<Mm>, pages: PageRange) {
    let mm = engine.kernel();
    if mm.extents().covering(pages.start) == Some(pages) {
        return;
    }
    let _events = engine.events();
    let one = one_mapping(mm, pages).map(|now| now.intersect(pages));
    if one == Some(pages) && mm.extents().first_gap(pages).is_none() {
        mm.extents().set_vma(pages);
    }
}

/// Registers a range whose states are those of a mapping that is gone: they are forgotten first.
pub(crate) fn register(engine: &Engine<Mm>, range: PageRange) -> Result<(), Errno> {
    let mm = engine.kernel();
    let events = engine.events();
    events.removed(range);
    // SAFETY:
    // 1. the range is the program's memory, whose bytes read the same whether or not a page was away meanwhile (I1-I3).
    // 2. the caller excluded everything that the threads which answer faults stand on (I6).
    // 3. pages are only taken out by the engine, which brings them back at the next touch; a process that ends takes
    //    its memory along.
    unsafe { mm.uffd().register(range_of(range), Modes::MISSING) }?;
    mm.extents().set_vma(range);
    Ok(())
}

/// Adopts the resident pages of a range that was just registered.
fn adopt_resident(engine: &Engine<Mm>, range: PageRange) -> u64 {
    let mm = engine.kernel();
    let mut resident = 0;
    mm.scan_regions(range_of(range), ScanArgs::any(Categories::PRESENT), |region| {
        let part = PageRange::of_bytes(region.range().start, region.range().end);
        resident += engine.adopt(part, &mut |block| mm.present(block));
    });
    resident
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_around_a_page() {
        let range = |start, end| PageRange { start: Vpn(start), end: Vpn(end) };
        let bytes = |start: u64, end: u64| AddrRange { start: start << 12, end: end << 12 };
        let exclude = [bytes(0, 20), bytes(50, 60), bytes(90, 200)];
        assert_eq!(part_around(range(10, 100), Vpn(20), &exclude), range(20, 50));
        assert_eq!(part_around(range(10, 100), Vpn(49), &exclude), range(20, 50));
        assert_eq!(part_around(range(10, 100), Vpn(75), &exclude), range(60, 90));
        assert!(!part_around(range(10, 100), Vpn(55), &exclude).contains(Vpn(55)));
        assert_eq!(part_around(range(61, 80), Vpn(75), &exclude), range(61, 80));
    }

    #[test]
    fn parts_outside_of_excluded_ranges() {
        let range = |start, end| AddrRange { start, end };
        let mut parts = vec![];
        for_parts_outside(range(10, 100), &[range(0, 20), range(50, 60), range(90, 200)], &mut |part| {
            parts.push(part);
        });
        assert_eq!(parts, [range(20, 50), range(60, 90)]);
    }
}
