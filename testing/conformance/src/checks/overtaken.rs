//! The program does not wait for migrations, or waits for their end.

use std::time::Duration;

use hmm::core::addr::PAGE_SIZE;
use hmm::core::driver::{Select, Source};

use super::{SEED, with_pages_on_device};
use crate::ground::{Ground, Make};
use crate::memory::Map;
use crate::watchdog::Watched;

/// Long enough for a fault that is not held up to be served.
const A_WHILE: Duration = Duration::from_millis(30);

/// Touched between setup and commit, a page stays, with what was written to it, holes too; after that the touch waits for
/// the end of the migration, and finds the page.
///
/// # Panics
/// If not.
pub fn touched_while_it_leaves(make: Make, watched: &Watched) {
    let (ground, map) = (Ground::new(make, watched), Map::filled(40, SEED));
    ground.watch(map.pages());
    map.discard(30, 10);
    let driver = &ground.driver;
    let mut migration =
        ground.space.migrate_setup(map.pages(), Select::SYSTEM, driver.owner()).expect("a short range");
    assert_eq!(migration.nr_collected(), 40);
    std::thread::scope(|scope| {
        // This thread touches nothing of it.
        scope.spawn(|| {
            map.expect([3], SEED, "read while it leaves");
            map.fill(4, SEED + 1);
            map.fill(35, SEED + 1);
        });
    });
    migration.store(driver.id()).expect("the device is the driver's");
    let migration = migration.pages();
    assert!(migration.nr_migrated() <= 37, "three were touched, {} went", migration.nr_migrated());
    let still: Vec<usize> = (0..40).filter(|index| !migration.entries()[*index].is_migrated()).collect();
    assert!([3, 4, 35].iter().all(|page| still.contains(page)), "these stay, among them 3, 4, 35: {still:?}");
    let went = (0..30).find(|page| !still.contains(page)).expect("most pages go");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| map.expect([went], SEED, "touched when it has left"));
        std::thread::sleep(A_WHILE);
        assert!(!waits.is_finished(), "between `pages` and `finalize` a touch waits");
        migration.finalize();
    });
    map.expect((0..30).filter(|page| *page != 4), SEED, "in the end");
    map.expect([4, 35], SEED + 1, "written while it left");
    map.expect_zero((30..40).filter(|page| *page != 35), "holes");
    drop(map);
    ground.finish();
}

/// A touch of a page that its driver is about to bring home waits for that.
///
/// # Panics
/// If not.
pub fn touched_while_it_comes_home(make: Make, watched: &Watched) {
    let (ground, map) = with_pages_on_device(make, watched, 40);
    let driver = &ground.driver;
    let setup = || ground.space.migrate_setup(map.pages(), driver.select(), driver.owner()).expect("short");
    for is_left_out in [true, false] {
        let mut migration = setup();
        driver.forget(map.pages());
        if is_left_out {
            // The second one is not fetched.
            for index in [0, 2] {
                assert!(matches!(
                    migration.entries()[index].source(),
                    Source::Private(_) | Source::Coherent(_)
                ));
            }
        } else {
            migration.fetch();
        }
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| map.expect([1], SEED, "touched while it comes home"));
            std::thread::sleep(A_WHILE);
            assert!(!waits.is_finished(), "from setup to `finalize` a touch waits");
            migration.pages().finalize();
        });
        if is_left_out {
            let nr_home = usize::from(ground.comes_home());
            assert_eq!(
                driver.to_device(map.part(1, 1)),
                nr_home,
                "the touch brought it home, or it is mapped"
            );
        }
    }
    map.expect(0..40, SEED, "in the end");
    drop(map);
    ground.finish();
}

/// Unmapped, discarded or moved on the way out, pages do not go where nobody would find them.
///
/// # Panics
/// If frames are left over, or bytes lost.
pub fn unmapped_on_the_way_out(make: Make, watched: &Watched) {
    for stage in 0..3 {
        let (ground, map) = (Ground::new(make, watched), Map::filled(40, SEED));
        ground.watch(map.pages());
        let driver = &ground.driver;
        let overtake = |now: usize| {
            if now == stage {
                map.discard(0, 10);
                map.unmap(30, 10);
            }
        };
        let mut migration =
            ground.space.migrate_setup(map.pages(), Select::SYSTEM, driver.owner()).expect("a short range");
        overtake(0);
        migration.store(driver.id()).expect("the device is the driver's");
        overtake(1);
        let migration = migration.pages();
        let nr_expected = if stage < 2 { 20 } else { 40 };
        assert_eq!(migration.nr_migrated(), nr_expected, "what is there goes, overtaken in stage {stage}");
        overtake(2);
        migration.finalize();
        ground.space.settle();
        assert_eq!(ground.device.nr_live(), 20, "what is there has a frame, overtaken in stage {stage}");
        map.expect_zero(0..10, "discarded on the way out");
        map.expect(10..30, SEED, "not unmapped");
        drop(map);
        ground.finish();
    }
}

/// The same on the way home.
///
/// # Panics
/// As [`unmapped_on_the_way_out`].
pub fn unmapped_on_the_way_home(make: Make, watched: &Watched) {
    for stage in 0..3 {
        let (ground, map) = with_pages_on_device(make, watched, 40);
        let driver = &ground.driver;
        let overtake = |now: usize| {
            if now == stage {
                map.discard(0, 10);
                map.unmap(30, 10);
            }
        };
        let mut migration =
            ground.space.migrate_setup(map.pages(), driver.select(), driver.owner()).expect("a short range");
        driver.forget(map.pages());
        overtake(0);
        assert_eq!(migration.fetch(), 40, "the migration has the frames");
        overtake(1);
        let migration = migration.pages();
        overtake(2);
        migration.finalize();
        ground.space.settle();
        assert_eq!(ground.device.nr_live(), 0, "nothing is left on the device, overtaken in stage {stage}");
        map.expect_zero(0..10, "discarded on the way home");
        map.expect(10..30, SEED, "not unmapped");
        // The slots that were not needed are not lost or mixed up.
        assert_eq!(driver.to_device(map.part(10, 20)), 20);
        map.expect(10..30, SEED, "gone again");
        map.write(5, PAGE_SIZE / 8 - 1, 1);
        assert_eq!(map.read(5, PAGE_SIZE / 8 - 1), 1);
        drop(map);
        ground.finish();
    }
}
