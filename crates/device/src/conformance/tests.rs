//! The check itself: devices that break one rule each have to be found out.

use std::sync::atomic::{AtomicU64, Ordering};

use super::check;
use crate::decorate::{Fault, Faulty, Rule, Verb, When};
use crate::{Caps, Device, DeviceError, DevicePfn, Fetch, PAGE_SIZE, Ram, Store, Transfer, Usage};

/// Ways to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    /// Counts a page too many when a store stops.
    Overcounts,
    /// Hands out a frame that is in use.
    AllocatesTwice,
    /// Compares the first half only.
    HoldsHalf,
    /// Compares sums.
    HoldsSum,
    /// Never says yes, though its caps promise it.
    HoldsNever,
    /// Does not take frames back.
    Leaks,
    /// Its caps change when it is used.
    Fickle,
    /// Every other time, fetches a run in the wrong order.
    Reverses,
    /// Is full before it has anything.
    RefusesNoise,
}

#[derive(Debug)]
struct Broken {
    inner: Ram,
    defect: Defect,
    calls: AtomicU64,
}

impl Broken {
    fn is(&self, defect: Defect) -> bool {
        self.defect == defect
    }
}

impl Device for Broken {
    fn caps(&self) -> Caps {
        let calls = u32::try_from(self.calls.load(Ordering::Relaxed)).unwrap();
        Caps { store_page_ns: if self.is(Defect::Fickle) { calls } else { 0 }, ..self.inner.caps() }
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        let granted = self.inner.alloc(frames);
        if self.is(Defect::AllocatesTwice) && granted > 1 {
            self.inner.free(&frames[1..2]);
            frames[1] = frames[0];
        }
        granted
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let (nr_pages, distinct) =
            (run.frames.len(), run.bytes.iter().take(64).fold(0_u64, |set, byte| set | 1 << (byte % 64)));
        if self.is(Defect::RefusesNoise) && nr_pages > 0 && distinct.count_ones() > 20 {
            return Transfer::stopped(0, DeviceError::OutOfMemory);
        }
        let outcome = self.inner.store(run);
        match outcome.stop {
            Some(why) if self.is(Defect::Overcounts) => {
                Transfer::stopped((outcome.done + 1).min(nr_pages), why)
            }
            _ => outcome,
        }
    }

    fn fetch(&self, run: Fetch<'_>) -> Transfer {
        let Fetch { frames, bytes } = run;
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        if self.is(Defect::Reverses) && calls.is_multiple_of(2) {
            let reversed: Vec<DevicePfn> = frames.iter().rev().copied().collect();
            return self.inner.fetch(Fetch { frames: &reversed, bytes });
        }
        self.inner.fetch(Fetch { frames, bytes })
    }

    fn free(&self, frames: &[DevicePfn]) {
        let kept = if self.is(Defect::Leaks) { frames.len() / 2 } else { 0 };
        self.inner.free(&frames[kept..]);
    }

    fn holds(&self, frame: DevicePfn, bytes: &[u8]) -> bool {
        let mut stored = [0; PAGE_SIZE];
        if self.inner.fetch(Fetch { frames: &[frame], bytes: &mut stored }).stop.is_some() {
            return false;
        }
        let sum = |bytes: &[u8]| bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        match self.defect {
            Defect::HoldsNever => false,
            Defect::HoldsHalf => stored[..PAGE_SIZE / 2] == bytes[..PAGE_SIZE / 2],
            Defect::HoldsSum => sum(&stored) == sum(bytes),
            Defect::Overcounts
            | Defect::AllocatesTwice
            | Defect::Leaks
            | Defect::Fickle
            | Defect::Reverses
            | Defect::RefusesNoise => stored == *bytes,
        }
    }
}

fn check_broken(defect: Defect) {
    check(|| Broken { inner: Ram::new(300), defect, calls: AtomicU64::new(0) });
}

fn check_faulty(verb: Verb, when: When, fault: Fault) {
    check(|| Faulty::new(Ram::new(300), [Rule { verb: Some(verb), when, fault }]));
}

#[test]
#[should_panic(expected = "stopped, yet all")]
fn finds_a_page_too_many() {
    check_broken(Defect::Overcounts);
}

#[test]
#[should_panic(expected = "store")]
fn finds_a_frame_handed_out_twice() {
    check_broken(Defect::AllocatesTwice);
}

#[test]
#[should_panic(expected = "holds")]
fn finds_half_a_comparison() {
    check_broken(Defect::HoldsHalf);
}

#[test]
#[should_panic(expected = "holds")]
fn finds_a_weak_comparison() {
    check_broken(Defect::HoldsSum);
}

#[test]
#[should_panic(expected = "never says yes")]
fn finds_a_promise_not_kept() {
    check_broken(Defect::HoldsNever);
}

#[test]
#[should_panic(expected = "usage")]
fn finds_a_leak() {
    check_broken(Defect::Leaks);
}

#[test]
#[should_panic(expected = "constant")]
fn finds_changing_caps() {
    check_broken(Defect::Fickle);
}

#[test]
#[should_panic(expected = "wrong bytes")]
fn finds_pages_in_the_wrong_order() {
    check_broken(Defect::Reverses);
}

#[test]
#[should_panic(expected = "there must be room")]
fn finds_a_device_that_is_full_too_early() {
    check_broken(Defect::RefusesNoise);
}

#[test]
#[should_panic(expected = "wrong bytes")]
fn finds_a_byte_changed_on_the_way_in() {
    check_faulty(Verb::Store, When::Nth(40), Fault::Garble);
}

#[test]
#[should_panic(expected = "wrong bytes")]
fn finds_a_byte_changed_now_and_then_on_the_way_out() {
    check_faulty(Verb::Fetch, When::OneIn(1000, 1), Fault::Garble);
}

#[test]
#[should_panic(expected = "has no reason for Io")]
fn finds_errors_when_it_is_filled() {
    check_faulty(Verb::Store, When::From(200), Fault::fail(DeviceError::Io));
}
