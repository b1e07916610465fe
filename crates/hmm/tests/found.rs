//! Memory that is found, on the real kernel, while it changes.

#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

#[path = "common/bare.rs"]
mod bare;
#[path = "common/watchdog.rs"]
mod watchdog;

use std::ffi::c_void;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hmm::core::addr::PageRange;
use hmm::core::kernel::Kernel;
use hmm::inherit::More;
use hmm::runtime::Runtime;
use hmm::uapi::AddrRange;
use hmm::uapi::maps::Perms;
use rustix::mm::{MapFlags, MremapFlags, ProtFlags};
use watchdog::within;

const PAGE: usize = 4096;
const ARENA_PAGES: usize = 512;

/// A thread that serves when it is wanted. It is there before: what a thread maps at its start could come into a hole that
/// a test leaves in its arena.
struct Server {
    is_wanted: Arc<AtomicBool>,
    runtime: Arc<Runtime>,
}

impl Server {
    fn new(runtime: Arc<Runtime>) -> Self {
        let this = Self { is_wanted: Arc::default(), runtime };
        let (is_wanted, runtime) = (Arc::clone(&this.is_wanted), Arc::clone(&this.runtime));
        std::thread::spawn(move || {
            while !is_wanted.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(1));
            }
            runtime.serve()
        });
        this
    }
}

/// The test in a process of its own, for the same reason.
fn alone(name: &str, test: fn()) {
    const ALONE: &str = "HMM_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return within(60, test);
    }
    let this = std::env::current_exe().expect("a test is a program");
    let output = Command::new(this).args(["--exact", name, "--test-threads=1"]).env(ALONE, "1").output();
    let output = output.expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let passed = output.status.success() && said.contains("1 passed");
    assert!(passed, "{}\n{said}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
}

/// A part of the address space in which a runtime looks for memory, and nowhere else. What is not mapped in it otherwise
/// is executable memory, which is not managed.
struct Arena {
    base: usize,
    server: Server,
    runtime: Arc<Runtime>,
}

impl Arena {
    fn new() -> Self {
        // SAFETY: a new mapping.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                ARENA_PAGES * PAGE,
                ProtFlags::EXEC,
                MapFlags::PRIVATE,
            )
        };
        let base = base.expect("there are addresses").expose_provenance();
        let runtime = Arc::new(bare::runtime());
        let end = (base + ARENA_PAGES * PAGE) as u64;
        runtime
            .set_exclude(&[AddrRange { start: 0, end: base as u64 }, AddrRange { start: end, end: 1 << 47 }]);
        Self { base, server: Server::new(Arc::clone(&runtime)), runtime }
    }

    /// Serves faults and events from now on, until all ends.
    fn serve(&self) {
        self.server.is_wanted.store(true, Ordering::Release);
    }

    fn at(&self, page: usize) -> *mut c_void {
        std::ptr::with_exposed_provenance_mut(self.base + page * PAGE)
    }

    /// Looks for memory that touches the pages; returns how many ranges were found, unless mappings were changing.
    fn look(&self, first: usize, nr_pages: usize) -> Option<u64> {
        let found = self.runtime.discover(self.range(first, nr_pages));
        (!found.is_changing).then_some(found.ranges)
    }

    fn look_until_calm(&self, first: usize, nr_pages: usize) {
        while self.look(first, nr_pages).is_none() {
            std::thread::yield_now();
        }
    }

    fn range(&self, first: usize, nr_pages: usize) -> AddrRange {
        AddrRange::new((self.base + first * PAGE) as u64, (nr_pages * PAGE) as u64)
    }

    /// The parts of the pages that are known: the first page, and how many.
    fn known(&self, first: usize, nr_pages: usize) -> Vec<(usize, usize)> {
        let all = self.range(first, nr_pages);
        let all = PageRange::of_bytes(all.start, all.end);
        let (mut at, mut parts) = (all.start, vec![]);
        while let Some(part) = self.runtime.engine().kernel().extents().next_in(at, all.end) {
            at = part.end;
            let pages = |number: u64| usize::try_from(number).expect("pages of the arena");
            parts.push((pages(part.start.0 - all.start.0) + first, pages(part.nr_pages())));
        }
        parts
    }

    /// Makes a known mapping, whose pages are away.
    fn fill_and_evict(&self, first: usize, nr_pages: usize, byte: u8) {
        self.map(first, nr_pages);
        self.write(first, nr_pages, byte);
        assert_eq!(self.look(first, nr_pages), Some(1));
        assert_eq!(self.evict(first, nr_pages), nr_pages);
    }

    fn write(&self, first: usize, nr_pages: usize, byte: u8) {
        for page in first..first + nr_pages {
            // SAFETY: writable memory of the test's alone.
            unsafe { self.at(page).cast::<u8>().write_volatile(byte) };
        }
    }

    fn evict(&self, first: usize, nr_pages: usize) -> usize {
        let range = self.range(first, nr_pages);
        self.runtime.engine().evict_range(PageRange::of_bytes(range.start, range.end))
    }

    #[track_caller]
    fn assert_holds(&self, first: usize, nr_pages: usize, byte: u8) {
        for page in first..first + nr_pages {
            // SAFETY: readable memory of the test's alone.
            assert_eq!(unsafe { self.at(page).cast::<u8>().read_volatile() }, byte, "page {page}");
        }
    }

    fn is_mapped(&self, page: usize) -> bool {
        let addr = self.at(page).addr() as u64;
        let vma = self.runtime.engine().kernel().maps().next_vma(addr).expect("proc");
        vma.is_some_and(|vma| vma.start <= addr)
    }

    fn replace(&self, first: usize, nr_pages: usize, prot: ProtFlags) {
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        // SAFETY: the arena's addresses are the test's alone.
        let mapped = unsafe { rustix::mm::mmap_anonymous(self.at(first), nr_pages * PAGE, prot, flags) };
        mapped.expect("maps");
    }

    /// Maps memory of the program's there.
    fn map(&self, first: usize, nr_pages: usize) {
        self.replace(first, nr_pages, ProtFlags::READ | ProtFlags::WRITE);
    }

    /// Puts the arena's own mapping there again.
    fn unmap(&self, first: usize, nr_pages: usize) {
        self.replace(first, nr_pages, ProtFlags::EXEC);
    }

    /// Whether memory of the program's is there, and not the arena's own.
    fn holds_memory(&self, page: usize) -> bool {
        let maps = self.runtime.engine().kernel().maps();
        let vma = maps.next_vma(self.at(page).addr() as u64).expect("proc").expect("the arena is mapped");
        !vma.perms.contains(Perms::EXEC)
    }

    fn touch(&self, page: usize) {
        self.write(page, 1, 1);
    }
}

#[test]
fn what_takes_the_place_of_a_mapping_whose_end_is_unread_is_found() {
    alone("what_takes_the_place_of_a_mapping_whose_end_is_unread_is_found", || {
        let arena = Arena::new();
        arena.map(8, 8);
        assert_eq!(arena.look(8, 8), Some(1));
        std::thread::scope(|scope| {
            // Waits for its event to be read.
            scope.spawn(|| arena.unmap(8, 8));
            while arena.holds_memory(8) {
                std::thread::yield_now();
            }
            // Half of it where we believe the old one to be.
            arena.map(12, 8);
            assert_eq!(arena.look(12, 8), None, "what is known is out of date");
            arena.serve();
            arena.look_until_calm(12, 8);
            assert_eq!(arena.known(0, ARENA_PAGES), [(12, 8)]);
            arena.touch(12);
            arena.touch(19);
        });
    });
}

/// The data of libraries must stay ours, also when other memory was put behind it and somebody asks for that.
#[test]
fn the_tail_of_data_is_left_alone() {
    alone("the_tail_of_data_is_left_alone", || {
        let arena = Arena::new();
        let file = rustix::fs::memfd_create(c"data", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
        rustix::fs::ftruncate(&file, 2 * PAGE as u64).expect("ftruncate");
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        // SAFETY: the arena's addresses are the test's alone.
        unsafe { rustix::mm::mmap(arena.at(8), 2 * PAGE, ProtFlags::READ, flags, &file, 0) }.expect("maps");
        arena.map(10, 2);
        arena.map(12, 2);
        assert_eq!(arena.look(12, 2), Some(0), "asked for what is behind the tail");
        assert_eq!(arena.look(0, ARENA_PAGES), Some(0), "looked everywhere");
        arena.map(20, 2);
        assert_eq!(arena.look(0, ARENA_PAGES), Some(1), "what is not behind a file is found");
        arena.serve();
        arena.map(12, 300);
        assert_eq!(arena.look(100, 1), Some(1), "what is larger is found but for its first MiB");
        assert_eq!(arena.known(0, ARENA_PAGES), [(10 + 256, 300 + 12 - 10 - 256)]);
    });
}

/// Moves the mapping, which waits until its events are read.
fn relocate(arena: &Arena, from: usize, nr_pages: usize, to: usize) {
    let (len, flags) = (nr_pages * PAGE, MremapFlags::MAYMOVE);
    // SAFETY: the arena's addresses are the test's alone.
    let moved = unsafe { rustix::mm::mremap_fixed(arena.at(from), len, len, flags, arena.at(to)) };
    assert_eq!(moved.expect("mremap"), arena.at(to));
}

#[test]
fn what_is_away_survives_a_look_at_a_mapping_that_moves() {
    alone("what_is_away_survives_a_look_at_a_mapping_that_moves", || {
        let arena = Arena::new();
        arena.fill_and_evict(8, 8, 1);
        std::thread::scope(|scope| {
            scope.spawn(|| relocate(&arena, 8, 8, 32));
            while !arena.holds_memory(32) {
                std::thread::yield_now();
            }
            assert_eq!(arena.look(32, 8), None, "what is known is out of date");
            assert_eq!(arena.look(0, ARENA_PAGES), None, "what is known is out of date");
            arena.serve();
            arena.look_until_calm(0, ARENA_PAGES);
            arena.assert_holds(32, 8, 1);
        });
        assert_eq!(arena.known(0, ARENA_PAGES), [(32, 8)]);
    });
}

/// A mapping moves to a place that another one has left, before the other's second event, that it has left, is queued.
#[test]
fn a_mapping_that_moves_to_a_place_just_left_keeps_its_pages() {
    alone("a_mapping_that_moves_to_a_place_just_left_keeps_its_pages", || {
        let arena = Arena::new();
        arena.fill_and_evict(8, 8, 1);
        arena.fill_and_evict(24, 8, 2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while arena.is_mapped(8) {
                    std::thread::yield_now();
                }
                relocate(&arena, 24, 8, 8);
            });
            scope.spawn(|| relocate(&arena, 8, 8, 40));
            while arena.is_mapped(24) {
                std::thread::yield_now();
            }
            // Both wait for their first event to be read.
            arena.serve();
            arena.look_until_calm(0, ARENA_PAGES);
            arena.assert_holds(40, 8, 1);
            arena.assert_holds(8, 8, 2);
        });
        assert_eq!(arena.known(0, ARENA_PAGES), [(8, 8), (40, 8)]);
    });
}

/// Who has moved memory goes on when its event is read, and may ask before it is applied.
#[test]
fn whether_memory_is_managed_is_told_when_all_that_was_read_is_applied() {
    alone("whether_memory_is_managed_is_told_when_all_that_was_read_is_applied", || {
        let arena = Arena::new();
        let range = arena.range(8, 8);
        let pages = PageRange::of_bytes(range.start, range.end);
        assert!(!arena.runtime.manages_any(pages));
        let events = arena.runtime.engine().events();
        std::thread::scope(|scope| {
            let asks = scope.spawn(|| arena.runtime.manages_any(pages));
            std::thread::sleep(Duration::from_millis(50));
            arena.runtime.engine().kernel().extents().set_vma(pages);
            drop(events);
            assert!(asks.join().expect("it does not panic"));
        });
    });
}

struct Ends<'d>(&'d AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Mappings come, move and go across each other's borders while somebody looks for them all the time.
#[test]
fn looks_know_what_comes_and_goes_meanwhile() {
    alone("looks_know_what_comes_and_goes_meanwhile", || {
        let arena = Arena::new();
        let done = AtomicBool::new(false);
        arena.serve();
        std::thread::scope(|scope| {
            // Also when an assertion fails.
            let ends = Ends(&done);
            let looks = scope.spawn(|| {
                let mut nr_found = 0;
                while !done.load(Ordering::Relaxed) {
                    nr_found += arena.look(0, ARENA_PAGES).unwrap_or(0);
                }
                nr_found
            });
            for round in 0..400 {
                let border = 12 + round % 16;
                arena.map(8, border - 8);
                arena.write(8, 1, 1);
                arena.unmap(border - 2, 2);
                arena.map(border - 2, 16);
                arena.write(border - 2, 16, 2);
                arena.evict(border - 2, 16);
                // Page by page: it may be in pieces.
                (0..16).for_each(|page| relocate(&arena, border - 2 + page, 1, 64 + page));
                arena.assert_holds(64, 16, 2);
                arena.map(8, 40);
                arena.assert_holds(8, 40, 0);
                arena.unmap(8, 80);
            }
            drop(ends);
            assert!(looks.join().expect("looks") > 0, "nothing was found");
        });
    });
}

/// A look has found that a place is not to be taken over, but by now a mapping has moved there: what is away of that survives.
#[test]
fn what_moves_to_a_place_that_is_given_up_keeps_its_pages() {
    alone("what_moves_to_a_place_that_is_given_up_keeps_its_pages", || {
        let arena = Arena::new();
        arena.fill_and_evict(32, 2, 7);
        std::thread::scope(|scope| {
            scope.spawn(|| relocate(&arena, 32, 2, 8));
            while !arena.holds_memory(8) {
                std::thread::yield_now();
            }
            let range = arena.range(8, 8);
            let part = PageRange::of_bytes(range.start, range.end);
            hmm::adopt::give_up(arena.runtime.engine().kernel(), part);
            arena.serve();
            arena.look_until_calm(0, ARENA_PAGES);
            arena.assert_holds(8, 2, 7);
        });
        assert_eq!(arena.known(0, ARENA_PAGES), [(8, 2)]);
    });
}

/// Others have all of the memory, and give nothing back: who has next to nothing waits for them, but not for ever.
#[test]
fn a_page_that_others_hold_the_memory_for_is_granted_after_a_while() {
    within(60, || {
        let arena = Arena::new();
        arena.map(8, 1);
        arena.look_until_calm(8, 1);
        let mm = arena.runtime.engine().kernel();
        let ledger = mm.ledger();
        assert!(ledger.share(1).try_charge(ledger.free()));
        arena.serve();
        arena.write(8, 1, 7);
        arena.assert_holds(8, 1, 7);
        assert!(mm.stats().overcharged.load(Ordering::Relaxed) > 0, "counted");
    });
}

/// The child of a fork, whose userfaultfd is the kernel's copy of its parent's, tells what it has by that, whatever the copy
/// of the engine knows.
#[test]
fn what_a_child_has_is_what_is_registered() {
    alone("what_a_child_has_is_what_is_registered", || {
        let arena = Arena::new();
        let pages = |first, nr_pages| {
            let range = arena.range(first, nr_pages);
            PageRange::of_bytes(range.start, range.end)
        };
        let extents = arena.runtime.engine().kernel().extents();
        for first in [8, 32] {
            arena.map(first, 8);
            assert_eq!(arena.look(first, 8), Some(1));
        }
        // What an unread event has ended: nothing is there any more, or other memory.
        arena.map(60, 8);
        extents.set_vma(pages(48, 8));
        extents.set_vma(pages(60, 8));
        let inherited = arena.runtime.inherited(true).expect("proc");
        assert_eq!(inherited.more(), More::Nothing);
        arena.runtime.forget_gone(&inherited);
        assert_eq!(arena.known(0, ARENA_PAGES), [(8, 8), (32, 8)]);
        // Where the userfaultfd has gone with the parent, memory is all that can be told.
        extents.set_vma(pages(48, 8));
        extents.set_vma(pages(60, 8));
        arena.runtime.forget_gone(&arena.runtime.inherited(false).expect("proc"));
        assert_eq!(arena.known(0, ARENA_PAGES), [(8, 8), (32, 8), (60, 8)]);

        extents.remove(pages(12, 4));
        assert_eq!(arena.runtime.inherited(true).expect("proc").more(), More::Behind);
        extents.remove(pages(32, 8));
        assert_eq!(arena.runtime.inherited(true).expect("proc").more(), More::Elsewhere);
    });
}

/// Where forks are not reported, what is lent and kept are mappings of the kernel's, which can differ from what is known.
#[test]
fn children_are_lent_what_has_grown_and_others_memory() {
    alone("children_are_lent_what_has_grown_and_others_memory", || {
        let arena = Arena::new();
        arena.map(8, 8);
        assert_eq!(arena.look(8, 8), Some(1));
        let mm = arena.runtime.engine().kernel();
        // SAFETY: nothing of the arena is there.
        unsafe { rustix::mm::munmap(arena.at(16), 4 * PAGE) }.expect("unmaps");
        // SAFETY: the mapping is the test's alone.
        let grown = unsafe { rustix::mm::mremap(arena.at(8), 8 * PAGE, 12 * PAGE, MremapFlags::empty()) };
        assert_eq!(grown, Ok(arena.at(8)));
        assert!(is_kept(arena.at(8)) && is_kept(arena.at(19)));
        mm.lend();
        assert!(!is_kept(arena.at(8)) && !is_kept(arena.at(19)));
        // Other memory has come to a place that is still known.
        arena.map(48, 4);
        let stale = arena.range(48, 4);
        let stale = PageRange::of_bytes(stale.start, stale.end);
        mm.extents().set_vma(stale);
        let kept = mm.withhold_all();
        assert!(is_kept(arena.at(8)) && is_kept(arena.at(48)));
        mm.extents().remove(stale);
        mm.lend_others(&kept);
        assert!(is_kept(arena.at(8)) && !is_kept(arena.at(48)));
    });
}

/// Whether the kernel keeps the mapping of that address from children.
fn is_kept(at: *mut c_void) -> bool {
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("proc");
    let mut is_it = false;
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if is_it {
                return flags.split_whitespace().any(|flag| flag == "dc");
            }
        } else if let Some((start, end)) = line.split(' ').next().and_then(|range| range.split_once('-')) {
            let number = |text| usize::from_str_radix(text, 16).expect("an address");
            is_it = (number(start)..number(end)).contains(&at.addr());
        }
    }
    panic!("nothing is mapped at {at:p}");
}
