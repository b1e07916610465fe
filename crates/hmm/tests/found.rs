//! Memory that is found, on the real kernel: what is one mapping to the program stays one, so that it can be mremapped.

#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

#[path = "common/watchdog.rs"]
mod watchdog;

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hmm::control::OnFull;
use hmm::core::addr::PageRange;
use hmm::core::ledger::Ledger;
use hmm::core::stats::Stats;
use hmm::core::{Config, Engine};
use hmm::device::Ram;
use hmm::mm::{Books, Mm};
use hmm::runtime::{Policy, Runtime, open_files};
use hmm::uapi::AddrRange;
use hmm::uapi::maps::Perms;
use hmm::uapi::uffd::{Access, Features};
use rustix::mm::{MapFlags, MprotectFlags, MremapFlags, ProtFlags};
use watchdog::within;

const PAGE: usize = 4096;
const BUDGET_PAGES: u64 = 8192;
const ARENA_PAGES: usize = 64;

#[derive(Debug)]
struct Accounts {
    ledger: Ledger,
    stats: Stats,
}

impl Books for Accounts {
    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn stats(&self) -> &Stats {
        &self.stats
    }
}

#[derive(Debug)]
struct Grow;

impl Policy for Grow {
    fn on_full(&self) -> OnFull {
        OnFull::Grow
    }

    fn end(&self, _: &Engine<Mm>) {
        std::process::abort();
    }
}

/// A part of the address space in which a runtime looks for memory, and nowhere else. What is not mapped in it otherwise
/// is executable memory, which is not managed.
struct Arena {
    base: usize,
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
        let config = Config::for_budget(BUDGET_PAGES);
        let books = Accounts { ledger: Ledger::new(BUDGET_PAGES), stats: Stats::default() };
        let files = open_files(Access::Full, Features::empty()).expect("userfaultfd can be had");
        let mm = Mm::new(files, config.nr_bays, Box::new(books)).expect("staging");
        let engine = Engine::new(mm, vec![Arc::new(Ram::new(1024))], config);
        let runtime = Arc::new(Runtime::new(engine, Box::new(Grow)).expect("eventfds"));
        let end = (base + ARENA_PAGES * PAGE) as u64;
        runtime
            .set_exclude(&[AddrRange { start: 0, end: base as u64 }, AddrRange { start: end, end: 1 << 47 }]);
        Self { base, runtime }
    }

    /// Serves faults and events while `work` works.
    fn serving(&self, work: impl FnOnce()) {
        struct Stop<'r>(&'r Runtime);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.stop();
            }
        }
        std::thread::scope(|scope| {
            scope.spawn(|| self.runtime.serve());
            // Also when an assertion fails.
            let _stop = Stop(&self.runtime);
            work();
        });
    }

    fn at(&self, page: usize) -> *mut c_void {
        std::ptr::with_exposed_provenance_mut(self.base + page * PAGE)
    }

    /// Looks for memory that touches the pages; returns how many ranges were found.
    fn look(&self, first: usize, nr_pages: usize) -> u64 {
        let start = (self.base + first * PAGE) as u64;
        self.runtime.discover(AddrRange::new(start, (nr_pages * PAGE) as u64)).ranges
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

    fn protect(&self, first: usize, nr_pages: usize, prot: MprotectFlags) {
        // SAFETY: the arena's addresses are the test's alone.
        unsafe { rustix::mm::mprotect(self.at(first), nr_pages * PAGE, prot) }.expect("mprotect");
    }

    /// Whether memory of the program's is there, and not the arena's own.
    fn holds_memory(&self, page: usize) -> bool {
        let maps = self.runtime.engine().kernel().maps();
        let vma = maps.next_vma(self.at(page).addr() as u64).expect("proc").expect("the arena is mapped");
        !vma.perms.contains(Perms::EXEC)
    }

    fn touch(&self, page: usize) {
        // SAFETY: writable memory of the test's alone.
        unsafe { self.at(page).cast::<u8>().write_volatile(1) };
    }

    /// Grows the mapping, which moves it, and ends it.
    #[track_caller]
    fn assert_is_one_mapping(&self, first: usize, nr_pages: usize) {
        let (old, len) = (nr_pages * PAGE, (nr_pages + 1) * PAGE);
        // SAFETY: the arena's addresses are the test's alone.
        let moved = unsafe { rustix::mm::mremap(self.at(first), old, len, MremapFlags::MAYMOVE) };
        let moved = moved.expect("one mapping can be mremapped");
        // SAFETY: just mapped.
        unsafe { rustix::mm::munmap(moved, len) }.expect("munmap");
    }
}

const READ_WRITE: MprotectFlags = MprotectFlags::READ.union(MprotectFlags::WRITE);

#[test]
fn parts_that_were_protected_for_a_while_join_again() {
    within(60, || {
        let arena = Arena::new();
        arena.serving(|| {
            arena.map(8, 12);
            assert_eq!(arena.look(8, 12), 1);
            arena.protect(12, 4, MprotectFlags::READ);
            arena.touch(8);
            arena.touch(19);
            arena.protect(12, 4, READ_WRITE);
            arena.assert_is_one_mapping(8, 12);
        });
    });
}

#[test]
fn a_mapping_is_registered_whole_while_an_event_is_unread() {
    within(60, || {
        let arena = Arena::new();
        arena.map(8, 8);
        assert_eq!(arena.look(8, 8), 1);
        std::thread::scope(|scope| {
            // Waits for its event to be read.
            scope.spawn(|| arena.unmap(8, 8));
            while arena.holds_memory(8) {
                std::thread::yield_now();
            }
            // Half of it where we believe the old one to be.
            arena.map(12, 8);
            arena.look(12, 8);
            let touch = scope.spawn(|| arena.touch(12));
            std::thread::sleep(Duration::from_millis(20));
            assert!(!touch.is_finished(), "registered, its first page waits for somebody to serve it");
            arena.serving(|| {
                touch.join().expect("touched");
                arena.touch(19);
                arena.assert_is_one_mapping(12, 8);
            });
        });
    });
}

/// The data of libraries must stay ours, also when a small mapping was put behind it and somebody asks for that.
#[test]
fn the_tail_of_data_is_left_alone() {
    within(60, || {
        let arena = Arena::new();
        let file = rustix::fs::memfd_create(c"data", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
        rustix::fs::ftruncate(&file, 2 * PAGE as u64).expect("ftruncate");
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        // SAFETY: the arena's addresses are the test's alone.
        unsafe { rustix::mm::mmap(arena.at(8), 2 * PAGE, ProtFlags::READ, flags, &file, 0) }.expect("maps");
        arena.map(10, 2);
        arena.map(12, 2);
        assert_eq!(arena.look(12, 2), 0, "asked for what is behind the tail");
        assert_eq!(arena.look(0, ARENA_PAGES), 0, "looked everywhere");
        arena.map(20, 2);
        assert_eq!(arena.look(0, ARENA_PAGES), 1, "what is not behind a file is found");
    });
}

/// While an event is unread the kernel refuses what keeps a mapping together.
#[test]
fn a_mapping_found_while_an_event_is_unread_joins_again() {
    within(60, || {
        let arena = Arena::new();
        arena.map(40, 1);
        assert_eq!(arena.look(40, 1), 1);
        std::thread::scope(|scope| {
            scope.spawn(|| arena.unmap(40, 1));
            while arena.holds_memory(40) {
                std::thread::yield_now();
            }
            arena.map(8, 12);
            let look = scope.spawn(|| arena.look(8, 12));
            std::thread::sleep(Duration::from_millis(5));
            arena.serving(|| {
                assert_eq!(look.join().expect("the look ends"), 1);
                arena.protect(12, 4, MprotectFlags::READ);
                arena.touch(8);
                arena.touch(19);
                arena.protect(12, 4, READ_WRITE);
                arena.assert_is_one_mapping(8, 12);
            });
        });
    });
}

/// A look that has begun before the event of a move is read, and goes on afterwards, forgets nothing.
#[test]
fn what_is_away_survives_a_look_at_a_mapping_that_moves() {
    within(60, || {
        let arena = Arena::new();
        let engine = arena.runtime.engine();
        arena.map(8, 8);
        (8..16).for_each(|page| arena.touch(page));
        assert_eq!(arena.look(8, 8), 1);
        let first = arena.at(8).addr() as u64;
        assert_eq!(engine.evict_range(PageRange::of_bytes(first, first + 8 * PAGE as u64)), 8);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _entered = arena.runtime.calls().enter();
                // SAFETY: the arena's addresses are the test's alone.
                let moved = unsafe {
                    let (len, flags) = (8 * PAGE, MremapFlags::MAYMOVE);
                    rustix::mm::mremap_fixed(arena.at(8), len, len, flags, arena.at(32))
                };
                assert_eq!(moved.expect("mremap"), arena.at(32));
            });
            while !arena.holds_memory(32) {
                std::thread::yield_now();
            }
            let look = scope.spawn(|| arena.look(32, 8));
            // The look waits for the call, and the call for the event.
            std::thread::sleep(Duration::from_millis(20));
            arena.serving(|| {
                look.join().expect("the look ends");
                for page in 32..40 {
                    // SAFETY: readable memory of the test's alone.
                    assert_eq!(unsafe { arena.at(page).cast::<u8>().read_volatile() }, 1, "page {page}");
                }
            });
        });
    });
}

/// Mappings come and go across each other's borders while somebody looks for them all the time.
#[test]
fn looks_do_not_cut_mappings_that_come_meanwhile() {
    within(120, || {
        let arena = Arena::new();
        let done = AtomicBool::new(false);
        arena.serving(|| {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        arena.look(0, ARENA_PAGES);
                    }
                });
                for round in 0..3000 {
                    let change = |work: &dyn Fn()| {
                        let _entered = arena.runtime.calls().enter();
                        work();
                    };
                    let border = 12 + round % 16;
                    change(&|| arena.map(8, border - 8));
                    arena.touch(8);
                    change(&|| arena.unmap(border - 2, 2));
                    change(&|| arena.map(border - 2, 16));
                    arena.touch(border - 2);
                    arena.touch(border + 13);
                    change(&|| arena.assert_is_one_mapping(border - 2, 16));
                    change(&|| arena.unmap(8, 40));
                }
                done.store(true, Ordering::Relaxed);
            });
        });
    });
}
