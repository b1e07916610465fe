//! A program whose allocator touches memory that is away while it holds its lock. Whoever serves that must not allocate.

#![cfg(not(thread_sanitizer))]
#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicUsize, Ordering};

use common::{MIB, space, within};
use hmm::lz4::{Lz4, Lz4Config};

const LEN: usize = 64 * MIB;
/// Where the allocator keeps its books; null: it has none.
static BOOKS: AtomicPtr<u64> = AtomicPtr::new(std::ptr::null_mut());
/// The thread that is in the allocator.
static HOLDER: AtomicI32 = AtomicI32::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

struct Booked;

impl Booked {
    /// Writes to a page of the books, with the lock held.
    fn book() {
        let books = BOOKS.load(Ordering::Acquire);
        if books.is_null() {
            return;
        }
        let me = hmm::uapi::sys::gettid();
        while let Err(holder) = HOLDER.compare_exchange(0, me, Ordering::SeqCst, Ordering::SeqCst) {
            if holder == me {
                // SAFETY: ends the process.
                unsafe { libc::abort() };
            }
            std::hint::spin_loop();
        }
        let call = CALLS.fetch_add(1, Ordering::Relaxed);
        let page = call.wrapping_mul(0x9e37_79b9) % (LEN / 4096);
        let word = books.wrapping_add(page * 512);
        // SAFETY: the region lives as long as there are books, and only the holder of the lock is here.
        let entries = unsafe { word.read_volatile() };
        // SAFETY: as above.
        unsafe { word.write_volatile(entries + 1) };
        HOLDER.store(0, Ordering::SeqCst);
    }
}

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Booked {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::book();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        Self::book();
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Booked = Booked;

#[test]
fn an_allocator_may_keep_its_books_in_memory_that_is_away() {
    within(120, || {
        let pool = Lz4::new(Lz4Config::new(256 * MIB)).expect("there is memory");
        let space = space(16 * MIB, Arc::new(pool));
        let mut region = space.alloc(LEN).expect("allocates");
        BOOKS.store(region.as_mut_slice::<u64>().as_mut_ptr(), Ordering::Release);
        std::thread::scope(|scope| {
            for number in 0..3 {
                scope.spawn(move || {
                    let mut kept: Vec<Vec<usize>> = Vec::new();
                    for round in 0..20_000usize {
                        kept.push(vec![round ^ number; 1 + round % 50]);
                        if kept.len() > 100 {
                            let old = kept.swap_remove(round % 100);
                            assert!(old.iter().all(|word| *word == old[0]));
                        }
                    }
                });
            }
        });
        BOOKS.store(std::ptr::null_mut(), Ordering::Release);
        let calls = CALLS.load(Ordering::SeqCst) as u64;
        assert!(calls > 100_000, "{calls} calls");
        let booked: u64 = region.as_slice::<u64>().chunks(512).map(|page| page[0]).sum();
        assert_eq!(booked, calls, "no entry is lost");
        assert!(space.stats().stored > 1000, "{:?}", space.stats());
    });
}
