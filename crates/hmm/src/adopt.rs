//! Finding the program's memory, by what the kernel says of its mappings.
//!
//! Managed are private anonymous mappings, readable and writable or reserved for it, with four exceptions: our own, the
//! main thread's stack, the first MiB behind files' mappings (variables of libraries, which our own threads may
//! need through libc), and mappings with executable pages.

use std::time::{Duration, Instant};

use hmm_core::Engine;
use hmm_core::addr::{PAGE_SIZE, PageRange, Vpn};
use hmm_core::kernel::Kernel;
use hmm_uapi::AddrRange;
use hmm_uapi::maps::{Perms, Vma, VmaKind};
use hmm_uapi::pagemap::ScanArgs;
use hmm_uapi::uffd::Modes;
use rustix::io::Errno;

use crate::mm::{Mm, OCCUPIED, range_of};
use crate::runtime::{RETRY_PAUSE_NS, pause};

/// Bytes behind a file's mapping that are taken for the tail of its data, and left alone. Other memory finds room there, too,
/// and is one mapping with the data then.
const DATA_TAIL_BYTES: u64 = 1 << 20;
/// `IORING_OFF_SQES`.
const RING_OFFSET: u64 = 0x1000_0000;

/// The longest that mappings can be changing without a moment of rest: far longer than a thread waits for its turn.
const PATIENCE: Duration = Duration::from_secs(10);

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
    /// Whether something was left out because mappings were changing at that time: it is to be looked at again, soon.
    pub is_changing: bool,
}

/// Looks at the mappings that touch `within`, and takes over what is not managed yet. `exclude` are ranges that never
/// are: everything that the threads which answer faults stand on (I6).
///
/// What is known is true only while no event is unread: a mapping that is gone, whose event is not read yet, would hide
/// one that has taken its place. Nor does the look wait for that: the caller may be who reads events.
pub fn discover(engine: &Engine<Mm>, within: AddrRange, exclude: &[AddrRange]) -> Found {
    let mut found = Found::default();
    if !is_calm(engine) {
        found.is_changing = true;
        return found;
    }
    let mm = engine.kernel();
    let mut end_of_file = None;
    let mut at = within.start;
    while at < within.end {
        let Ok(Some(vma)) = mm.maps().next_vma(at) else { break };
        if vma.end <= at || vma.start >= within.end {
            break;
        }
        at = vma.end;
        if vma.kind == VmaKind::File {
            if is_ring(&vma) {
                engine.stop_reusing_memory();
            }
            end_of_file = Some(vma.end);
            continue;
        }
        // The first one may begin in front of `within`.
        let behind = *end_of_file.get_or_insert_with(|| end_of_file_before(mm, vma.start));
        if !is_manageable(&vma) {
            continue;
        }
        let mut range = vma.range();
        // What is registered in part is all registered, and not a file's data: the file has come to its front later.
        if range.start == behind && !is_known(mm, range) {
            range.start = range.end.min(range.start + DATA_TAIL_BYTES);
        }
        for_parts_outside(range, exclude, &mut |part| take_over(engine, part, &mut found));
    }
    found
}

/// Whether the mapping is the entries of an io_uring, which can send pages as they are (`IORING_OP_SEND_ZC`). It may be a file
/// that is mapped from the same offset on: that does no harm.
fn is_ring(vma: &Vma) -> bool {
    vma.perms.contains(Perms::SHARED | Perms::WRITE) && vma.offset == RING_OFFSET
}

/// Whether every change of registered mappings that was made before has been told, and applied.
fn is_calm(engine: &Engine<Mm>) -> bool {
    let is_calm = !engine.kernel().uffd().is_changing();
    // Who reads an event lets its thread go on before it has applied it.
    engine.catch_up();
    is_calm
}

/// Waits until mappings are not changing, for somebody whom events and faults do not wait for. False when that takes
/// too long.
pub(crate) fn wait_until_calm(engine: &Engine<Mm>) -> bool {
    let start = Instant::now();
    while !is_calm(engine) {
        if start.elapsed() > PATIENCE {
            return false;
        }
        pause(RETRY_PAUSE_NS);
    }
    true
}

/// Where the file ends that is mapped right in front of the address; 0 if there is none.
fn end_of_file_before(mm: &Mm, addr: u64) -> u64 {
    let before = mm.maps().next_vma(addr.saturating_sub(1)).ok().flatten();
    before.filter(|vma| vma.kind == VmaKind::File && vma.end == addr).map_or(0, |vma| vma.end)
}

/// Whether a part of the mapping is managed.
fn is_known(mm: &Mm, range: AddrRange) -> bool {
    let pages = PageRange::of_bytes(range.start, range.end);
    mm.extents().next_in(pages.start, pages.end).is_some()
}

/// Fills a page that is registered, has faulted, and that no look takes over: whose registration it has is ours to serve. A
/// mapping that was managed when it was made grows in place with all that it is, also when it is of another kind by then. Nothing
/// of what it grew by was ever away, so it is a hole. It must not be unregistered: what another thread moves there
/// at that moment would be, too.
pub(crate) fn fill_unknown(engine: &Engine<Mm>, page: Vpn) {
    let _events = engine.events();
    if engine.kernel().extents().covering(page).is_none() {
        // Refused while mappings are changing.
        let _ = engine.kernel().zero_page_home(page);
    }
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
pub(crate) fn for_parts_outside(range: AddrRange, exclude: &[AddrRange], each: &mut dyn FnMut(AddrRange)) {
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
    let mut rest = pages;
    // Asked first without the guard: as a rule all is known.
    while engine.kernel().extents().first_gap(rest).is_some() {
        match register_next(engine, rest) {
            Step::Registered(gap) => {
                found.ranges += 1;
                found.resident_pages += adopt_resident(engine, gap);
                rest.start = gap.end;
            }
            Step::Refused(gap) => {
                found.refused += 1;
                rest.start = gap.end;
            }
            Step::Changing => {
                found.is_changing = true;
                return;
            }
            Step::Nothing => break,
        }
    }
    merge(engine, pages);
}

/// Holes, and pages that are write-protected.
const MODES: Modes = Modes::MISSING.union(Modes::WRITE_PROTECT);

/// What became of the next part that was not known.
enum Step {
    Registered(PageRange),
    /// The kernel does not want to, or it has changed meanwhile: left for the next look.
    Refused(PageRange),
    /// Events have to be read first.
    Changing,
    Nothing,
}

/// Registers the first mapping in `rest` that is not known, or the first such part of one, and notes it.
///
/// What is known is asked under the guard, and counts only while no event is unread, before and after: what a mapping is
/// that has moved here is known when its event is read, and its states must not be taken for those of one that is gone.
/// Memory that is not registered yet goes and comes without an event; so the mapping is looked at again after it was
/// registered. From then on changes send events, which nobody reads before the guard is gone.
fn register_next(engine: &Engine<Mm>, rest: PageRange) -> Step {
    let mm = engine.kernel();
    let events = engine.events();
    if mm.uffd().is_changing() {
        return Step::Changing;
    }
    let Some(gap) = mm.extents().first_gap(rest) else { return Step::Nothing };
    let Ok(Some(vma)) = mm.maps().next_vma(gap.start.addr()) else { return Step::Nothing };
    // Its front may have been unmapped since.
    let gap = gap.intersect(PageRange::of_bytes(vma.start, vma.end));
    if gap.is_empty() {
        return Step::Nothing;
    }
    if !is_manageable(&vma) {
        return Step::Refused(gap);
    }
    events.joined(gap);
    if mm.withhold(gap).is_err() {
        return Step::Refused(gap);
    }
    // SAFETY: as in `register`.
    if unsafe { mm.uffd().register(range_of(gap), MODES) }.is_err() {
        mm.lend_range(gap);
        return Step::Refused(gap);
    }
    if one_mapping(mm, gap).is_none_or(|now| gap.intersect(now) != gap) {
        unregister_others(mm, gap);
        return Step::Refused(gap);
    }
    if mm.uffd().is_changing() {
        return Step::Changing;
    }
    mm.extents().set_vma(gap);
    Step::Registered(gap)
}

/// Memory of another kind has come into the range while it was registered: it is not ours.
fn unregister_others(mm: &Mm, range: PageRange) {
    for_mappings(mm, range, |vma, part| {
        if !is_manageable(vma) {
            give_up(mm, part);
        }
    });
}

/// Calls `each` for the mappings in the range, from its start to the first one that is not in it, with the part that is.
fn for_mappings(mm: &Mm, range: PageRange, mut each: impl FnMut(&Vma, PageRange)) {
    let mut at = range.start.addr();
    while let Ok(Some(vma)) = mm.maps().next_vma(at) {
        let part = PageRange::of_bytes(vma.start, vma.end).intersect(range);
        if part.is_empty() {
            return;
        }
        each(&vma, part);
        at = vma.end;
    }
}

/// Gives up the registration of a part that was found to be of another kind, while no event can be read.
///
/// By now a mapping may have moved there, and its registration with it; without that its pages that are away would be lost.
/// Whoever moved it waits for the event to be read. So as long as there are such events, what is there is registered again:
/// what is of another kind after all is filled when it is touched.
pub fn give_up(mm: &Mm, part: PageRange) {
    // It fails where nothing was registered.
    let _ = mm.uffd().unregister(range_of(part));
    if !mm.uffd().is_changing() {
        return mm.lend_range(part);
    }
    for_mappings(mm, part, |_, there| _ = register_known(mm, there));
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

/// Registers a range whose states are those of a mapping that is gone: they are forgotten first. That it is gone has to be
/// told before, or else the event would be taken for the end of this one.
pub(crate) fn register(engine: &Engine<Mm>, range: PageRange) -> Result<(), Errno> {
    let mm = engine.kernel();
    if !wait_until_calm(engine) {
        return Err(Errno::AGAIN);
    }
    let events = engine.events();
    events.replaced(range);
    // SAFETY:
    // 1. the range is the program's memory, whose bytes read the same whether or not a page was away meanwhile (I1-I3).
    // 2. the caller excluded everything that the threads which answer faults stand on (I6).
    // 3. pages are only taken out by the engine, which brings them back at the next touch; a process that ends takes
    //    its memory along.
    unsafe { mm.uffd().register(range_of(range), MODES) }?;
    mm.extents().set_vma(range);
    Ok(())
}

/// Registers a range that is known, and whose states are true, with a userfaultfd that took the place of the one before.
pub(crate) fn register_known(mm: &Mm, range: PageRange) -> Result<(), Errno> {
    // SAFETY: as in `register`.
    unsafe { mm.uffd().register(range_of(range), MODES) }
}

/// Adopts the resident pages of a range that was just registered.
fn adopt_resident(engine: &Engine<Mm>, range: PageRange) -> u64 {
    let mm = engine.kernel();
    let mut resident = 0;
    mm.scan_regions(range_of(range), ScanArgs::any(OCCUPIED), |region| {
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
