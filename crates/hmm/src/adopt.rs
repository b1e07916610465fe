//! Finding the program's memory, by what the kernel says of its mappings.
//!
//! Managed are private anonymous mappings, readable and writable or reserved for it, with four exceptions: our own, the
//! main thread's stack, the tails of libraries' data (their code's variables, which our own threads may need through
//! libc), and mappings with executable pages.

use hmm_core::Engine;
use hmm_core::addr::{PAGE_SIZE, PageRange};
use hmm_uapi::AddrRange;
use hmm_uapi::maps::{Perms, Vma, VmaKind};
use hmm_uapi::pagemap::{Categories, ScanArgs};
use hmm_uapi::uffd::Modes;
use rustix::io::Errno;

use crate::mm::{Mm, range_of};

/// Bytes behind a file's mapping that are taken for the tail of its data: a mapping of that size is left alone, in a
/// larger one they stay resident.
pub(crate) const DATA_TAIL_BYTES: u64 = 1 << 20;

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

/// Looks at the mappings that touch `within`, and takes over what is not managed yet. `exclude` are ranges that never
/// are: everything that the threads which answer faults stand on (I6).
pub fn discover(engine: &Engine<Mm>, within: AddrRange, exclude: &[AddrRange]) -> Found {
    let mut found = Found::default();
    let mm = engine.kernel();
    let mut end_of_file = 0;
    let mut at = within.start;
    while at < within.end {
        let Ok(Some(vma)) = mm.maps().next_vma(at) else { break };
        if vma.end <= at || vma.start >= within.end {
            break;
        }
        at = vma.end;
        if vma.kind == VmaKind::File {
            end_of_file = vma.end;
            continue;
        }
        if !is_manageable(&vma) {
            continue;
        }
        let range = vma.range();
        if range.start == end_of_file {
            if range.len() <= DATA_TAIL_BYTES {
                continue;
            }
            // Data and other memory in one mapping: all of it or nothing, or else the program could not mremap it.
            engine.pin(PageRange::of_bytes(range.start, range.start + DATA_TAIL_BYTES), true);
        }
        for_parts_outside(range, exclude, &mut |part| take_over(engine, part, &mut found));
    }
    found
}

/// Takes over the parts of manageable mappings that are inside of `within`, and no more of them. The caller has excluded
/// what must not be managed.
pub(crate) fn take_part(engine: &Engine<Mm>, within: AddrRange) -> Found {
    let mut found = Found::default();
    let mut at = within.start;
    while at < within.end {
        let Ok(Some(vma)) = engine.kernel().maps().next_vma(at) else { break };
        if vma.start >= within.end {
            break;
        }
        let part = AddrRange { start: vma.start.max(within.start), end: vma.end.min(within.end) };
        at = vma.end;
        if is_manageable(&vma) {
            take_over(engine, part, &mut found);
        }
    }
    found
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
fn take_over(engine: &Engine<Mm>, part: AddrRange, found: &mut Found) {
    let pages = PageRange::of_bytes(part.start, part.end);
    let mut at = pages.start;
    while at < pages.end {
        let rest = PageRange { start: at, end: pages.end };
        let Some(gap) = engine.kernel().extents().first_gap(rest) else { break };
        at = gap.end;
        match register_found(engine, gap) {
            Some(gap) => {
                found.ranges += 1;
                found.resident_pages += adopt_resident(engine, gap);
            }
            None => found.refused += 1,
        }
    }
    merge(engine, pages);
}

/// Registers a part of the program's memory, which may be changing: memory that is not registered yet goes and comes
/// without an event. So the mapping is looked at under the guard, and again after it was registered. What is one mapping
/// then is registered as a whole, because it would not be one otherwise; and from then on changes send events, which
/// nobody reads before the guard is gone. Everything else is left for the next look.
fn register_found(engine: &Engine<Mm>, gap: PageRange) -> Option<PageRange> {
    let mm = engine.kernel();
    let events = engine.events();
    let gap = gap.intersect(one_mapping(mm, gap)?);
    events.removed(gap);
    // SAFETY: as in `register`.
    unsafe { mm.uffd().register(range_of(gap), Modes::MISSING) }.ok()?;
    let now = one_mapping(mm, gap)?;
    if gap.intersect(now) != gap {
        return None;
    }
    mm.extents().set_vma(gap);
    Some(gap)
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
    fn parts_outside_of_excluded_ranges() {
        let range = |start, end| AddrRange { start, end };
        let mut parts = vec![];
        for_parts_outside(range(10, 100), &[range(0, 20), range(50, 60), range(90, 200)], &mut |part| {
            parts.push(part);
        });
        assert_eq!(parts, [range(20, 50), range(60, 90)]);
    }
}
