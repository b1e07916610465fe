//! Memory that a driver names is managed, whatever was there before.

#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

#[path = "common/watchdog.rs"]
mod watchdog;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hmm::AddressSpace;
use hmm::core::addr::{PageRange, Vpn};
use hmm::core::notifier::{Cause, Change, Pass, Watch};
use rustix::mm::{MapFlags, ProtFlags};
use watchdog::within;

/// Lets those who apply an unmapping wait.
struct Slow;

impl Watch for Slow {
    type Table = ();

    fn invalidate(&self, _: &mut (), change: &Change) -> Pass {
        if change.cause == Cause::Unmap {
            std::thread::sleep(Duration::from_millis(200));
        }
        Pass::Done
    }
}

#[test]
fn what_takes_the_place_of_managed_memory_is_managed_however_late_the_end_of_that_is_applied() {
    within(60, || {
        const PAGES: usize = 16;
        let space = AddressSpace::builder().build().expect("userfaultfd can be had");
        let len = PAGES * 4096;
        let map = |place: *mut std::ffi::c_void, flags| {
            let access = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new mapping, or one in the place of ours, into which there are no references.
            unsafe { rustix::mm::mmap_anonymous(place, len, access, MapFlags::PRIVATE | flags) }
                .expect("there is memory")
        };
        let touch = |start: *mut std::ffi::c_void| {
            (0..PAGES).for_each(|page| {
                // SAFETY: inside of the mapping; nobody else uses it.
                unsafe { start.cast::<u64>().wrapping_add(page * 512).write_volatile(7) };
            });
        };
        let start = map(std::ptr::null_mut(), MapFlags::empty());
        let range = PageRange::new(Vpn::of_addr(start.expose_provenance() as u64), PAGES as u64);
        space.manage(range).expect("can be managed");
        touch(start);
        let watch = space.watch(range, Arc::new(Mutex::new(())), Slow).expect("it is not empty");
        assert_eq!(map(start, MapFlags::FIXED), start);
        // The event has been read by now, but is not applied.
        space.manage(range).expect("can be managed");
        drop(watch);
        touch(start);
        assert_eq!(space.evict_pages(range), PAGES, "it is managed");
        touch(start);
        // SAFETY: ours, and there are no references.
        unsafe { rustix::mm::munmap(start, len) }.expect("is mapped");
    });
}
