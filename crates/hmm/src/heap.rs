//! Memory that is never managed, for everything that answering faults stands on (I6).
//!
//! The program's `malloc` hands out memory that may be away. Whoever serves faults must not touch it: states, queues,
//! drivers' tables live here instead. All of it is one range of addresses, reserved once, committed by the kernel as it is
//! touched, and excluded from everything that is managed.
//!
//! - [`Private`] puts every allocation here: the agent's allocator.
//! - [`Heap`] is for programs that use the library and let drivers have any pointer: allocations that hmm's threads make,
//!   and those made inside of hmm's calls, are put here, all others come from the system's `malloc`:
//!
//! ```
//! #[global_allocator]
//! static ALLOCATOR: hmm::Heap = hmm::Heap;
//! ```
//!
//! A driver makes its tables while an [`Inside`] lives: its callbacks run on threads that serve faults.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use dlmalloc::{Allocator, Dlmalloc};
use hmm_uapi::{AddrRange, Mapping};

/// Bytes of addresses to ask for, the first that the system has: enough for the states of a tebibyte of touched memory,
/// then less, for programs with a limit on addresses.
const RESERVES: [usize; 3] = [4 << 30, 1 << 30, 128 << 20];

static HEAP: Mutex<Dlmalloc<Range>> = Mutex::new(Dlmalloc::new_with_allocator(Range));
static RANGE: OnceLock<Option<Mapping>> = OnceLock::new();
/// Bytes of the range that have been handed out.
static USED: AtomicUsize = AtomicUsize::new(0);
static WHEN_FULL: OnceLock<fn(usize)> = OnceLock::new();

thread_local! {
    /// How many [`Inside`]s the thread has.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// The addresses that all private allocations are in. `None`: the system has none left.
pub fn range() -> Option<AddrRange> {
    mapping().map(Mapping::range)
}

/// The same, if anything was ever allocated.
pub(crate) fn range_if_used() -> Option<AddrRange> {
    RANGE.get()?.as_ref().map(Mapping::range)
}

/// Has `tell` called with a number of bytes when there is no room for them: the process is about to end by that, and threads
/// without standard error would say nothing. It allocates nothing. The first one counts.
pub fn when_full(tell: fn(usize)) {
    let _first = WHEN_FULL.set(tell);
}

/// What was allocated; tells if it is nothing.
fn told(block: *mut u8, size: usize) -> *mut u8 {
    if block.is_null() {
        WHEN_FULL.get().inspect(|tell| tell(size));
    }
    block
}

fn mapping() -> Option<&'static Mapping> {
    let reserve = |len: &usize| Mapping::anonymous(*len).ok().inspect(Mapping::leave_out_of_dumps);
    RANGE.get_or_init(|| RESERVES.iter().find_map(reserve)).as_ref()
}

/// Whether the block came from here.
fn is_private(block: *mut u8) -> bool {
    // Looked at without making the range: blocks of before are not in it.
    range_if_used().is_some_and(|range| range.contains(block.addr() as u64))
}

fn lock() -> MutexGuard<'static, Dlmalloc<Range>> {
    HEAP.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The allocator that puts everything into the private range. It uses no thread-local storage.
#[derive(Clone, Copy, Debug, Default)]
pub struct Private;

// SAFETY: dlmalloc keeps the contract of an allocator; the lock gives it one caller at a time.
unsafe impl GlobalAlloc for Private {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the layout is the caller's, whose size is not zero.
        let block = unsafe { lock().malloc(layout.size(), layout.align()) };
        told(block, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as for `alloc`.
        let block = unsafe { lock().calloc(layout.size(), layout.align()) };
        told(block, layout.size())
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller gives back what he got, with the layout he got it with.
        unsafe { lock().free(ptr, layout.size(), layout.align()) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as for `dealloc`.
        let block = unsafe { lock().realloc(ptr, layout.size(), layout.align(), new_size) };
        told(block, new_size)
    }
}

/// The allocator of a program in which any memory may be managed; see the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heap;

// SAFETY: each of the two allocators keeps the contract, and a block goes back to the one that it came from, which its
// address tells.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if Inside::is_on() {
            // SAFETY: the caller's promise.
            unsafe { Private.alloc(layout) }
        } else {
            // SAFETY: the caller's promise.
            unsafe { System.alloc(layout) }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if Inside::is_on() {
            // SAFETY: the caller's promise.
            unsafe { Private.alloc_zeroed(layout) }
        } else {
            // SAFETY: the caller's promise.
            unsafe { System.alloc_zeroed(layout) }
        }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        if is_private(ptr) {
            // SAFETY: the caller's promise; the block is from there.
            unsafe { Private.dealloc(ptr, layout) }
        } else {
            // SAFETY: the caller's promise; the block is from there.
            unsafe { System.dealloc(ptr, layout) }
        }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if is_private(ptr) {
            // SAFETY: the caller's promise; the block is from there.
            unsafe { Private.realloc(ptr, layout, new_size) }
        } else {
            // SAFETY: the caller's promise; the block is from there.
            unsafe { System.realloc(ptr, layout, new_size) }
        }
    }
}

impl Heap {
    /// Whether it is the program's allocator.
    pub fn is_installed() -> bool {
        let _inside = Inside::enter();
        let probe = Box::new(0u8);
        is_private(std::ptr::from_ref(&*probe).cast_mut())
    }
}

/// While it lives, the thread's allocations are private, if [`Heap`] is the program's allocator.
#[derive(Debug)]
#[must_use = "ends when it is dropped"]
pub struct Inside {
    /// The count is the thread's.
    not_send: std::marker::PhantomData<*const ()>,
}

impl Inside {
    /// Begins it.
    pub fn enter() -> Self {
        DEPTH.set(DEPTH.get() + 1);
        Self { not_send: std::marker::PhantomData }
    }

    fn is_on() -> bool {
        DEPTH.get() > 0
    }

    /// For threads of our own: never ends.
    pub(crate) fn keep(self) {
        let _ = std::mem::ManuallyDrop::new(self);
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// Hands the range out from its front, never to come back.
struct Range;

// SAFETY: every part of the range is handed out once, zeroed.
unsafe impl Allocator for Range {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        let Some(range) = mapping() else { return (std::ptr::null_mut(), 0, 0) };
        // Only called under the heap's lock.
        let used = USED.load(Ordering::Relaxed);
        match used.checked_add(size) {
            Some(end) if end <= range.len() => {
                USED.store(end, Ordering::Relaxed);
                (range.as_ptr().wrapping_add(used), size, 0)
            }
            _ => (std::ptr::null_mut(), 0, 0),
        }
    }

    fn remap(&self, _ptr: *mut u8, _old: usize, _new: usize, _can_move: bool) -> *mut u8 {
        std::ptr::null_mut()
    }

    fn free_part(&self, _ptr: *mut u8, _old: usize, _new: usize) -> bool {
        false
    }

    fn free(&self, _ptr: *mut u8, _size: usize) -> bool {
        false
    }

    fn can_release_part(&self, _flags: u32) -> bool {
        false
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        4096
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_no_room_for_is_told() {
        static TOLD: AtomicUsize = AtomicUsize::new(0);
        when_full(|size| TOLD.store(size, Ordering::Relaxed));
        let much = Layout::from_size_align(RESERVES[0] + 1, 8).expect("a layout");
        // SAFETY: its size is not zero.
        assert!(unsafe { Private.alloc(much) }.is_null());
        assert_eq!(TOLD.load(Ordering::Relaxed), much.size());
    }
}
