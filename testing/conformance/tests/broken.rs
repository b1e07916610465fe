//! The suite finds devices that are broken.

#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

use std::sync::Arc;

use hmm::device::decorate::{Fault, Faulty, Rule, Verb, When};
use hmm::device::{Caps, Device, DevicePfn, Fetch, Ram, Store, Transfer, Usage};
use hmm_conformance::{Watched, checks};

fn garbling(verb: Verb) -> Arc<dyn Device> {
    Arc::new(Faulty::new(
        Ram::new(1024),
        [Rule { verb: Some(verb), when: When::Every(1), fault: Fault::Garble }],
    ))
}

#[test]
#[should_panic(expected = "wrong byte of page")]
fn one_that_stores_wrong_bytes() {
    checks::pages_go_and_come_back(|| garbling(Verb::Store), &Watched::default());
}

#[test]
#[should_panic(expected = "wrong byte of page")]
fn one_that_fetches_wrong_bytes() {
    checks::a_touch_brings_home(|| garbling(Verb::Fetch), &Watched::default());
}

/// Forgets to free.
#[derive(Debug)]
struct Careless(Ram);

impl Device for Careless {
    fn caps(&self) -> Caps {
        self.0.caps()
    }

    fn usage(&self) -> Usage {
        self.0.usage()
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        self.0.alloc(frames)
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        self.0.store(run)
    }

    fn fetch(&self, run: Fetch<'_>) -> Transfer {
        self.0.fetch(run)
    }

    fn free(&self, frames: &[DevicePfn]) {
        self.0.free(&frames[..frames.len().saturating_sub(1)]);
    }
}

#[test]
#[should_panic(expected = "the device counts frames that were freed")]
fn one_that_leaks() {
    checks::unmapped_pages_free_their_frames(|| Arc::new(Careless(Ram::new(1024))), &Watched::default());
}
