//! The device fails.

use hmm::core::addr::BLOCK_PAGES;
use hmm::core::mirror::{RangeError, Request};
use hmm::core::state::PageState;
use hmm::device::DeviceError;
use hmm::device::decorate::{Fault, Verb, When};

use super::{SEED, with_pages_on_device};
use crate::ground::{Ground, Make};
use crate::memory::Map;
use crate::watchdog::Watched;

/// Each store fails in turn, at its beginning and in its middle, for each reason: what was not stored stays.
///
/// # Panics
/// If anything is lost.
pub fn stores_fail_in_turn(make: Make, watched: &Watched) {
    let (ground, map) = (Ground::new(make, watched), Map::filled(150, SEED));
    ground.watch(map.pages());
    // A store ends with its block, which may be soon. A fault behind the end of the first one would not come.
    let in_first = BLOCK_PAGES - map.pages().start.index();
    let errors = [DeviceError::OutOfMemory, DeviceError::Io, DeviceError::Lost, DeviceError::Unsupported];
    for (number, error) in errors.into_iter().enumerate() {
        for call in 0..4 {
            let done = ((number + call) % 3 * 5).min(in_first - 1);
            let when = When::Nth(ground.next_call(Verb::Store) + call as u64);
            ground.fail(Verb::Store, when, Fault::Stop { done, why: error });
            let nr_injected = ground.device.inner().injected();
            let went = ground.driver.to_device(map.pages());
            let is_injected = ground.device.inner().injected() > nr_injected;
            assert_eq!(went < 150, is_injected, "{went} went, {error:?} in store {call}");
            assert!(is_injected || call > 0, "there is at least one store");
            assert_eq!(ground.driver.nr_on_device(map.pages()), went);
            assert_eq!(ground.device.nr_live(), went, "no frame is left over");
            ground.mend();
            assert_eq!(ground.driver.to_system(map.pages()), went);
            map.expect(0..150, SEED, &format!("{error:?} in store {call}"));
        }
    }
    drop(map);
    ground.finish();
}

/// The device hands out no frames, or fewer than were asked for.
///
/// # Panics
/// If anything is lost.
pub fn frames_are_refused(make: Make, watched: &Watched) {
    let (ground, map) = (Ground::new(make, watched), Map::filled(100, SEED));
    for done in [0, 1, 7] {
        let why = DeviceError::OutOfMemory;
        ground.fail(Verb::Alloc, When::From(0), Fault::Stop { done, why });
        let went = ground.driver.to_device(map.pages());
        assert!(went < 100 && (went > 0) == (done > 0), "{went} went when each call gives {done} frames");
        assert_eq!(ground.device.nr_live(), went);
        map.expect(0..100, SEED, "some went");
        if !ground.comes_home() {
            assert_eq!(ground.driver.to_system(map.pages()), went, "and stay until they are wanted");
        }
    }
    ground.mend();
    assert!(!ground.comes_home() || ground.driver.to_device(map.pages()) == 100);
    map.expect(0..100, SEED, "all went");
    drop(map);
    ground.finish();
}

/// Transfers fail now and then; nothing is lost by that, whoever asked for the page.
///
/// # Panics
/// If something is.
pub fn fetches_fail_for_a_while(make: Make, watched: &Watched) {
    let (ground, map) = with_pages_on_device(make, watched, 100);
    let fault = Fault::Stop { done: 1, why: DeviceError::Io };
    ground.fail(Verb::Fetch, When::Every(2), fault);
    // Whatever a driver leaves on the device, a touch brings. In parts, because each may be one transfer.
    for first in (0..50).step_by(10) {
        ground.driver.to_system(map.part(first, 10));
    }
    map.expect(0..100, SEED, "every second transfer fails");
    assert!(!ground.comes_home() || ground.device.inner().injected() > 0, "transfers have failed");
    ground.mend();
    ground.driver.to_device(map.pages());
    // A driver's own way home that fails for good changes nothing.
    ground.fail(Verb::Fetch, When::From(0), Fault::fail(DeviceError::Io));
    assert_eq!(ground.driver.to_system(map.pages()), 0);
    ground.mend();
    assert_eq!(ground.driver.nr_on_device(map.pages()), 100, "they are where they were");
    map.expect(0..100, SEED, "in the end");
    drop(map);
    ground.finish();
}

/// A device is lost: its pages are, when they are touched, and no others; in bounded time, and for ever.
///
/// # Panics
/// If not.
pub fn a_lost_device_loses_what_it_had_and_no_more(make: Make, watched: &Watched) {
    let (ground, map) = with_pages_on_device(make, watched, 40);
    map.expect(0..5, SEED, "touched");
    let driver = &ground.driver;
    driver.to_system(map.part(0, 10));
    assert_eq!(driver.nr_on_device(map.part(0, 10)), 0, "these are at home");
    ground.lose();
    assert_eq!(driver.to_system(map.part(10, 30)), 0, "it gives nothing back");
    assert_eq!(driver.to_device(map.part(0, 10)), 0, "and takes nothing");
    map.expect(0..10, SEED, "was at home");
    if !ground.comes_home() {
        return;
    }
    // Not by a touch of this thread's, which would be ended by it, but as a device does it.
    let second = crate::Driver::new(&ground.space, ground.another(), hmm::core::notifier::Owner(9));
    for _ in 0..2 {
        assert_eq!(second.fault(map.part(20, 1), Request::FAULT), Err(RangeError::Fault), "it is lost");
        assert_eq!(ground.space.state(map.page(20)), PageState::Poisoned);
    }
    map.discard(20, 1);
    map.expect_zero([20], "lost, then discarded");
    drop(second);
    drop(map);
    ground.finish();
}
