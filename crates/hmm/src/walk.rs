//! What the CPU's page table and the mappings say of pages, and faulting pages in.
//!
//! The kernel shows no page's write permission. It follows from what it does show: the mapping is writable; the page is
//! not the zero page, belongs to nobody else (a page of a private mapping has to be anonymous and mapped once, else a
//! write makes a copy), and is not write-protected by a userfaultfd. Writes to pages of shared mappings are never
//! redirected: a file system that wants to know of the first one learns of it from the device's own access.

use hmm_core::addr::{BLOCK_PAGES, HUGE_ORDER, PAGE_SIZE, PageRange, Vpn};
use hmm_core::kernel::{Mapped, Refusal, Rights, Seen};
use hmm_uapi::maps::{Perms, Vma, VmaKind};
use hmm_uapi::pagemap::{Categories, PageEntry, ScanArgs};
use hmm_uapi::uffd::Access;
use rustix::io::Errno;

use crate::adopt::is_manageable;
use crate::mm::{Mm, range_of};

/// See [`Kernel::walk`](hmm_core::kernel::Kernel::walk).
pub(crate) fn walk(mm: &Mm, range: PageRange, seen: &mut [Seen]) -> Result<(), Refusal> {
    seen.fill(Seen::default());
    let mut at = range.start;
    while at < range.end {
        let Ok(Some(vma)) = mm.maps().next_vma(at.addr()) else { break };
        let piece =
            PageRange::of_bytes(vma.start, vma.end).intersect(PageRange { start: at, end: range.end });
        if piece.is_empty() {
            break;
        }
        at = piece.end;
        let first = offset(range.start, piece.start);
        let part = &mut seen[first..first + offset(piece.start, piece.end)];
        walk_mapping(mm, &vma, piece, part)?;
    }
    Ok(())
}

/// Pages from `start` to `end`.
fn offset(start: Vpn, end: Vpn) -> usize {
    usize::try_from(end.0 - start.0).unwrap_or(usize::MAX)
}

/// Looks at pages of one mapping.
fn walk_mapping(mm: &Mm, vma: &Vma, range: PageRange, seen: &mut [Seen]) -> Result<(), Refusal> {
    let rights = rights(vma);
    if rights == Rights::None {
        return Ok(());
    }
    let block = range.start.block();
    let unshared = mm.extents().unshared();
    // Pages can come to it by our hand only, and of forks we hear.
    let is_ours = mm.reports_forks()
        && is_manageable(vma)
        && range.end <= block.pages().end
        && mm.extents().first_gap(block.pages()).is_none();
    if is_ours && unshared.knows(block) {
        scan_own(mm, rights, range, seen);
        return Ok(());
    }
    let begin = unshared.begin();
    let mut entries = [PageEntry::default(); BLOCK_PAGES];
    for (pages, seen) in (0u64..).zip(seen.chunks_mut(BLOCK_PAGES)) {
        let first = range.start.add(pages * BLOCK_PAGES as u64);
        let entries = &mut entries[..seen.len()];
        mm.pagemap().entries(first.addr(), entries).map_err(|_| Refusal::NoMemory)?;
        for (seen, entry) in seen.iter_mut().zip(entries) {
            *seen = look(vma, rights, *entry);
        }
        if vma.page_size == PAGE_SIZE as u64 {
            mark_huge_and_zero(mm, PageRange::new(first, seen.len() as u64), seen);
        }
    }
    if is_ours && range == block.pages() && !seen.iter().any(|seen| seen.cpu == Mapped::ReadOnly) {
        unshared.note(block, begin);
    }
    Ok(())
}

/// Looks at pages of which none is shared: what is there can be written to, if the mapping allows it.
fn scan_own(mm: &Mm, rights: Rights, range: PageRange, seen: &mut [Seen]) {
    seen.fill(Seen { rights, ..Seen::default() });
    let mut args = ScanArgs::any(Categories::PRESENT);
    args.tell = Categories::PRESENT | Categories::HUGE | Categories::PFNZERO | Categories::WRITTEN;
    mm.scan_regions(range_of(range), args, |region| {
        let found = region.categories();
        let cpu = if found.contains(Categories::PFNZERO) {
            Mapped::Zero
        } else if rights == Rights::Write && found.contains(Categories::WRITTEN) {
            Mapped::Writable
        } else {
            Mapped::ReadOnly
        };
        let order = if found.contains(Categories::HUGE) { HUGE_ORDER } else { 0 };
        let protected = cpu == Mapped::ReadOnly && !found.contains(Categories::WRITTEN);
        let pages = PageRange::of_bytes(region.range().start, region.range().end).intersect(range);
        seen[offset(range.start, pages.start)..offset(range.start, pages.end)].fill(Seen {
            rights,
            cpu,
            order,
            protected,
        });
    });
}

/// What the mapping lets a device do. The kernel's own mappings are for CPUs only, but for the code among them.
fn rights(vma: &Vma) -> Rights {
    let is_data_of_kernel = vma.kind == VmaKind::Special && !vma.perms.contains(Perms::EXEC);
    if !vma.perms.contains(Perms::READ) || is_data_of_kernel {
        Rights::None
    } else if vma.perms.contains(Perms::WRITE) {
        Rights::Write
    } else {
        Rights::Read
    }
}

fn look(vma: &Vma, rights: Rights, entry: PageEntry) -> Seen {
    // A mapping without copies on write has either a file's pages, or memory of a device that is no page at all.
    let is_shared = vma.perms.contains(Perms::SHARED) || vma.kind == VmaKind::Special;
    if entry.is_present() && is_shared && !entry.is_file() {
        return Seen::default();
    }
    let is_own = is_shared || (!entry.is_file() && entry.is_exclusive());
    let cpu = if !entry.is_present() {
        Mapped::Absent
    } else if rights == Rights::Write && is_own && !entry.is_write_protected() {
        Mapped::Writable
    } else {
        Mapped::ReadOnly
    };
    let in_huge = vma.page_size / PAGE_SIZE as u64;
    let order = if cpu == Mapped::Absent { 0 } else { u8::try_from(in_huge.max(1).ilog2()).unwrap_or(0) };
    let protected = cpu == Mapped::ReadOnly && entry.is_write_protected();
    Seen { rights, cpu, order, protected }
}

/// What only a scan tells.
fn mark_huge_and_zero(mm: &Mm, range: PageRange, seen: &mut [Seen]) {
    let args = ScanArgs::any(Categories::HUGE | Categories::PFNZERO);
    mm.scan_regions(range_of(range), args, |region| {
        let region_pages = PageRange::of_bytes(region.range().start, region.range().end).intersect(range);
        for page in region_pages.iter() {
            let seen = &mut seen[offset(range.start, page)];
            if seen.cpu == Mapped::Absent {
                continue;
            }
            if region.categories().contains(Categories::HUGE) {
                seen.order = HUGE_ORDER;
            }
            if region.categories().contains(Categories::PFNZERO) {
                seen.cpu = Mapped::Zero;
            }
        }
    });
}

/// See [`Kernel::populate`](hmm_core::kernel::Kernel::populate).
pub(crate) fn populate(range: PageRange, write: bool, access: Access) -> Result<(), Refusal> {
    let range = range_of(range);
    let done = if write { hmm_uapi::sys::populate_write(range) } else { hmm_uapi::sys::populate_read(range) };
    done.map_err(|errno| match errno {
        // Also for a page that is missing when only user mode is served; the engine finds out which.
        Errno::FAULT if access == Access::UserModeOnly => Refusal::Unserved,
        Errno::NOMEM | Errno::AGAIN | Errno::INTR => Refusal::NoMemory,
        _ => Refusal::Fault,
    })
}
