//! mremap of the program's memory, where the kernel alone would not do.
//!
//! Two things are different from what the program would find without us. What is one mapping to it can be several to the
//! kernel, of which mremap takes one: mprotect has cut it before all of it was registered, or it had pages, and pages of
//! two groups (`anon_vma`) never become one mapping again. And when the kernel chooses the new place, that may be one which
//! another thread has just left: the event that says so may come after that of the move, and would be taken for the end of
//! what has moved there.
//!
//! So what has to move gets a place that is reserved first, and waits until nothing is known there any more; then its pieces
//! go there one after the other. What can stay in its place, and what is one piece that goes to a place of the program's
//! choice, is left to the kernel.
//!
//! Locked memory (mlock) moves first, and grows then: the kernel touches what is new of it before the move's event can be
//! read, and until that is read it refuses every verb. In between, the place to grow to is nobody's: who takes it has the call
//! fail with `ENOMEM`, and the memory is where it was.
//!
//! Which pieces there are, and what is known, the control thread says, because it has the descriptors and may take the
//! locks. The calls are made by the program's thread: they wait for events, which that thread may have to read.

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hmm::adopt::is_manageable;
use hmm::core::addr::PageRange;
use hmm::runtime::Runtime;
use hmm::uapi::tasks::has_locked_memory;
use hmm::uapi::{AddrRange, Errno};
use rustix::mm::{MapFlags, MremapFlags, ProtFlags};
use rustix::time::Timespec;

use crate::control;
use crate::question::Question;

/// Threads that can ask at the same time; more wait for one to end.
const NR_SLOTS: usize = 16;
const PAGE_BYTES: usize = 4096;
/// How often a thread asks whether its place is free, with a pause in between: two seconds at least, which is more than
/// an event takes to come, whatever the machine has to do.
const MAX_ASKS: usize = 20_000;
/// How often a piece turns out to be smaller than was said: somebody has cut it meanwhile.
const MAX_CUTS: usize = 1000;
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000 };

/// What a thread of the program asks, and what it is told.
struct Slot {
    question: Question,
    /// In: the memory to move.
    start: AtomicU64,
    end: AtomicU64,
    /// In: where to.
    place_start: AtomicU64,
    place_end: AtomicU64,
    /// In: it will grow.
    grows: AtomicBool,
    /// In: it is ours to move, even if nothing of it is known.
    is_ours: AtomicBool,
    /// Out: where the first piece ends, 0 if it is not for us; where the last one starts.
    first_end: AtomicU64,
    last_start: AtomicU64,
    /// Out: nothing is known at the place.
    is_free: AtomicBool,
    /// Out: it will grow, and the process has locked memory.
    grows_locked: AtomicBool,
}

static SLOTS: [Slot; NR_SLOTS] = [const {
    Slot {
        question: Question::new(),
        start: AtomicU64::new(0),
        end: AtomicU64::new(0),
        place_start: AtomicU64::new(0),
        place_end: AtomicU64::new(0),
        grows: AtomicBool::new(false),
        is_ours: AtomicBool::new(false),
        first_end: AtomicU64::new(0),
        last_start: AtomicU64::new(0),
        is_free: AtomicBool::new(false),
        grows_locked: AtomicBool::new(false),
    }
}; NR_SLOTS];

/// What the kernel has of a range, all of it alike. At least a part of what is to move is managed.
#[derive(Clone, Copy)]
struct Pieces {
    /// Where the first mapping of the kernel's ends.
    first_end: usize,
    /// Where the last one starts.
    last_start: usize,
    /// It will grow, and may be locked: some memory of the process is.
    grows_locked: bool,
}

/// The arguments of mremap(2).
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) old: usize,
    pub(crate) old_len: usize,
    pub(crate) new_len: usize,
    pub(crate) flags: c_int,
    pub(crate) new: usize,
}

impl Call {
    /// Makes the call. `None`: the kernel shall make it as it is.
    ///
    /// # Safety
    /// As of mremap(2).
    pub(crate) unsafe fn make(self) -> Option<Result<usize, Errno>> {
        let this = self.in_pages()?;
        let may_move = this.flags & libc::MREMAP_MAYMOVE != 0;
        let must_move = this.flags & !libc::MREMAP_MAYMOVE != 0;
        if !must_move {
            // SAFETY: the caller's promise.
            match unsafe { remap(this.old, this.old_len, this.new_len, MremapFlags::empty(), None) } {
                Err(Errno::NOMEM) if may_move => {}
                Err(Errno::FAULT) => {}
                done => return Some(done),
            }
        }
        let old_end = this.old + this.old_len;
        let (pieces, _) = ask((this.old, old_end), 0..0, this.new_len > this.old_len, false)?;
        let is_one = pieces.first_end == old_end;
        if !must_move && !is_one && this.new_len >= this.old_len {
            let (last, grown) = (pieces.last_start, this.new_len - this.old_len);
            // SAFETY: the caller's promise: only the last piece gets more.
            let result =
                unsafe { remap(last, old_end - last, old_end - last + grown, MremapFlags::empty(), None) };
            if result.is_ok() || !may_move {
                return Some(result.map(|_| this.old));
            }
        }
        let is_chosen = this.flags & libc::MREMAP_FIXED != 0;
        if !may_move || is_chosen && is_one && !pieces.grows_locked {
            return None;
        }
        // SAFETY: the caller's promise.
        Some(unsafe { this.move_pieces(pieces.grows_locked) })
    }

    /// With lengths of whole pages. `None`: not a call that can succeed, or none of which we know what it does.
    fn in_pages(self) -> Option<Self> {
        let known = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
        let (old_len, new_len) = (
            self.old_len.checked_next_multiple_of(PAGE_BYTES)?,
            self.new_len.checked_next_multiple_of(PAGE_BYTES)?,
        );
        let old_end = self.old.checked_add(old_len)?;
        let chosen = self.flags & libc::MREMAP_FIXED != 0;
        let overlap = chosen && self.old < self.new.checked_add(new_len)? && self.new < old_end;
        let is_aligned =
            self.old.is_multiple_of(PAGE_BYTES) && (!chosen || self.new.is_multiple_of(PAGE_BYTES));
        let stays = self.flags & libc::MREMAP_DONTUNMAP != 0;
        let may_move = self.flags & libc::MREMAP_MAYMOVE != 0 || !(chosen || stays);
        let is_right = old_len > 0
            && new_len > 0
            && self.flags & !known == 0
            && is_aligned
            && !overlap
            && may_move
            && (!stays || old_len == new_len);
        is_right.then_some(Self { old_len, new_len, ..self })
    }

    /// # Safety
    /// As of mremap(2).
    unsafe fn move_pieces(self, grows_locked: bool) -> Result<usize, Errno> {
        let kept = self.old_len.min(self.new_len);
        if self.new_len < self.old_len {
            // SAFETY: the caller gives up what lies behind the new length.
            unsafe { rustix::mm::munmap(pointer(self.old + kept), self.old_len - kept) }?;
        }
        let is_chosen = self.flags & libc::MREMAP_FIXED != 0;
        let place = reserve(is_chosen.then_some(self.new), self.new_len)?;
        let stays = if self.flags & libc::MREMAP_DONTUNMAP != 0 {
            MremapFlags::DONTUNMAP
        } else {
            MremapFlags::empty()
        };
        // SAFETY: the caller's promise; the place is ours.
        let result = unsafe { shift(self.old, kept, place, self.new_len, stays, grows_locked) };
        let Err(stuck) = result else { return Ok(place) };
        if self.flags & libc::MREMAP_DONTUNMAP != 0 && stuck.moved > 0 {
            // What stayed there has no pages any more, and is in their way.
            let _ = reserve(Some(self.old), stuck.moved);
        }
        // SAFETY: back to where it was. If that is refused as well there is no way out.
        let _ = unsafe { shift(place, stuck.moved, self.old, stuck.moved, MremapFlags::empty(), false) };
        // SAFETY: nobody else knows of what is left there.
        let _ = unsafe { rustix::mm::munmap(pointer(place), stuck.reserved) };
        Err(stuck.why)
    }
}

/// Takes a place, this one or any. Shared memory, so that nobody takes it for memory to manage.
fn reserve(at: Option<usize>, len: usize) -> Result<usize, Errno> {
    let fixed = if at.is_some() { MapFlags::FIXED } else { MapFlags::empty() };
    let flags = MapFlags::SHARED | MapFlags::NORESERVE | fixed;
    // SAFETY: a new mapping, or one in the place of what the caller gives up.
    unsafe { rustix::mm::mmap_anonymous(pointer(at.unwrap_or(0)), len, ProtFlags::empty(), flags) }
        .map(|place| place.expose_provenance())
}

/// A move that came to a stop.
struct Stuck {
    /// Bytes that were moved.
    moved: usize,
    /// Bytes of the place that are still reserved, or moved to.
    reserved: usize,
    why: Errno,
}

/// Moves the pieces of `len` bytes to a reserved place, and has the last one grow to `new_len` there.
///
/// # Safety
/// As of mremap(2); the place is the caller's.
unsafe fn shift(
    from: usize,
    len: usize,
    place: usize,
    new_len: usize,
    stays: MremapFlags,
    grows_locked: bool,
) -> Result<(), Stuck> {
    let mut done = 0;
    let mut tries = 0;
    while done < len {
        let to = place + done;
        let stuck = |why| Stuck { moved: done, reserved: new_len, why };
        let pieces = ask_until_free(from + done, from + len, to..place + new_len);
        let part = pieces.ok_or(stuck(Errno::FAULT))?.first_end - (from + done);
        let more = if done + part == len { new_len - len } else { 0 };
        let grown = if grows_locked { 0 } else { more };
        let flags = MremapFlags::MAYMOVE | stays;
        // SAFETY: the caller's promise.
        match unsafe { remap(from + done, part, part + grown, flags, Some(to)) } {
            Ok(_) if grown < more => {
                // SAFETY: the caller's promise; what is behind the piece is the caller's.
                let grown = unsafe { grow(to, part, more) };
                grown.map_err(|why| Stuck { moved: len, reserved: len, why })?;
            }
            Ok(_) => {}
            // Cut again since we asked.
            Err(Errno::FAULT) if tries < MAX_CUTS => {
                tries += 1;
                continue;
            }
            Err(errno) => return Err(stuck(errno)),
        }
        done += part;
    }
    Ok(())
}

/// Has a mapping of `len` bytes grow into what is reserved behind it.
///
/// # Safety
/// As of mremap(2).
unsafe fn grow(at: usize, len: usize, more: usize) -> Result<(), Errno> {
    // SAFETY: nothing is there.
    unsafe { rustix::mm::munmap(pointer(at + len), more) }?;
    // SAFETY: the caller's promise.
    unsafe { remap(at, len, len + more, MremapFlags::empty(), None) }.map(drop)
}

/// # Safety
/// As of mremap(2).
unsafe fn remap(
    old: usize,
    old_len: usize,
    new_len: usize,
    flags: MremapFlags,
    to: Option<usize>,
) -> Result<usize, Errno> {
    let old = pointer(old);
    let result = match to {
        // SAFETY: the caller's promise.
        Some(to) => unsafe { rustix::mm::mremap_fixed(old, old_len, new_len, flags, pointer(to)) },
        // SAFETY: the caller's promise.
        None => unsafe { rustix::mm::mremap(old, old_len, new_len, flags) },
    };
    result.map(|at| at.expose_provenance())
}

const fn pointer(addr: usize) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(addr)
}

/// Asks until nothing is known at the place any more. The last events of what was there before may take a while.
fn ask_until_free(start: usize, end: usize, place: Range<usize>) -> Option<Pieces> {
    for _ in 0..MAX_ASKS {
        // What is behind the first piece may have grown a moment ago, and not be known yet.
        let (pieces, is_free) = ask((start, end), place.clone(), false, true)?;
        if is_free {
            return Some(pieces);
        }
        let _ = rustix::thread::nanosleep(&PAUSE);
    }
    None
}

/// Asks the control thread for the pieces of a range that are to move, and whether the place is free. `None`: the range is
/// not all memory of one kind, or nothing of it is managed and it is not ours to move in any case.
fn ask(
    (start, end): (usize, usize),
    place: Range<usize>,
    grows: bool,
    is_ours: bool,
) -> Option<(Pieces, bool)> {
    let slot = Question::take(&SLOTS, |slot| &slot.question);
    let words = [
        (&slot.start, start),
        (&slot.end, end),
        (&slot.place_start, place.start),
        (&slot.place_end, place.end),
    ];
    words.into_iter().for_each(|(word, value)| word.store(value as u64, Ordering::Relaxed));
    slot.grows.store(grows, Ordering::Relaxed);
    slot.is_ours.store(is_ours, Ordering::Relaxed);
    slot.question.ask();
    let word = |word: &AtomicU64| usize::try_from(word.load(Ordering::Relaxed)).unwrap_or(0);
    let pieces = Pieces {
        first_end: word(&slot.first_end),
        last_start: word(&slot.last_start),
        grows_locked: slot.grows_locked.load(Ordering::Relaxed),
    };
    let is_free = slot.is_free.load(Ordering::Relaxed);
    slot.question.free();
    (pieces.first_end > 0).then_some((pieces, is_free))
}

/// The control thread's side: answers who has asked. Returns whether somebody had.
pub(crate) fn serve(runtime: &Runtime) -> bool {
    let mut any = false;
    for slot in SLOTS.iter().filter(|slot| slot.question.is_asked()) {
        let range = |start: &AtomicU64, end: &AtomicU64| AddrRange {
            start: start.load(Ordering::Relaxed),
            end: end.load(Ordering::Relaxed),
        };
        let moved = range(&slot.start, &slot.end);
        // With a budget all of it is, or will be when it is found.
        let is_ours =
            slot.is_ours.load(Ordering::Relaxed) || control::has_budget() || knows_any(runtime, moved);
        let pieces = is_ours.then(|| pieces(runtime, moved)).flatten();
        let (first_end, last_start) = pieces.unwrap_or((0, 0));
        slot.first_end.store(first_end, Ordering::Relaxed);
        slot.last_start.store(last_start, Ordering::Relaxed);
        let place = range(&slot.place_start, &slot.place_end);
        slot.is_free.store(!knows_any(runtime, place), Ordering::Relaxed);
        let grows = slot.grows.load(Ordering::Relaxed);
        slot.grows_locked.store(grows && has_locked_memory(), Ordering::Relaxed);
        slot.question.answer();
        any = true;
    }
    any
}

/// Where the first of the range's mappings ends, and the last one starts.
fn pieces(runtime: &Runtime, range: AddrRange) -> Option<(u64, u64)> {
    let maps = runtime.engine().kernel().maps();
    let first = maps.next_vma(range.start).ok()??;
    let mut last = first;
    let mut at = range.start;
    loop {
        if last.start > at || !is_manageable(&last) || last.perms != first.perms {
            return None;
        }
        at = last.end;
        if at >= range.end {
            break;
        }
        last = maps.next_vma(at).ok()??;
    }
    Some((first.end.min(range.end), last.start.max(range.start)))
}

fn knows_any(runtime: &Runtime, range: AddrRange) -> bool {
    runtime.manages_any(PageRange::of_bytes(range.start, range.end))
}

/// In the child of a fork, whose only thread asked nothing.
pub(crate) fn reset() {
    SLOTS.iter().for_each(|slot| slot.question.free());
}
