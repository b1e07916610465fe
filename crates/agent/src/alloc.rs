//! The agent's allocator: all of its memory is in one range that is never managed.
//!
//! The program's `malloc` hands out memory that may be away; whoever answers faults must not stand on it (I6). The range
//! is reserved once, and committed by the kernel as it is touched.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use dlmalloc::{Allocator, Dlmalloc};
use hmm::uapi::{AddrRange, Mapping};

/// Bytes of addresses to ask for, the first that the system has: enough for the states of a tebibyte of touched memory,
/// then less, for programs with a limit on addresses.
const RESERVES: [usize; 3] = [4 << 30, 1 << 30, 128 << 20];

#[global_allocator]
static ALLOCATOR: Arena = Arena { heap: Mutex::new(Dlmalloc::new_with_allocator(Range)) };

static RANGE: OnceLock<Option<Mapping>> = OnceLock::new();

struct Arena {
    heap: Mutex<Dlmalloc<Range>>,
}

/// The addresses that all of the agent's allocations are in.
pub(crate) fn range() -> Option<AddrRange> {
    mapping().map(Mapping::range)
}

fn mapping() -> Option<&'static Mapping> {
    RANGE.get_or_init(|| RESERVES.iter().find_map(|len| Mapping::anonymous(*len).ok())).as_ref()
}

impl Arena {
    fn lock(&self) -> MutexGuard<'_, Dlmalloc<Range>> {
        self.heap.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// SAFETY: dlmalloc keeps the contract of an allocator; the lock gives it one caller at a time.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the layout is the caller's, whose size is not zero.
        unsafe { self.lock().malloc(layout.size(), layout.align()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as for `alloc`.
        unsafe { self.lock().calloc(layout.size(), layout.align()) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller gives back what he got, with the layout he got it with.
        unsafe { self.lock().free(ptr, layout.size(), layout.align()) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as for `dealloc`.
        unsafe { self.lock().realloc(ptr, layout.size(), layout.align(), new_size) }
    }
}

/// Hands the range out from its front, never to come back.
struct Range;

static USED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

// SAFETY: every part of the range is handed out once, zeroed.
unsafe impl Allocator for Range {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        let Some(range) = mapping() else { return (std::ptr::null_mut(), 0, 0) };
        // Only called under the heap's lock.
        let used = USED.load(std::sync::atomic::Ordering::Relaxed);
        match used.checked_add(size) {
            Some(end) if end <= range.len() => {
                USED.store(end, std::sync::atomic::Ordering::Relaxed);
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
