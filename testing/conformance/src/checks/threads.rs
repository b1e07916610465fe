//! Many threads at once: the program works on its memory, the driver takes it back and forth.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::SEED;
use crate::ground::{Ground, Make};
use crate::memory::Map;
use crate::rng::Rng;
use crate::watchdog::Watched;

const NR_PAGES: usize = 64;
const NR_ROUNDS: usize = 60;

/// Threads write to pages of their own and read them again, while others take the pages to the device, home, and out of
/// RAM: every thread reads what it wrote.
///
/// # Panics
/// If not.
pub fn many_at_once(make: Make, watched: &Watched) {
    let ground = Ground::new(make, watched);
    let maps: Vec<Map> = (0..2).map(|number| Map::filled(NR_PAGES, number)).collect();
    maps.iter().for_each(|map| ground.watch(map.pages()));
    let (is_over, nr_moved) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for number in 0..2u64 {
            let (ground, maps, is_over, nr_moved) = (&ground, &maps, &is_over, &nr_moved);
            scope.spawn(move || {
                let mut rng = Rng::new(SEED).fork(number);
                while !is_over.load(Ordering::Relaxed) {
                    let map = &maps[rng.below(2)];
                    let first = rng.below(NR_PAGES);
                    let range = map.part(first, 1 + rng.below(NR_PAGES - first));
                    let moved = match rng.below(4) {
                        0 | 1 => ground.driver.to_device(range),
                        2 => ground.driver.to_system(range),
                        _ => ground.space.evict_pages(range),
                    };
                    nr_moved.fetch_add(moved, Ordering::Relaxed);
                }
            });
        }
        let writers: Vec<_> = maps
            .iter()
            .zip(0u64..)
            .map(|(map, number)| {
                let is_enough = || nr_moved.load(Ordering::Relaxed) > NR_PAGES;
                scope.spawn(move || write_and_read(map, number, &is_enough))
            })
            .collect();
        let outcomes: Vec<_> = writers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        is_over.store(true, Ordering::Relaxed);
        for outcome in outcomes {
            outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    assert!(nr_moved.load(Ordering::Relaxed) > NR_PAGES, "pages have moved meanwhile");
    drop(maps);
    ground.finish();
}

/// For so many rounds, and on until it is enough.
fn write_and_read(map: &Map, number: u64, is_enough: &dyn Fn() -> bool) {
    let mut rng = Rng::new(SEED + 1).fork(number);
    let mut seeds = [number; NR_PAGES];
    let mut nr_rounds = 0;
    while nr_rounds < NR_ROUNDS || !is_enough() {
        nr_rounds += 1;
        for _ in 0..8 {
            let page = rng.below(NR_PAGES);
            seeds[page] = rng.bits();
            map.fill(page, seeds[page]);
        }
        for _ in 0..8 {
            let page = rng.below(NR_PAGES);
            map.expect([page], seeds[page], "of a thread of its own");
        }
        if rng.one_in(4) {
            let page = rng.below(NR_PAGES);
            map.discard(page, 1);
            map.expect_zero([page], "just discarded");
            seeds[page] = rng.bits();
            map.fill(page, seeds[page]);
        }
    }
}
