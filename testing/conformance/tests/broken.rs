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

/// Forgets to free, or hands a frame out that is in use.
#[derive(Debug)]
struct Careless {
    inner: Ram,
    leaks: bool,
}

impl Careless {
    fn make(leaks: bool) -> Arc<dyn Device> {
        Arc::new(Self { inner: Ram::new(1024), leaks })
    }
}

impl Device for Careless {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        let granted = self.inner.alloc(frames);
        if !self.leaks && granted > 1 {
            frames[1] = frames[0];
        }
        granted
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        self.inner.store(run)
    }

    fn fetch(&self, run: Fetch<'_>) -> Transfer {
        self.inner.fetch(run)
    }

    fn free(&self, frames: &[DevicePfn]) {
        self.inner.free(if self.leaks { &frames[..frames.len().saturating_sub(1)] } else { frames });
    }
}

#[test]
#[should_panic(expected = "the device counts frames that were freed")]
fn one_that_leaks() {
    checks::unmapped_pages_free_their_frames(|| Careless::make(true), &Watched::default());
}

#[test]
#[should_panic(expected = "a nearly empty device takes all")]
fn one_that_hands_frames_out_twice() {
    checks::discarded_pages_read_zero(|| Careless::make(false), &Watched::default());
}
