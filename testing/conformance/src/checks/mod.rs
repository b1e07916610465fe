//! The rules, each a test. What is asserted is said where it is.
//!
//! A test gets its memory from [`Map`](crate::Map), so that nothing else is managed, and ends with
//! [`Ground::finish`]: its memory is gone, so every frame must be free.

mod events;
mod exclusive;
mod failing;
mod fork;
mod huge;
mod migrate;
mod overtaken;
mod owners;
mod threads;

use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use hmm::core::notifier::{Cause, Change};

use crate::ground::{Ground, Make};
use crate::watchdog::{Watched, within};

pub use events::{
    a_new_mapping_reads_zero, discarded_pages_read_zero, moved_pages_keep_their_frames,
    pages_of_a_divided_mapping, read_only_pages, unmapped_pages_free_their_frames,
};
pub use exclusive::{exclusive_pages_end_with_their_memory, exclusive_until_touched};
pub use failing::{
    a_lost_device_loses_what_it_had_and_no_more, fetches_fail_for_a_while, frames_are_refused,
    stores_fail_in_turn,
};
pub use fork::a_child_never_reads_wrong_bytes;
pub use huge::{
    huge_holes_are_zeroes, huge_pages_are_found_by_frames, huge_pages_are_whole_after_a_drop,
    huge_pages_go_and_come_back_whole, parts_of_huge_pages_are_small,
};
pub use migrate::{
    a_driver_copies_by_itself, a_full_device_takes_what_it_can, a_touch_brings_home,
    dropped_at_any_stage_nothing_is_lost, holes_are_zeroes_on_the_device, pages_go_and_come_back,
    what_is_left_out_stays,
};
pub use overtaken::{
    touched_while_it_comes_home, touched_while_it_leaves, unmapped_on_the_way_home, unmapped_on_the_way_out,
};
pub use owners::{
    a_device_is_removed_in_use, other_owners_get_nothing, pages_are_found_by_frames,
    pages_elsewhere_are_taken_in_one_walk,
};
pub use threads::many_at_once;

/// How long a test may take; on a machine with nothing else to do they take much less than a second, under ThreadSanitizer some.
const LIMIT: Duration = Duration::from_secs(if cfg!(thread_sanitizer) { 600 } else { 60 });

/// A fork shares the whole process's memory with a child, and pages that are shared do not move: the test that forks
/// runs alone.
static FORKS: RwLock<()> = RwLock::new(());

/// Runs one of the rules' tests under a watchdog.
///
/// # Panics
/// If the device breaks the rule.
pub fn run(name: &'static str, make: Make, check: fn(Make, &Watched)) {
    let alone = (name == "a_child_never_reads_wrong_bytes")
        .then(|| FORKS.write().unwrap_or_else(PoisonError::into_inner));
    let together = alone.is_none().then(|| FORKS.read().unwrap_or_else(PoisonError::into_inner));
    within(LIMIT, name, move |watched| check(make, watched));
    drop((alone, together));
}

/// What [`hmm::device::conformance`] checks: frames and buffers, no address space.
///
/// # Panics
/// If the device breaks a rule.
pub fn the_memory_side(make: Make, _: &Watched) {
    hmm::device::conformance::check(make);
}

/// Whether one of the changes is of this cause, on nobody's behalf, and holds the page.
fn is_told(changes: &[Change], cause: Cause, page: hmm::core::addr::Vpn) -> bool {
    changes
        .iter()
        .any(|change| change.cause == cause && change.owner.is_none() && change.range.contains(page))
}

/// A ground whose device has these pages of a new map, filled with the seed of the test.
fn with_pages_on_device(make: Make, watched: &Watched, nr_pages: usize) -> (Ground, crate::Map) {
    let ground = Ground::new(make, watched);
    let map = crate::Map::filled(nr_pages, SEED);
    ground.watch(map.pages());
    assert_eq!(ground.driver.to_device(map.pages()), nr_pages, "a nearly empty device takes all");
    assert_eq!(ground.driver.nr_on_device(map.pages()), nr_pages, "where they went they are");
    ground.driver.told();
    (ground, map)
}

const SEED: u64 = 42;
