//! Operations that read and write.

use super::arena::Page;
use super::buffer::{BUFFER_PAGES, Buffer, Way};
use super::finding::{Finding, found};
use super::place::PAGE;
use super::signals;
use super::thread::Thread;

const WAYS: [Way; 4] = [Way::File, Way::Pipe, Way::Parts, Way::Process];
/// How often something is tried again for pages that a device loses meanwhile.
const MAX_TRIES: usize = 64;

/// Bytes of an arena.
#[derive(Clone, Copy, Debug)]
struct Bytes {
    at: usize,
    len: usize,
}

impl Bytes {
    const fn pages(self) -> (usize, usize) {
        let first = self.at / PAGE;
        (first, (self.at + self.len).div_ceil(PAGE) - first)
    }
}

/// Some bytes of pages that are like that: a few, some that do not end with pages, or whole pages.
fn bytes(thread: &mut Thread<'_>, most: usize, is: impl Fn(&Page) -> bool) -> Option<Bytes> {
    let chance = &mut thread.chance;
    let (first, nr_pages) = chance.span(thread.arena.nr_pages());
    let len = thread.arena.run(first, nr_pages.min(BUFFER_PAGES), is) * PAGE;
    if len == 0 {
        return None;
    }
    let (at, len) = match chance.below(4) {
        0 => (chance.below(len / 8) * 8, 8),
        1 => {
            let at = chance.below(len);
            (at, 1 + chance.below(len - at))
        }
        _ => (0, len),
    };
    Some(Bytes { at: first * PAGE + at, len: len.min(most) })
}

/// The program writes.
pub(super) fn write(thread: &mut Thread<'_>) -> Result<(), Finding> {
    let Some(bytes) = bytes(thread, usize::MAX, Page::is_writable) else { return Ok(()) };
    let from = thread.buffer.bytes(bytes.len);
    thread.chance.fill(thread.buffer.bytes(bytes.len.next_multiple_of(8).min(BUFFER_PAGES * PAGE)));
    for _ in 0..MAX_TRIES {
        thread.arena.memory().part(bytes.at, bytes.len).copy_from(from);
        if !thread.arena.settle() {
            break;
        }
    }
    thread.arena.written(bytes.at, from)
}

/// The program reads.
pub(super) fn read(thread: &mut Thread<'_>) -> Result<(), Finding> {
    let (first, nr_pages) = thread.chance.span(thread.arena.nr_pages());
    thread.arena.check(first, nr_pages, "read by the program")
}

/// Whether a page was lost to the system call that was refused; if so it is fresh now.
fn lost(thread: &mut Thread<'_>, bytes: Bytes) -> Result<bool, Finding> {
    let (first, nr_pages) = bytes.pages();
    if signals::may_lose() {
        thread.arena.check(first, nr_pages, "after a system call that failed")?;
    }
    Ok(signals::may_lose())
}

/// The kernel writes.
pub(super) fn kernel_writes(thread: &mut Thread<'_>) -> Result<(), Finding> {
    let way = thread.chance.one_of(&WAYS);
    let Some(bytes) = bytes(thread, Buffer::most(way), Page::is_writable) else { return Ok(()) };
    let from = thread.buffer.bytes(bytes.len);
    thread.chance.fill(thread.buffer.bytes(bytes.len.next_multiple_of(8).min(Buffer::most(way))));
    for _ in 0..MAX_TRIES {
        let result = thread.buffer.to(thread.arena.memory().part(bytes.at, bytes.len), way);
        if result == Ok(bytes.len) && !thread.arena.settle() {
            return thread.arena.written(bytes.at, from);
        }
        if !signals::may_lose() {
            return found(format_args!("{way:?} into {bytes:?} gave {result:?}"));
        }
        // What was written in part is overwritten; what a page must be that nobody knows is settled by a write.
        let memory = thread.arena.memory().part(bytes.at, bytes.len);
        memory.copy_from(from);
        thread.arena.settle();
        memory.copy_from(from);
        if !thread.arena.settle() {
            thread.arena.written(bytes.at, from)?;
        }
    }
    thread.arena.memory().part(bytes.at, bytes.len).copy_from(from);
    thread.arena.written(bytes.at, from)
}

/// The kernel reads.
pub(super) fn kernel_reads(thread: &mut Thread<'_>) -> Result<(), Finding> {
    let way = thread.chance.one_of(&WAYS);
    let known = |page: &Page| page.is_readable() && !page.lazy;
    let Some(bytes) = bytes(thread, Buffer::most(way), known) else { return Ok(()) };
    for _ in 0..MAX_TRIES {
        let result = thread.buffer.of(thread.arena.memory().part(bytes.at, bytes.len), way);
        if result != Ok(bytes.len) {
            if lost(thread, bytes)? {
                continue;
            }
            return found(format_args!("{way:?} of {bytes:?} gave {result:?}"));
        }
        let wanted = thread.arena.wanted().part(bytes.at, bytes.len);
        return match thread.buffer.bytes(bytes.len).difference(wanted) {
            None => Ok(()),
            Some(at) => {
                let page = (bytes.at + at) / PAGE;
                let state = thread.arena.page(page);
                found(format_args!("wrong bytes by {way:?}: byte {at} of {bytes:?}, page {page}: {state:?}"))
            }
        };
    }
    Ok(())
}

/// The kernel must not do for us what we must not.
pub(super) fn probe(thread: &mut Thread<'_>) -> Result<(), Finding> {
    let (first, nr_pages) = thread.chance.span(thread.arena.nr_pages());
    for page in first..first + nr_pages.min(8) {
        let at = thread.arena.memory().part(page * PAGE + thread.chance.below(PAGE), 1);
        let state = thread.arena.page(page);
        let efault =
            |result: Result<usize, super::place::Errno>| result.is_err_and(|errno| errno.0 == libc::EFAULT);
        if !state.is_some_and(|state| state.is_readable()) && !efault(thread.buffer.of(at, Way::File)) {
            return found(format_args!("page {page} can be read, which is {state:?}"));
        }
        if !state.is_some_and(|state| state.is_writable()) && !efault(thread.buffer.to(at, Way::File)) {
            return found(format_args!("page {page} can be written, which is {state:?}"));
        }
    }
    Ok(())
}
