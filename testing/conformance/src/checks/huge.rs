//! Huge pages, of the real kernel: what is asked for as one goes and comes home as one.

use hmm::core::addr::{BLOCK_PAGES, PAGE_SIZE, PageRange};
use hmm::core::driver::{Select, Source};
use hmm::core::mirror::Found;
use hmm::device::{Device, MemKind};

use super::SEED;
use crate::ground::Ground;
use crate::ground::Make;
use crate::memory::{Map, content, expect_page};
use crate::watchdog::Watched;

const ALL: usize = BLOCK_PAGES;

/// A huge page of the program's; `None`, with a word on it, where the kernel has none to give.
fn huge_page() -> Option<Map> {
    let map = Map::huge();
    (0..ALL).for_each(|page| map.fill(page, SEED));
    let is_huge = map.is_huge();
    if !is_huge {
        eprintln!("SKIPPED: no huge page to be had");
    }
    is_huge.then_some(map)
}

fn select(ground: &Ground, out: bool) -> Select {
    Select::COMPOUND | if out { Select::SYSTEM } else { ground.driver.select() }
}

/// Takes the block to the device. Returns how many pages went, and whether it went as one.
fn take(ground: &Ground, range: PageRange) -> (usize, bool) {
    let mut migration = ground
        .space
        .migrate_setup(range, select(ground, true), ground.driver.owner())
        .expect("can be managed");
    ground.driver.forget(range);
    assert!(migration.entries()[0].is_compound(), "{:?} is all of a huge page", migration.entries()[0]);
    assert_eq!(migration.nr_collected(), ALL, "pages are counted, not entries");
    migration.store(ground.driver.id()).expect("its own device");
    let migration = migration.pages();
    let is_one = migration.entries()[0].is_compound();
    (migration.finalize(), is_one)
}

/// Brings home what is on the device. Returns how many pages came, and whether they came as one.
fn bring(ground: &Ground, range: PageRange) -> (usize, bool) {
    let select = select(ground, false);
    let mut migration =
        ground.space.migrate_setup(range, select, ground.driver.owner()).expect("can be managed");
    ground.driver.forget(range);
    migration.fetch();
    let migration = migration.pages();
    let is_one = migration.entries()[0].is_compound();
    (migration.finalize(), is_one)
}

fn expect_on_device(ground: &Ground, map: &Map, pages: impl IntoIterator<Item = usize>) {
    ground.driver.look(map.pages());
    for page in pages {
        let Some(bytes) = ground.driver.bytes(map.page(page)) else { continue };
        expect_page(&bytes, &content(page, SEED), &format!("page {page} on the device"));
    }
}

/// A huge page goes to a large run, if the device has one, and is one again at home; again and again.
///
/// # Panics
/// If not.
pub fn huge_pages_go_and_come_back_whole(make: Make, watched: &Watched) {
    let ground = Ground::new(make, watched);
    // Of two devices of a kind one shows whether there are large runs.
    let has_large_runs = ground.another().alloc_large().is_some();
    let Some(map) = huge_page() else { return };
    ground.watch(map.pages());
    for round in 0..3 {
        let (nr, is_one) = take(&ground, map.pages());
        assert!(!has_large_runs || is_one, "there is a large run, in round {round}");
        expect_on_device(&ground, &map, (0..ALL).step_by(37));
        if is_one {
            assert_eq!(nr, ALL);
            let look = ground.driver.look(map.pages());
            assert!(
                !ground.comes_home() || look.iter().all(|pfn| pfn.order == 9),
                "one entry maps all of it"
            );
        }
        let (came, came_as_one) = bring(&ground, map.pages());
        assert_eq!(came, nr, "all that went comes home");
        // Small frames that happen to lie side by side are a large run as well.
        assert!(came_as_one || !is_one, "what went as one comes as one");
        // Where a coherent frame's pages were mapped there is a page table for small pages, and it stays.
        let is_private = ground.device.caps().kind == MemKind::Private;
        assert!(!came_as_one || !is_private || map.is_huge(), "it is huge again, in round {round}");
        assert_eq!(ground.device.nr_live(), 0, "its frames are free");
        map.expect(0..ALL, SEED, "at home");
        if !map.is_huge() {
            break;
        }
    }
    drop(map);
    finish(ground);
}

/// What is dropped at any stage is huge where it was.
///
/// # Panics
/// If not.
pub fn huge_pages_are_whole_after_a_drop(make: Make, watched: &Watched) {
    let ground = Ground::new(make, watched);
    let Some(map) = huge_page() else { return };
    for stage in 0..2 {
        let mut out = ground
            .space
            .migrate_setup(map.pages(), select(&ground, true), ground.driver.owner())
            .expect("can be managed");
        if stage > 0 {
            out.store(ground.driver.id()).expect("its own device");
        }
        drop(out);
        assert!(map.is_huge(), "it is huge after stage {stage}");
        assert_eq!(ground.device.nr_live(), 0, "no frame is left over after stage {stage}");
    }
    map.expect(0..ALL, SEED, "dropped");
    drop(map);
    finish(ground);
}

/// The program takes parts of a huge page away while it is on the device: a touch, a discard, an unmapping. The rest stays
/// there, as small pages, with its bytes.
///
/// # Panics
/// If not.
pub fn parts_of_huge_pages_are_small(make: Make, watched: &Watched) {
    let ground = Ground::new(make, watched);
    let Some(map) = huge_page() else { return };
    let (nr, _) = take(&ground, map.pages());
    map.expect([77], SEED, "touched alone");
    map.discard(200, 10);
    map.unmap(500, 12);
    ground.space.settle();
    expect_on_device(&ground, &map, (0..500).filter(|page| !(200..210).contains(page)));
    let left = map.part(0, 500);
    let is_frame = |found| matches!(found, Found::Private(_) | Found::Coherent(..));
    let nr_left = ground.driver.look(left).iter().filter(|pfn| is_frame(pfn.found)).count();
    assert!(nr < ALL || nr_left >= 489 - 64, "{nr_left} of {nr} are left: what is not touched stays");
    let (came, is_one) = bring(&ground, left);
    assert_eq!((came, is_one), (nr_left, false), "they come home as small pages");
    map.expect((0..500).filter(|page| !(200..210).contains(page)), SEED, "in the end");
    map.expect_zero(200..210, "discarded");
    drop(map);
    finish(ground);
}

/// A block that was never touched goes to a large run of zeroes, and is a huge page when it comes home.
///
/// # Panics
/// If not.
pub fn huge_holes_are_zeroes(make: Make, watched: &Watched) {
    let (ground, map) = (Ground::new(make, watched), Map::huge());
    let (nr, is_one) = take(&ground, map.pages());
    ground.driver.look(map.pages());
    for page in (0..ALL).step_by(41) {
        let Some(bytes) = ground.driver.bytes(map.page(page)) else { continue };
        expect_page(&bytes, &[0; PAGE_SIZE], &format!("page {page} on the device"));
    }
    let (came, came_as_one) = bring(&ground, map.pages());
    assert!(came == nr && (came_as_one || !is_one), "{came} of {nr} pages come home");
    map.expect_zero(0..ALL, "at home");
    map.fill(3, SEED);
    map.expect([3], SEED, "and can be written to");
    drop(map);
    finish(ground);
}

/// A huge page is found by its frames, and moves with its mapping.
///
/// # Panics
/// If not.
pub fn huge_pages_are_found_by_frames(make: Make, watched: &Watched) {
    let ground = Ground::new(make, watched);
    let Some(map) = huge_page() else { return };
    let (nr, is_one) = take(&ground, map.pages());
    let all = hmm::device::DevicePfn(0)..hmm::device::DevicePfn(u32::MAX);
    let select = select(&ground, false);
    let mut migration = ground
        .space
        .migrate_device_range(ground.driver.id(), all, select, ground.driver.owner())
        .expect("its own");
    ground.driver.forget(map.pages());
    let head = migration.entries()[0];
    assert_eq!(migration.nr_collected(), nr);
    assert!(head.is_compound() || !is_one, "{head:?} is in a large run");
    assert!(matches!(head.source(), Source::Private(_) | Source::Coherent(_)));
    assert_eq!((migration.fetch(), migration.pages().finalize()), (nr, nr));
    assert!(!is_one || map.is_huge());
    map.expect(0..ALL, SEED, "found by its frames");
    drop(map);
    finish(ground);
}

/// As [`Ground::finish`], of a device that may be too small to have taken anything.
fn finish(ground: Ground) {
    if ground.device.nr_granted() > 0 {
        ground.finish();
    }
}
