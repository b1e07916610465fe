//! A program with the allocator that keeps hmm's own blocks elsewhere: any block of the heap may be managed.

#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

#[expect(dead_code, reason = "shared with tests that use other parts of it")]
mod common;
#[expect(dead_code, reason = "shared with tests that use other parts of it")]
#[path = "range/maps.rs"]
mod maps;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::within;
use hmm::AddressSpace;
use hmm::core::addr::PageRange;
use hmm::core::driver::Select;
use hmm::core::mirror::Pfn;
use hmm::core::notifier::{Cause, Change, Owner, Pass, Watch};
use hmm::device::Ram;
use hmm::heap::{Heap, Inside};
use hmm::mirror::pages;
use hmm::uapi::uffd::Access;
use hmm_conformance::with_child;
use maps::*;

#[global_allocator]
static ALLOCATOR: Heap = Heap;

/// Whether everything is allowed.
fn is_root() -> bool {
    // SAFETY: gives a number.
    unsafe { libc::geteuid() == 0 }
}

/// Keeps what it is told in memory of its own.
#[derive(Debug, Default)]
struct Noting {
    calls: AtomicUsize,
}

impl Watch for Noting {
    type Table = Vec<Change>;

    fn invalidate(&self, table: &mut Vec<Change>, change: &Change) -> Pass {
        self.calls.fetch_add(1, Ordering::SeqCst);
        table.push(*change);
        Pass::Done
    }
}

fn is_private<T>(block: &T) -> bool {
    hmm::heap::range().is_some_and(|range| range.contains(std::ptr::from_ref(block).addr() as u64))
}

#[test]
fn small_blocks_go_and_come_back() {
    let _alone = one_at_a_time();
    within(60, || {
        assert!(Heap::is_installed());
        let space = AddressSpace::builder().build().expect("userfaultfd can be had");
        let blocks: Vec<Box<[u8; 1000]>> =
            (0..4000u32).map(|number| Box::new([number.to_ne_bytes()[0]; 1000])).collect();
        assert!(!blocks.iter().any(|block| is_private(&**block)), "the program's own are elsewhere");
        for round in 0..3 {
            let ranges = blocks.iter().map(|block| pages(&block[..]));
            ranges.clone().for_each(|range| space.manage(range).expect("heap may be managed"));
            let start = ranges.clone().map(|range| range.start).min().expect("some");
            let end = ranges.map(|range| range.end).max().expect("some");
            let out = space.evict_pages(PageRange { start, end });
            assert!(out > 500, "{out} pages left in round {round}");
            // The allocator works on what is away, too.
            let more: Vec<String> = (0..1000).map(|number| format!("{number}")).collect();
            assert_eq!(more[999], "999");
            for (block, number) in blocks.iter().zip(0u32..) {
                assert!(block.iter().all(|byte| *byte == number.to_ne_bytes()[0]), "block {number}");
            }
        }
    });
}

#[test]
fn a_drivers_blocks_are_private_inside() {
    let _alone = one_at_a_time();
    within(60, || {
        let space = AddressSpace::builder().build().expect("userfaultfd can be had");
        let table = {
            let _inside = Inside::enter();
            Arc::new(Mutex::new(Vec::with_capacity(64)))
        };
        assert!(is_private(&*table));
        let data = vec![1u8; 1 << 20];
        let notifier = space.watch(pages(&data), table, Noting::default()).expect("a range");
        assert!(is_private(notifier.watch()), "what hmm makes of it is private by itself");
        let back = Box::new(1);
        assert!(!is_private(&*back));
    });
}

#[test]
fn blocks_of_a_migration_are_private_to_its_end() {
    let _alone = one_at_a_time();
    within(60, || {
        let (space, map) = (mirror(), Map::holes(2));
        let device = space.add_device(Arc::new(Ram::new(8)), Owner(1)).expect("there are few devices");
        let mut migration =
            space.migrate_setup(map.pages(), Select::SYSTEM, Owner(1)).expect("can be managed");
        assert!(is_private(&*Box::new(1)), "collected");
        migration.store(device).expect("the driver's");
        let migration = migration.pages();
        assert!(is_private(&*Box::new(1)), "committed");
        assert_eq!(migration.finalize(), 2);
        assert!(!is_private(&*Box::new(1)), "ended");
        let dropped = space.migrate_setup(map.pages(), Select::PRIVATE, Owner(1)).expect("can be managed");
        assert!(is_private(&*Box::new(1)), "again");
        drop(dropped);
        assert!(!is_private(&*Box::new(1)), "dropped");
    });
}

#[test]
fn a_fork_is_announced_and_makes_pages_read_only() {
    let _alone = one_at_a_time();
    within(60, || {
        let (space, map) = (mirror(), Map::holes(2));
        map.write(0, 1);
        space.manage(map.pages()).expect("can be managed");
        let notifier = watch(&space, map.pages());
        with_child(|| {
            // It is told of when the fork has been made.
            let begin = Instant::now();
            while notifier.table().is_empty() && begin.elapsed() < Duration::from_secs(5) {
                std::thread::yield_now();
            }
            if !is_root() {
                return skip("the kernel tells of forks only to those who may trace");
            }
            assert_eq!(notifier.table().first().map(|change| change.cause), Some(Cause::ProtectPage));
            assert_eq!(snapshot(&space, map.pages()), [READABLE, NONE]);
            assert_eq!(fault(&space, map.part(0, 1), want_write()), (Ok(()), vec![WRITABLE]));
        });
    });
}

#[test]
fn what_was_learnt_of_whole_blocks_ends_with_a_fork() {
    let _alone = one_at_a_time();
    within(60, || {
        // A whole block is among them, wherever it begins.
        let (space, map) = (mirror(), Map::holes(1100));
        (0..1100).for_each(|page| map.write(page, 1));
        space.manage(map.pages()).expect("can be managed");
        let all = |pfn: Pfn| (0..1100).map(|_| pfn).collect::<Vec<_>>();
        // The second time it is known.
        for _ in 0..2 {
            assert_eq!(snapshot(&space, map.pages()), all(WRITABLE));
        }
        let notifier = watch(&space, map.pages());
        with_child(|| {
            if !is_root() {
                return skip("the kernel tells of forks only to those who may trace");
            }
            let begin = Instant::now();
            while notifier.table().is_empty() && begin.elapsed() < Duration::from_secs(5) {
                std::thread::yield_now();
            }
            assert_eq!(snapshot(&space, map.pages()), all(READABLE));
        });
    });
}

#[test]
fn a_child_finds_pages_that_are_away_lost() {
    let _alone = one_at_a_time();
    within(60, || {
        if !is_root() {
            return skip("the kernel tells of forks only to those who may trace");
        }
        for access in [Access::Full, Access::UserModeOnly] {
            let space = AddressSpace::builder().access(access).build().expect("userfaultfd can be had");
            assert_eq!(child_is_killed_by(&space), libc::SIGBUS, "{access:?}");
        }
    });
}
