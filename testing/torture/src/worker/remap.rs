//! `mremap(2)`: to a place of the thread's choice, of the kernel's, and to another length.

use super::arena::{AtFork, Page, Prot};
use super::finding::{Finding, found};
use super::place::{Errno, Place};
use super::thread::Thread;
use super::trail::Deed;

/// Some pages that are alike, and were mapped by one call: what is one mapping to the program.
fn alike(thread: &mut Thread<'_>) -> Option<(usize, usize, Page)> {
    let (first, nr_pages) = thread.chance.span(thread.arena.nr_pages());
    let page = thread.arena.page(first)?;
    let is_like = |other: &Page| Page { lazy: page.lazy, guard: page.guard, ..*other } == page;
    Some((first, thread.arena.run(first, nr_pages, is_like), page))
}

/// Nothing has moved, which may be.
fn failed(
    thread: &Thread<'_>,
    what: &str,
    first: usize,
    nr_pages: usize,
    to: usize,
    why: Errno,
) -> Result<(), Finding> {
    if thread.in_pieces && why == Errno(libc::EFAULT) {
        return Ok(());
    }
    found(format_args!("{what} of {first}+{nr_pages} to {to}: {why}"))
}

/// To a place of the thread's choice, over what is there; the source may stay mapped.
pub(super) fn relocate(thread: &mut Thread<'_>) -> Result<(), Finding> {
    let Some((from, nr_pages, page)) = alike(thread) else { return Ok(()) };
    let to = match thread.chance.below(3) {
        // The same place of another block.
        0 => (from + 512) % thread.arena.nr_pages(),
        _ => thread.chance.below(thread.arena.nr_pages()),
    };
    let nr_pages = nr_pages.min(thread.arena.nr_pages() - to);
    if from < to + nr_pages && to < from + nr_pages {
        return Ok(());
    }
    let stays = thread.chance.one_in(3) && !page.locked;
    let mut flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    if stays {
        flags |= libc::MREMAP_DONTUNMAP;
    }
    let memory = thread.arena.memory();
    let (source, target) = (memory.pages(from, nr_pages), memory.pages(to, nr_pages));
    if let Err(why) = source.remap(target, flags) {
        // Older kernels have unmapped what is there by then.
        if thread.in_pieces && target.map(Prot::Write.flags(), 0).is_ok() {
            thread.arena.mapped(to, nr_pages, Prot::Write);
        }
        return failed(
            thread,
            if stays { "mremap without unmapping" } else { "mremap" },
            from,
            nr_pages,
            to,
            why,
        );
    }
    thread.arena.moved(from, to, nr_pages);
    if stays {
        for page in from..from + nr_pages {
            thread.arena.cleared(page);
            thread.arena.change(page, |page| page.guard = false);
        }
    } else {
        thread.arena.unmapped(from, nr_pages);
    }
    Ok(())
}

/// To a place of the kernel's choice, and back.
pub(super) fn wander(thread: &mut Thread<'_>) -> Result<(), Finding> {
    let Some((first, nr_pages, page)) = alike(thread) else { return Ok(()) };
    if page.locked || !page.is_readable() || thread.arena.run(first, nr_pages, |page| !page.guard) < nr_pages
    {
        return Ok(());
    }
    let place = thread.arena.memory().pages(first, nr_pages);
    thread.arena.did(Deed::Wander, first, nr_pages, 0);
    let away = match place.remap(Place::anywhere(place.len()), libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP)
    {
        Ok(away) => away,
        Err(why) => return failed(thread, "mremap to anywhere", first, nr_pages, first, why),
    };
    // Not what may be gone at any time, nor what a device may lose there.
    if !page.lazy
        && !super::signals::may_lose()
        && thread.arena.run(first, nr_pages, |page| !page.lazy) == nr_pages
    {
        let wanted = thread.arena.wanted().pages(first, nr_pages);
        if let Some(at) = away.difference(wanted) {
            return found(format_args!(
                "wrong bytes: byte {at} of {first}+{nr_pages} that moved to {away:?}"
            ));
        }
    }
    match away.remap(place, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) {
        Ok(_) => Ok(()),
        Err(why) => failed(thread, "mremap back", first, nr_pages, first, why),
    }
}

/// To fewer pages, or to more where there is room.
pub(super) fn resize(thread: &mut Thread<'_>) -> Result<(), Finding> {
    let Some((first, nr_pages, page)) = alike(thread) else { return Ok(()) };
    let memory = thread.arena.memory();
    if thread.chance.one_in(2) {
        let fewer = 1 + thread.chance.below(nr_pages);
        let (from, to) = (memory.pages(first, nr_pages), memory.pages(first, fewer));
        return match from.remap(to, 0) {
            Ok(_) => {
                thread.arena.unmapped(first + fewer, nr_pages - fewer);
                Ok(())
            }
            Err(why) => failed(thread, "mremap to fewer pages", first, nr_pages, fewer, why),
        };
    }
    let room = thread.arena.hole(first + nr_pages, 64);
    // Where something follows it is the kernel that chooses whether there is room.
    if room == 0 || page.locked || page.at_fork != AtFork::Copy {
        return Ok(());
    }
    let more = nr_pages + 1 + thread.chance.below(room);
    let (from, to) = (memory.pages(first, nr_pages), memory.pages(first, more));
    match from.remap(to, 0) {
        Ok(_) => {
            thread.arena.grown(first + nr_pages, more - nr_pages, page);
            Ok(())
        }
        Err(why) => failed(thread, "mremap to more pages", first, nr_pages, more, why),
    }
}
