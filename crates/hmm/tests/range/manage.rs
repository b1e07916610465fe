//! Memory that was allocated by others, taken over; and memory that must not be.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hmm::AddressSpace;
use hmm::core::addr::PageRange;
use hmm::core::driver::{ExclusiveError, Select, Skip, Source};
use hmm::core::notifier::{Cause, Owner};
use hmm::device::Ram;
use hmm::manage::ManageError;
use hmm::mirror::{TakeError, pages};
use hmm::uapi::uffd::Access;

use crate::common::{MIB, within};
use crate::maps::*;

const LIMIT: u64 = 30;
const OWNER: Owner = Owner(1);

#[test]
fn a_large_vec_goes_and_comes_back() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let space = mirror();
        let mut words: Vec<u64> = (0..MIB as u64).collect();
        let all = pages(&words);
        // Without the first and the last page, where something else may be, too.
        let inside =
            PageRange { start: all.start.add(1), end: PageRange::new(all.start, all.nr_pages() - 1).end };
        space.manage(inside).expect("a mapping of its own");
        space.manage(inside).expect("again does no harm");
        assert_eq!(space.evict_pages(inside) as u64, inside.nr_pages(), "they could all be taken out");
        assert!(snapshot(&space, inside).iter().all(|pfn| *pfn == NONE));
        assert_eq!(snapshot(&space, PageRange::new(all.start, 1)), [WRITABLE], "no more than was asked for");
        words.iter_mut().zip(0..).for_each(|(word, number)| {
            assert_eq!(*word, number);
            *word += 1;
        });
        // Its end, by the allocator.
        space.evict_pages(inside);
        words.extend(0..1000);
        assert_eq!(words[MIB - 1], MIB as u64);
    });
}

/// Longer than what may lie between libraries: variables that are hmm's may be behind it.
static ZEROES: [AtomicU64; MIB] = [const { AtomicU64::new(0) }; MIB];

#[test]
fn what_hmm_stands_on_is_refused() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let space = mirror();
        let on_stack = [0u8; 64];
        assert_eq!(space.manage(pages(&on_stack)), Err(ManageError::Own));
        for part in [&ZEROES[..1024], &ZEROES[MIB - 1024..], &ZEROES] {
            assert_eq!(space.manage(pages(part)), Err(ManageError::StaticData));
        }
        let map = Map::holes(3);
        map.unmap(1, 1);
        assert_eq!(space.manage(map.pages()), Err(ManageError::NotMapped));
        assert_eq!(space.manage(map.part(2, 1)), Ok(()));
        if cfg!(any(address_sanitizer, thread_sanitizer)) {
            return skip("a sanitizer's malloc keeps small blocks in its own way");
        }
        // Small blocks: of this thread's heap, and of the main thread's.
        let block = vec![0u8; 1000];
        assert_eq!(space.manage(pages(&block)), Err(ManageError::Heap));
        let heap = mapping_named("[heap]").expect("the main thread has allocated something");
        assert_eq!(space.manage(PageRange::new(heap.start, 1)), Err(ManageError::Heap));
    });
}

#[test]
fn only_private_anonymous_memory_leaves() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let space = mirror();
        let device = space.add_device(Arc::new(Ram::new(64)), OWNER).expect("there are few devices");
        let file = memory_file(4);
        let maps = [
            Map::new(4, WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1),
            Map::new(4, WRITE, libc::MAP_SHARED, file),
            Map::new(4, WRITE, libc::MAP_PRIVATE, file),
        ];
        for (number, map) in maps.iter().enumerate() {
            map.write(0, 5);
            // Passed over, and no error; where the driver looks they are as they were.
            let before = snapshot(&space, map.pages());
            let select = Select::SYSTEM | Select::FAULT;
            let mut migration = space.migrate_setup(map.pages(), select, OWNER).expect("passes over them");
            let unmanaged = Source::Skipped(Skip::Unmanaged);
            assert!(migration.entries().iter().all(|entry| entry.source() == unmanaged), "{number}");
            assert_eq!(migration.store(device), Ok(0));
            assert_eq!(migration.pages().finalize(), 0);
            assert_eq!(snapshot(&space, map.pages()), before, "{number}");
            let page = map.pages().start;
            assert_eq!(
                space.make_exclusive(page, OWNER),
                Err(TakeError::Exclusive(ExclusiveError::Unmanaged(page))),
                "{number}"
            );
            assert_eq!(map.read(0), 5);
        }
    });
}

#[test]
fn a_child_does_not_get_managed_memory() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        for access in [Access::Full, Access::UserModeOnly] {
            let Ok(space) = AddressSpace::builder().access(access).build() else { continue };
            assert_eq!(child_is_killed_by(&space), libc::SIGSEGV, "{access:?}");
        }
    });
}

#[test]
fn who_registers_memory_keeps_no_word_from_drivers() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let (space, map) = (mirror(), Map::holes(8));
        map.write(0, 1);
        space.manage(map.pages()).expect("a mapping of its own");
        let notifier = watch(&space, map.pages());
        map.advise(0, 8, libc::MADV_DONTNEED);
        let _other = space.alloc(MIB).expect("more memory");
        let told = || std::mem::take(&mut *notifier.table());
        assert!(told().iter().any(|change| change.cause == Cause::Clear), "in the beginning");
        space.settle();
        let again = told();
        assert_eq!(again.iter().map(|change| change.range).collect::<Vec<_>>(), [map.pages()], "and again");
    });
}
