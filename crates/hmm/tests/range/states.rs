//! One test for each row of the table of states.

use std::time::Duration;

use hmm::core::mirror::RangeError;
use hmm_conformance::with_child;

use crate::common::within;
use crate::maps::*;

const LIMIT: u64 = 30;

#[test]
fn no_mapping() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let (space, map) = (mirror(), Map::holes(4));
        map.write(0, 1);
        map.unmap(1, 2);
        map.write(3, 1);
        assert_eq!(snapshot(&space, map.pages()), [WRITABLE, ERROR, ERROR, WRITABLE]);
        let (outcome, pfns) = fault(&space, map.pages(), WANT_READ);
        assert_eq!(outcome, Err(RangeError::Fault));
        assert_eq!(pfns[..2], [WRITABLE, ERROR], "pages in front of the error are told of");
    });
}

#[test]
fn no_access() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let (space, map) = (mirror(), Map::holes(3));
        (0..3).for_each(|page| map.write(page, 1));
        map.protect(1, 1, libc::PROT_NONE);
        assert_eq!(snapshot(&space, map.pages()), [WRITABLE, ERROR, WRITABLE]);
        assert_eq!(fault(&space, map.part(1, 1), WANT_READ).0, Err(RangeError::Fault));
        // Also for writing: reading is looked at first.
        assert_eq!(fault(&space, map.part(1, 1), want_write()).0, Err(RangeError::Fault));
        assert_eq!(fault(&space, map.part(0, 1), want_write()).0, Ok(()));
    });
}

#[test]
fn not_for_reading() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let (space, map) = (mirror(), Map::holes(3));
        (0..3).for_each(|page| map.write(page, 1));
        // The CPU would read there all the same.
        map.protect(0, 1, libc::PROT_WRITE);
        map.protect(2, 1, libc::PROT_EXEC);
        assert_eq!(snapshot(&space, map.pages()), [ERROR, WRITABLE, ERROR]);
        for page in [0, 2] {
            for want in [WANT_READ, want_write()] {
                assert_eq!(fault(&space, map.part(page, 1), want).0, Err(RangeError::Fault), "{page}");
            }
        }
    });
}

#[test]
fn nothing_there() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let (space, map) = (mirror(), Map::holes(4));
        assert_eq!(snapshot(&space, map.pages()), [NONE; 4]);
        // Looking has not made it be there.
        assert_eq!(snapshot(&space, map.pages()), [NONE; 4]);
        assert_eq!(fault(&space, map.part(0, 2), WANT_READ), (Ok(()), vec![ZERO; 2]));
        assert_eq!(fault(&space, map.part(1, 2), want_write()), (Ok(()), vec![WRITABLE; 2]));
        assert_eq!(snapshot(&space, map.pages()), [ZERO, WRITABLE, WRITABLE, NONE]);
    });
}

#[test]
fn writing_where_it_is_not_allowed() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let (space, map) = (mirror(), Map::holes(3));
        map.write(0, 1);
        map.protect(0, 3, READ);
        assert_eq!(snapshot(&space, map.pages()), [READABLE, NONE, NONE]);
        assert_eq!(fault(&space, map.part(0, 1), WANT_READ), (Ok(()), vec![READABLE]));
        // Present or not makes no difference.
        assert_eq!(fault(&space, map.part(0, 1), want_write()).0, Err(RangeError::Permission));
        assert_eq!(fault(&space, map.part(1, 1), want_write()).0, Err(RangeError::Permission));
        assert_eq!(fault(&space, map.part(1, 1), WANT_READ), (Ok(()), vec![ZERO]));
        assert_eq!(
            snapshot(&space, map.pages()),
            [READABLE, ZERO, NONE],
            "what was refused was not faulted in"
        );
    });
}

#[test]
fn zero_page() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let (space, map) = (mirror(), Map::holes(2));
        assert_eq!(map.read(0), 0);
        assert_eq!(map.read(1), 0);
        assert_eq!(snapshot(&space, map.pages()), [ZERO; 2]);
        assert_eq!(fault(&space, map.pages(), WANT_READ), (Ok(()), vec![ZERO; 2]), "enough for reading");
        assert_eq!(fault(&space, map.part(0, 1), want_write()), (Ok(()), vec![WRITABLE]));
        assert_eq!(snapshot(&space, map.pages()), [WRITABLE, ZERO]);
        assert_eq!(map.read(0), 0);
    });
}

#[test]
fn shared_with_a_child() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let (space, map) = (mirror(), Map::holes(3));
        (0..3).for_each(|page| map.write(page, 7));
        assert_eq!(snapshot(&space, map.pages()), [WRITABLE; 3]);
        with_child(|| {
            assert_eq!(snapshot(&space, map.pages()), [READABLE; 3]);
            assert_eq!(
                fault(&space, map.part(0, 1), WANT_READ),
                (Ok(()), vec![READABLE]),
                "enough for reading"
            );
            assert_eq!(fault(&space, map.part(1, 1), want_write()), (Ok(()), vec![WRITABLE]));
            assert_eq!(snapshot(&space, map.pages()), [READABLE, WRITABLE, READABLE]);
        });
        (0..3).for_each(|page| assert_eq!(map.read(page), 7));
    });
}

/// Whether there is swap, and the page could be sent there.
fn swap_out(map: &Map, page: usize) -> bool {
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().count() < 2 {
        skip("this machine has no swap");
        return false;
    }
    map.advise(page, 1, libc::MADV_PAGEOUT);
    true
}

#[test]
fn swapped_out() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let (space, map) = (mirror(), Map::holes(2));
        map.write(0, 9);
        map.write(1, 9);
        if !swap_out(&map, 1) {
            return;
        }
        assert_eq!(snapshot(&space, map.pages()), [WRITABLE, NONE]);
        let (outcome, pfns) = fault(&space, map.pages(), WANT_READ);
        assert_eq!(outcome, Ok(()));
        assert_ne!(pfns[1], NONE);
        assert_eq!(map.read(1), 9);
    });
}

#[test]
fn huge_page() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let (space, map) = (mirror(), Map::new(1024, WRITE, ANONYMOUS, -1));
        let first = map.first_block();
        map.advise(first, 512, libc::MADV_HUGEPAGE);
        map.write(first, 3);
        let pfns = snapshot(&space, map.part(first, 512));
        if pfns[0].order == 0 {
            return skip("no huge page is to be had");
        }
        assert_eq!(pfns, [huge(WRITABLE); 512], "all of it, not only the page that was touched");
        assert_eq!(fault(&space, map.part(first + 5, 9), want_write()), (Ok(()), vec![huge(WRITABLE); 9]));
        map.protect(first, 512, READ);
        assert_eq!(snapshot(&space, map.part(first, 512)), [huge(READABLE); 512]);
        map.protect(first, 512, WRITE);
        // A hole in it splits it.
        map.advise(first + 1, 1, libc::MADV_DONTNEED);
        assert_eq!(snapshot(&space, map.part(first, 3)), [WRITABLE, NONE, WRITABLE]);
    });
}

#[test]
fn huge_zero_page() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let (space, map) = (mirror(), Map::new(1024, WRITE, ANONYMOUS, -1));
        let first = map.first_block();
        map.advise(first, 512, libc::MADV_HUGEPAGE);
        assert_eq!(map.read(first + 9), 0);
        let pfns = snapshot(&space, map.part(first, 512));
        if pfns[0].order == 0 {
            return skip("no huge zero page is to be had");
        }
        assert_eq!(pfns, [huge(ZERO); 512]);
        assert_eq!(fault(&space, map.part(first, 2), WANT_READ), (Ok(()), vec![huge(ZERO); 2]), "enough");
        let (outcome, pfns) = fault(&space, map.part(first + 5, 1), want_write());
        assert!(outcome == Ok(()) && pfns[0].write, "{outcome:?} {pfns:?}");
        assert_eq!(map.read(first + 5), 0);
    });
}

/// Reserves huge pages, and gives them back.
struct Reserved {
    before: String,
}

const NR_HUGEPAGES: &str = "/proc/sys/vm/nr_hugepages";

impl Reserved {
    fn new(nr_pages: usize) -> Option<Self> {
        let before = std::fs::read_to_string(NR_HUGEPAGES).ok()?;
        let wanted = before.trim().parse::<usize>().ok()? + nr_pages;
        std::fs::write(NR_HUGEPAGES, wanted.to_string()).ok()?;
        Some(Self { before })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let _ = std::fs::write(NR_HUGEPAGES, &self.before);
    }
}

#[test]
fn hugetlb() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let Some(_reserved) = Reserved::new(2) else { return skip("reserving huge pages takes root") };
        let Some(map) = Map::try_new(1024, WRITE, ANONYMOUS | libc::MAP_HUGETLB, -1) else {
            return skip("no huge pages can be reserved");
        };
        let space = mirror();
        assert_eq!(snapshot(&space, map.part(0, 3)), [NONE; 3]);
        assert_eq!(fault(&space, map.part(1, 1), want_write()), (Ok(()), vec![huge(WRITABLE)]));
        assert_eq!(snapshot(&space, map.part(0, 512)), [huge(WRITABLE); 512]);
        assert_eq!(snapshot(&space, map.part(512, 2)), [NONE; 2]);
        with_child(|| assert_eq!(snapshot(&space, map.part(0, 512)), [huge(READABLE); 512]));
    });
}

#[test]
fn shared_memory() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let (space, fd) = (mirror(), memory_file(4));
        let map = Map::new(4, WRITE, libc::MAP_SHARED, fd);
        assert_eq!(snapshot(&space, map.pages()), [NONE; 4]);
        map.write(0, 1);
        assert_eq!(snapshot(&space, map.pages()), [WRITABLE, NONE, NONE, NONE]);
        assert_eq!(fault(&space, map.part(0, 2), want_write()), (Ok(()), vec![WRITABLE; 2]));
        // Sharing is what it is for: a child takes no right away.
        with_child(|| assert_eq!(snapshot(&space, map.part(0, 2)), [WRITABLE; 2]));
        map.protect(0, 4, READ);
        assert_eq!(snapshot(&space, map.part(0, 3)), [READABLE, READABLE, NONE]);
        assert_eq!(fault(&space, map.part(0, 1), want_write()).0, Err(RangeError::Permission));
    });
}

#[test]
fn private_mapping_of_a_file() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let (space, fd) = (mirror(), memory_file(4));
        let shared = Map::new(4, WRITE, libc::MAP_SHARED, fd);
        shared.write(0, 5);
        let map = Map::new(4, WRITE, libc::MAP_PRIVATE, fd);
        assert_eq!(map.read(0), 5);
        // A write would make a copy.
        assert_eq!(snapshot(&space, map.part(0, 1)), [READABLE]);
        assert_eq!(fault(&space, map.part(0, 1), want_write()), (Ok(()), vec![WRITABLE]));
        map.write(0, 6);
        assert_eq!(shared.read(0), 5);
        // Behind the end of the file there is nothing to be had.
        // SAFETY: our descriptor.
        assert_eq!(unsafe { libc::ftruncate(fd, 4096) }, 0);
        assert_eq!(snapshot(&space, map.part(2, 1)), [NONE]);
        assert_eq!(fault(&space, map.part(2, 1), WANT_READ).0, Err(RangeError::Fault));
    });
}

#[test]
fn special_mappings() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let space = mirror();
        // So that its pages are used.
        let _ = std::time::Instant::now().elapsed() > Duration::ZERO;
        let Some(vvar) = mapping_named("[vvar]") else { return skip("no [vvar] here") };
        assert!(snapshot(&space, vvar).iter().all(|pfn| *pfn == ERROR));
        assert_eq!(fault(&space, vvar, WANT_READ).0, Err(RangeError::Fault));
        let Some(vdso) = mapping_named("[vdso]") else { return skip("no [vdso] here") };
        let (outcome, pfns) = fault(&space, vdso, WANT_READ);
        assert_eq!(outcome, Ok(()));
        assert!(pfns.iter().all(|pfn| *pfn == READABLE), "code can be read: {pfns:?}");
        assert_eq!(fault(&space, vdso, want_write()).0, Err(RangeError::Permission));
    });
}

#[test]
fn guard_pages() {
    const MADV_GUARD_INSTALL: i32 = 102;
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let (space, map) = (mirror(), Map::holes(2));
        map.write(0, 1);
        // SAFETY: inside of the mapping, of which there are no references.
        if unsafe { libc::madvise(map.page(1).cast(), 4096, MADV_GUARD_INSTALL) } != 0 {
            return skip("this kernel has no guard pages");
        }
        assert_eq!(snapshot(&space, map.pages()), [WRITABLE, NONE]);
        assert_eq!(fault(&space, map.part(1, 1), WANT_READ).0, Err(RangeError::Fault));
    });
}
