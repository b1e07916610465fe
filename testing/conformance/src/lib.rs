//! What every device has to do in mirroring and migration, as tests that an author runs with `cargo test`.
//!
//! The device is put into a real [`hmm::AddressSpace`] with a simple driver ([`Driver`]), and watched from both sides:
//! [`Counted`] sees what the engine does to the device's frames, the tests see what the program's memory is.
//!
//! ```
//! hmm_conformance::suite!(ram, || hmm::device::Ram::new(1024));
//! ```
//!
//! makes a module `ram` with a test for each rule in [`checks`]. The expression makes a new, empty device each time; it
//! should hold between 256 and 16 384 incompressible pages. A device that does not give back what it was given can be
//! tested for some rules only, which are named: `suite!(null, || Null::new(1024), [discarded_pages_read_zero])`.
//!
//! The rules are about any device: private ones, whose pages come home when the CPU touches them, and coherent ones,
//! whose pages need not ([`Ground::comes_home`]).

pub mod checks;
mod child;
mod counted;
mod driver;
mod ground;
mod memory;
mod rng;
mod watchdog;

pub use child::{end_by_signals, fork, with_child};
pub use counted::Counted;
pub use driver::{Driver, Entry, Table};
pub use ground::{Ground, Make};
pub use memory::Map;
pub use rng::Rng;
pub use watchdog::{Dump, Watched, states, within};

/// One test for each rule, in a module of the given name; see the crate's documentation.
#[macro_export]
macro_rules! suite {
    ($name:ident, $make:expr) => {
        $crate::suite!($name, $make, [
            the_memory_side,
            pages_go_and_come_back,
            a_touch_brings_home,
            holes_are_zeroes_on_the_device,
            a_driver_copies_by_itself,
            what_is_left_out_stays,
            dropped_at_any_stage_nothing_is_lost,
            a_full_device_takes_what_it_can,
            touched_while_it_leaves,
            touched_while_it_comes_home,
            unmapped_pages_free_their_frames,
            discarded_pages_read_zero,
            a_new_mapping_reads_zero,
            moved_pages_keep_their_frames,
            unmapped_on_the_way_out,
            unmapped_on_the_way_home,
            pages_of_a_divided_mapping,
            read_only_pages,
            other_owners_get_nothing,
            a_device_is_removed_in_use,
            pages_are_found_by_frames,
            pages_elsewhere_are_taken_in_one_walk,
            exclusive_until_touched,
            exclusive_pages_end_with_their_memory,
            a_child_never_reads_wrong_bytes,
            stores_fail_in_turn,
            frames_are_refused,
            fetches_fail_for_a_while,
            a_lost_device_loses_what_it_had_and_no_more,
            huge_pages_go_and_come_back_whole,
            huge_pages_are_whole_after_a_drop,
            parts_of_huge_pages_are_small,
            huge_holes_are_zeroes,
            huge_pages_are_found_by_frames,
            many_at_once,
        ]);
    };
    ($name:ident, $make:expr, [$($check:ident),+ $(,)?]) => {
        #[cfg(test)]
        mod $name {
            #[allow(unused_imports, reason = "the expression may name anything that is in scope outside")]
            use super::*;

            fn make() -> ::std::sync::Arc<dyn $crate::Device> {
                ::std::sync::Arc::new(($make)())
            }

            $(
                #[test]
                fn $check() {
                    $crate::checks::run(stringify!($check), make, $crate::checks::$check);
                }
            )+
        }
    };
}

#[doc(hidden)]
pub use hmm::device::Device;
