//! Pages go to the device and come back.

use hmm::core::addr::{PAGE_SIZE, PageRange};
use hmm::core::driver::{RefusedDestination, Select, Source};
use hmm::core::mirror::{Found, Request};
use hmm::core::notifier::Cause;
use hmm::device::{Access, Device, DevicePfn, Fetch, MemKind, Store};

use super::{SEED, is_told, with_pages_on_device};
use crate::ground::{Ground, Make};
use crate::memory::{Map, content, expect_page};
use crate::watchdog::Watched;

/// Pages of all kinds, over the border of a block, go, are what they were on the device, and come home as they went.
///
/// # Panics
/// If not.
pub fn pages_go_and_come_back(make: Make, watched: &Watched) {
    let (ground, map) = (Ground::new(make, watched), Map::holes(700));
    ground.watch(map.pages());
    // From the middle of one block into the next.
    let first = 512 - map.page(0).index() % 512;
    let first = if first > 600 { first - 512 } else { first.max(60) } - 60;
    let all = first..first + 130;
    all.clone().for_each(|page| map.fill(page, SEED));
    let range = map.part(first, 130);
    for round in 0..3 {
        assert_eq!(ground.driver.to_device(range), 130, "all go in round {round}");
        assert_eq!(ground.driver.nr_on_device(range), 130, "where they went they are");
        assert_eq!(ground.device.nr_live(), 130, "each has a frame");
        for page in all.clone() {
            let what = format!("page {page} on the device");
            let bytes = ground.driver.bytes(map.page(page)).expect("the device has entries for its pages");
            expect_page(&bytes, &content(page, SEED), &what);
        }
        let middle = PageRange::new(range.start.add(40), 50);
        assert_eq!(ground.driver.to_system(middle), 50, "a part comes home");
        assert_eq!(ground.driver.nr_on_device(range), 80, "and no more than that");
        assert!(
            ground
                .driver
                .entry(middle.start)
                .is_none_or(|entry| entry == crate::Entry::System { write: true })
        );
        assert_eq!(ground.device.nr_live(), 80, "frames of pages that came home are free");
        assert_eq!(ground.driver.to_system(range), 80, "the rest comes home");
        map.expect(all.clone(), SEED, "at home again");
    }
    drop(map);
    ground.finish();
}

/// A touch brings a page home from a private device, its driver is told before, and its entry is gone. Where the CPU
/// reaches the frame the page stays.
///
/// # Panics
/// If not.
pub fn a_touch_brings_home(make: Make, watched: &Watched) {
    let (ground, map) = with_pages_on_device(make, watched, 100);
    let order = [50, 99, 0, 7, 51, 20];
    for page in order {
        let nr_before = ground.driver.nr_on_device(map.pages());
        ground.driver.told();
        map.expect([page], SEED, "touched");
        let told = ground.driver.told();
        if ground.comes_home() {
            // Unless an earlier one has brought it as a neighbour.
            let has_come = ground.driver.nr_on_device(map.pages()) < nr_before;
            assert!(!has_come || is_told(&told, Cause::Clear, map.page(page)), "told: {told:?}");
            assert_eq!(ground.driver.nr_on_device(map.part(page, 1)), 0, "it is at home");
        } else {
            assert_eq!(ground.driver.nr_on_device(map.pages()), nr_before, "the CPU reaches the frame");
        }
    }
    (0..100).for_each(|page| map.fill(page, SEED + 1));
    map.expect(0..100, SEED + 1, "written at home");
    assert_eq!(ground.driver.to_device(map.pages()), if ground.comes_home() { 100 } else { 0 });
    map.expect(0..100, SEED + 1, "gone again, touched again");
    drop(map);
    ground.finish();
}

/// Pages that were never written to become zeroed memory of the device.
///
/// # Panics
/// If not.
pub fn holes_are_zeroes_on_the_device(make: Make, watched: &Watched) {
    let (ground, map) = (Ground::new(make, watched), Map::holes(40));
    // Even ones were read: the zero page may be there.
    map.expect_zero((0..40).step_by(2), "before");
    let went = ground.driver.to_device(map.pages());
    assert!(went >= 20, "{went} of 40: holes go at least");
    let on_device = ground.driver.look(map.pages());
    for page in (0..40).filter(|page| matches!(on_device[*page].found, Found::Private(_))) {
        let bytes = ground.driver.bytes(map.page(page)).expect("an entry");
        expect_page(&bytes, &[0; PAGE_SIZE], &format!("page {page} on the device"));
    }
    assert_eq!(ground.driver.to_system(map.part(0, 20)), ground_part(&on_device[..20], &ground));
    map.expect_zero(0..40, "at home");
    map.fill(3, SEED);
    map.expect([3], SEED, "and can be written to");
    drop(map);
    ground.finish();
}

fn ground_part(pfns: &[hmm::core::mirror::Pfn], ground: &Ground) -> usize {
    let is_frame = |found| match ground.device.caps().kind {
        MemKind::Private => matches!(found, Found::Private(_)),
        MemKind::Coherent => matches!(found, Found::Coherent(..)),
    };
    pfns.iter().filter(|pfn| is_frame(pfn.found)).count()
}

/// A driver that allocates frames and copies by itself, both ways.
///
/// # Panics
/// If bytes are lost.
pub fn a_driver_copies_by_itself(make: Make, watched: &Watched) {
    let (ground, map) = (Ground::new(make, watched), Map::filled(30, SEED));
    let (driver, device) = (&ground.driver, &ground.device);
    let setup =
        |select| ground.space.migrate_setup(map.pages(), select, driver.owner()).expect("a short range");
    let mut migration = setup(Select::SYSTEM);
    for index in 0..30 {
        let mut page = Box::new([0; PAGE_SIZE]);
        assert!(migration.with_bytes(index, &mut |bytes| page.copy_from_slice(bytes)), "it was collected");
        let mut frames = [DevicePfn(0)];
        assert_eq!(device.alloc(&mut frames), 1, "a nearly empty device has frames");
        let stored = device.store(Store { frames: &frames, bytes: &page[..], access: Access::Random });
        assert_eq!(stored.stop, None, "a nearly empty device takes pages");
        migration.set_frame(index, driver.id(), frames[0]).expect("the entry has no destination yet");
        assert_eq!(
            migration.set_frame(index, driver.id(), frames[0]),
            Err(RefusedDestination::NotWanted),
            "a page goes to one place"
        );
    }
    assert_eq!(migration.pages().finalize(), 30);
    assert_eq!(driver.nr_on_device(map.pages()), 30);
    let mut migration = setup(driver.select());
    driver.forget(map.pages());
    for index in 0..30 {
        let (Source::Private(frame) | Source::Coherent(frame)) = migration.entries()[index].source() else {
            panic!("page {index} is on the device");
        };
        let mut fetched = None;
        let filled = migration.fill_system(index, &mut |bytes| {
            fetched = Some(device.fetch(Fetch { frames: &[frame.pfn], bytes }));
        });
        assert_eq!((filled, fetched.and_then(|fetched| fetched.stop)), (Ok(()), None));
    }
    assert_eq!(migration.pages().finalize(), 30);
    map.expect(0..30, SEED, "copied by the driver");
    drop(map);
    ground.finish();
}

/// Pages without a destination are as they were; a frame that a page does not go to is the caller's.
///
/// # Panics
/// If not.
pub fn what_is_left_out_stays(make: Make, watched: &Watched) {
    let (ground, map) = (Ground::new(make, watched), Map::filled(20, SEED));
    let (driver, device) = (&ground.driver, &ground.device);
    let mut frames = [DevicePfn(0); 10];
    assert_eq!(device.alloc(&mut frames), 10);
    let mut migration =
        ground.space.migrate_setup(map.pages(), Select::SYSTEM, driver.owner()).expect("a short range");
    for (number, frame) in frames.iter().enumerate() {
        let mut page = Box::new([0; PAGE_SIZE]);
        assert!(migration.with_bytes(number * 2, &mut |bytes| page.copy_from_slice(bytes)));
        let stored = device.store(Store { frames: &[*frame], bytes: &page[..], access: Access::Random });
        assert_eq!(stored.stop, None);
        if number > 0 {
            migration.set_frame(number * 2, driver.id(), *frame).expect("wanted");
        }
    }
    assert_eq!(migration.pages().finalize(), 9);
    device.free(&frames[..1]);
    let found = driver.look(map.pages());
    for (page, pfn) in found.iter().enumerate() {
        let stays = page % 2 == 1 || page == 0;
        assert_eq!(pfn.found == Found::System { zero: false }, stays, "page {page}: {pfn:?}");
    }
    map.expect(0..20, SEED, "left out or not");
    drop(map);
    ground.finish();
}

/// A migration that is dropped, at any stage and in either direction, leaves pages where they were, or where they went.
///
/// # Panics
/// If not.
pub fn dropped_at_any_stage_nothing_is_lost(make: Make, watched: &Watched) {
    let (ground, map) = (Ground::new(make, watched), Map::filled(40, SEED));
    ground.watch(map.pages());
    let driver = &ground.driver;
    // A hole among them.
    map.discard(13, 1);
    let expect = |what: &str| {
        map.expect((0..40).filter(|page| *page != 13), SEED, what);
        map.expect_zero([13], what);
    };
    for stage in 0..3 {
        let mut out =
            ground.space.migrate_setup(map.pages(), Select::SYSTEM, driver.owner()).expect("a short range");
        if stage > 0 {
            out.store(driver.id()).expect("the device is the driver's");
        }
        if stage > 1 {
            drop(out.pages());
        } else {
            drop(out);
        }
        let gone = driver.nr_on_device(map.pages());
        assert_eq!(gone, if stage > 1 { 40 } else { 0 }, "after stage {stage}");
        assert_eq!(ground.device.nr_live(), gone, "no frame is left over after stage {stage}");
        if stage < 2 {
            expect(&format!("dropped on the way out after stage {stage}"));
            map.discard(13, 1);
        }
    }
    for stage in 0..3 {
        let mut home =
            ground.space.migrate_setup(map.pages(), driver.select(), driver.owner()).expect("a short range");
        driver.forget(map.pages());
        if stage > 0 {
            assert_eq!(home.fetch(), 40);
        }
        if stage > 1 {
            drop(home.pages());
        } else {
            drop(home);
        }
        let left = driver.nr_on_device(map.pages());
        assert_eq!(left, if stage > 1 { 0 } else { 40 }, "after stage {stage} on the way home");
        assert_eq!(ground.device.nr_live(), left, "each page that is left has its frame");
    }
    expect("at home");
    drop(map);
    ground.finish();
}

/// A device that fills up takes some pages, and the others stay; both can be read, and there is room again afterwards.
///
/// # Panics
/// If not.
pub fn a_full_device_takes_what_it_can(make: Make, watched: &Watched) {
    const MOST: usize = 16_384;
    let ground = Ground::new(make, watched);
    let mut maps: Vec<(Map, usize)> = Vec::new();
    let mut nr_pages = 0;
    while nr_pages < MOST {
        let map = Map::holes(512);
        // Incompressible ones only.
        (0..512).for_each(|page| noise(&map, page, nr_pages));
        let went = ground.driver.to_device(map.pages());
        nr_pages += 512;
        maps.push((map, went));
        if went < 512 {
            break;
        }
    }
    let is_full = maps.last().is_some_and(|(_, went)| *went < 512);
    assert!(is_full || nr_pages >= MOST, "a device that is not full takes everything");
    assert_eq!(ground.device.nr_live(), maps.iter().map(|(_, went)| went).sum::<usize>());
    if let Some((map, went)) = maps.last() {
        // What stayed is there without a fault; what went is on the device.
        let found = ground.driver.fault(map.pages(), Request::NONE).expect("looking never fails");
        let stayed = found.iter().filter(|pfn| pfn.found == Found::System { zero: false }).count();
        assert!(!ground.comes_home() || stayed == 512 - went, "{stayed} stayed, {went} of 512 went");
    }
    for (number, (map, _)) in maps.iter().enumerate() {
        (0..512).for_each(|page| expect_noise(map, page, number * 512));
    }
    if ground.comes_home() {
        let (map, _) = &maps[0];
        assert_eq!(ground.driver.to_device(map.part(0, 100)), 100, "there is room again");
    }
    drop(maps);
    ground.finish();
}

fn noise_words(page: usize, base: usize) -> impl Iterator<Item = (usize, u64)> {
    let mut rng = crate::Rng::new((base + page) as u64);
    (0..PAGE_SIZE / 8).map(move |word| (word, rng.bits()))
}

fn noise(map: &Map, page: usize, base: usize) {
    noise_words(page, base).for_each(|(word, value)| map.write(page, word, value));
}

fn expect_noise(map: &Map, page: usize, base: usize) {
    for (word, value) in noise_words(page, base) {
        assert_eq!(
            map.read(page, word),
            value,
            "word {word} of page {page}, filled as number {}",
            base + page
        );
    }
}
