//! Operations that change mappings.

use std::ffi::c_int;
use std::fmt;

use super::arena::{AtFork, Page, Prot};
use super::finding::{Finding, found};
use super::place::{Errno, PAGE, Place};
use super::signals;
use super::thread::Thread;
use super::trail::Deed;

/// Pages of a thread that may be locked at a time: they stay resident.
const MAX_LOCKED: usize = 64;
/// One in so many of a thread's pages may be read-only, or out of reach, at a time: they may stay, too.
const PROTECTED_SHARE: usize = 16;
/// Of Linux 6.13.
const MADV_GUARD_INSTALL: c_int = 102;
const MADV_GUARD_REMOVE: c_int = 103;
/// Advice that changes no byte.
const HINTS: [c_int; 8] = [
    libc::MADV_HUGEPAGE,
    libc::MADV_NOHUGEPAGE,
    libc::MADV_COLLAPSE,
    libc::MADV_COLD,
    libc::MADV_PAGEOUT,
    libc::MADV_WILLNEED,
    libc::MADV_SEQUENTIAL,
    libc::MADV_NORMAL,
];

/// A call that must succeed, or fail for that reason.
fn expect(
    result: Result<(), Errno>,
    wanted: Result<(), c_int>,
    what: impl fmt::Display,
) -> Result<(), Finding> {
    if result == wanted.map_err(Errno) {
        return Ok(());
    }
    found(format_args!("{what}: {result:?}, and not {wanted:?}"))
}

/// Some pages, and their place, of which the last page may be there in part.
fn span(thread: &mut Thread<'_>) -> (usize, usize, Place) {
    let (first, nr_pages) = thread.chance.span(thread.arena.nr_pages());
    let place = thread.arena.memory().pages(first, nr_pages);
    let by = if thread.chance.one_in(3) { thread.chance.below(PAGE) } else { 0 };
    (first, nr_pages, place.shorter(by))
}

/// `mmap(2)` over whatever is there.
pub(super) fn map(thread: &mut Thread<'_>) -> Result<(), Finding> {
    let (first, nr_pages, place) = span(thread);
    let flags = thread.chance.one_of(&[0, 0, libc::MAP_NORESERVE, libc::MAP_POPULATE]);
    expect(place.map(Prot::Write.flags(), flags), Ok(()), "mmap")?;
    thread.arena.mapped(first, nr_pages, Prot::Write);
    Ok(())
}

/// `munmap(2)`.
pub(super) fn unmap(thread: &mut Thread<'_>) -> Result<(), Finding> {
    let (first, nr_pages, place) = span(thread);
    expect(place.unmap(), Ok(()), "munmap")?;
    thread.arena.unmapped(first, nr_pages);
    Ok(())
}

/// Calls that begin within a page are refused.
pub(super) fn misaligned(thread: &mut Thread<'_>) -> Result<(), Finding> {
    let (_, _, place) = span(thread);
    let place = place.part(1.min(place.len()), place.len().saturating_sub(1));
    let result = match thread.chance.below(3) {
        0 => place.unmap(),
        1 => place.protect(libc::PROT_NONE),
        _ => place.advise(libc::MADV_DONTNEED),
    };
    if place.len() == 0 { Ok(()) } else { expect(result, Err(libc::EINVAL), "a misaligned address") }
}

/// `MADV_DONTNEED` or `MADV_FREE`.
pub(super) fn discard(thread: &mut Thread<'_>) -> Result<(), Finding> {
    let (first, nr_pages, place) = span(thread);
    let lazily = thread.chance.one_in(3);
    let result = place.advise(if lazily { libc::MADV_FREE } else { libc::MADV_DONTNEED });
    let mut wanted = Ok(());
    for page in first..first + nr_pages {
        match thread.arena.page(page) {
            None => wanted = Err(libc::ENOMEM),
            Some(state) if state.locked => {
                wanted = Err(libc::EINVAL);
                break;
            }
            Some(_) if lazily => thread.arena.change(page, |page| page.lazy = true),
            Some(_) => thread.arena.cleared(page),
        }
    }
    expect(result, wanted, format_args!("giving up {first}+{nr_pages}, lazily: {lazily}"))
}

/// `mprotect(2)`. Not too much of the memory at a time, because it may stay resident.
pub(super) fn protect(thread: &mut Thread<'_>) -> Result<(), Finding> {
    let (first, mut nr_pages, mut place) = span(thread);
    let much = thread.arena.count(|page| page.prot != Prot::Write) * PROTECTED_SHARE;
    let prot = if much > thread.arena.nr_pages() {
        nr_pages = thread.arena.nr_pages() - first;
        place = thread.arena.memory().pages(first, nr_pages);
        Prot::Write
    } else {
        thread.chance.one_of(&[Prot::None, Prot::Read, Prot::Write])
    };
    let nr_mapped = thread.arena.run(first, nr_pages, |_| true);
    let wanted = if nr_mapped < nr_pages { Err(libc::ENOMEM) } else { Ok(()) };
    thread.arena.did(Deed::Change, first, nr_pages, 0);
    expect(place.protect(prot.flags()), wanted, format_args!("mprotect {first}+{nr_pages} {prot:?}"))?;
    (first..first + nr_mapped).for_each(|page| thread.arena.change(page, |page| page.prot = prot));
    Ok(())
}

/// `mlock(2)` and `munlock(2)`.
pub(super) fn lock(thread: &mut Thread<'_>) -> Result<(), Finding> {
    if signals::may_lose() {
        return Ok(());
    }
    let (first, nr_pages, _) = span(thread);
    let locked = thread.chance.one_in(2);
    let room =
        if locked { MAX_LOCKED.saturating_sub(thread.arena.count(|page| page.locked)) } else { nr_pages };
    let nr_pages = thread.arena.run(first, nr_pages.min(room), Page::is_writable);
    if nr_pages == 0 {
        return Ok(());
    }
    let result = thread.arena.memory().pages(first, nr_pages).lock(locked);
    if result.is_err_and(|errno| errno.0 == libc::ENOMEM || errno.0 == libc::EPERM) && locked {
        // More than this user may lock.
        return Ok(());
    }
    expect(result, Ok(()), format_args!("locking {first}+{nr_pages}: {locked}"))?;
    (first..first + nr_pages).for_each(|page| thread.arena.change(page, |page| page.locked = locked));
    Ok(())
}

/// Advice that changes no byte, whatever the kernel makes of it.
pub(super) fn hint(thread: &mut Thread<'_>) -> Result<(), Finding> {
    let (first, nr_pages, place) = span(thread);
    thread.arena.did(Deed::Change, first, nr_pages, 0);
    let _may_be_refused = place.advise(thread.chance.one_of(&HINTS));
    if thread.chance.one_in(2) { thread.arena.check(first, nr_pages, "after advice") } else { Ok(()) }
}

/// `MADV_POPULATE_READ` and `MADV_POPULATE_WRITE`.
pub(super) fn populate(thread: &mut Thread<'_>) -> Result<(), Finding> {
    let (first, nr_pages, _) = span(thread);
    let writes = thread.chance.one_in(2);
    let advice = if writes { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
    let can = |page: &Page| if writes { page.is_writable() } else { page.is_readable() };
    let nr_pages = thread.arena.run(first, nr_pages, |page| can(page) && !page.lazy);
    let result = thread.arena.memory().pages(first, nr_pages).advise(advice);
    if signals::may_lose() || nr_pages == 0 {
        return Ok(());
    }
    expect(result, Ok(()), format_args!("populating {first}+{nr_pages}, to write: {writes}"))
}

/// What children get.
pub(super) fn at_fork(thread: &mut Thread<'_>) -> Result<(), Finding> {
    let (first, nr_pages, _) = span(thread);
    let nr_pages = thread.arena.run(first, nr_pages, |_| true);
    if nr_pages == 0 {
        return Ok(());
    }
    let (advice, at_fork) = thread.chance.one_of(&[
        (&[libc::MADV_DONTFORK, libc::MADV_KEEPONFORK], AtFork::Drop),
        (&[libc::MADV_DOFORK, libc::MADV_WIPEONFORK], AtFork::Wipe),
        (&[libc::MADV_DOFORK, libc::MADV_KEEPONFORK], AtFork::Copy),
        (&[libc::MADV_DOFORK, libc::MADV_KEEPONFORK], AtFork::Copy),
    ]);
    thread.arena.did(Deed::Change, first, nr_pages, 0);
    for advice in advice {
        let result = thread.arena.memory().pages(first, nr_pages).advise(*advice);
        expect(result, Ok(()), format_args!("advice {advice} to {first}+{nr_pages}"))?;
    }
    (first..first + nr_pages).for_each(|page| thread.arena.change(page, |page| page.at_fork = at_fork));
    Ok(())
}

/// `MADV_GUARD_INSTALL` and `MADV_GUARD_REMOVE`.
pub(super) fn guard(thread: &mut Thread<'_>) -> Result<(), Finding> {
    let (first, nr_pages, _) = span(thread);
    let installs = thread.chance.one_in(2);
    let nr_pages = thread.arena.run(first, nr_pages.min(16), |page| !page.locked);
    if nr_pages == 0 || signals::may_lose() {
        return Ok(());
    }
    let place = thread.arena.memory().pages(first, nr_pages);
    let result = place.advise(if installs { MADV_GUARD_INSTALL } else { MADV_GUARD_REMOVE });
    if result == Err(Errno(libc::EINVAL)) {
        // Kernels before 6.13 have none.
        return Ok(());
    }
    expect(result, Ok(()), format_args!("guarding {first}+{nr_pages}: {installs}"))?;
    for page in first..first + nr_pages {
        if installs {
            thread.arena.cleared(page);
        }
        thread.arena.change(page, |page| page.guard = installs);
    }
    Ok(())
}
