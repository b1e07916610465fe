//! Devices that fail, on the real kernel: right bytes, SIGBUS or more memory, but never wrong bytes and never a hang.

#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

mod common;

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{MIB, space, within};
use hmm::Region;
use hmm::device::decorate::{Fault, Faulty, Rule, Throttle, Throttled, Verb, When};
use hmm::device::{DeviceError, Ram};

const SIGBUS: i32 = 7;
/// Tells a test that it is the process that is to die.
const VICTIM: &str = "HMM_TEST_VICTIM";

fn word(index: usize) -> u64 {
    (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn fill(region: &mut Region) {
    region.as_mut_slice::<u64>().iter_mut().enumerate().for_each(|(index, value)| *value = word(index));
}

fn verify(region: &Region) {
    for (index, value) in region.as_slice::<u64>().iter().enumerate() {
        assert_eq!(*value, word(index), "word {index}");
    }
}

/// Runs the named test again in a process of its own, which has to be ended by SIGBUS in time.
fn dies_of_sigbus(test: &str) {
    let mut victim = Command::new(std::env::current_exe().expect("has a name"))
        .args(["--exact", test, "--nocapture"])
        .env(VICTIM, "1")
        .spawn()
        .expect("starts");
    let start = Instant::now();
    loop {
        match victim.try_wait().expect("is a child") {
            Some(status) => return assert_eq!(status.signal(), Some(SIGBUS), "{status:?}"),
            None if start.elapsed() > Duration::from_secs(60) => {
                victim.kill().expect("is alive");
                panic!("{test} hangs");
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Fills, has the device fail from then on, and reads.
fn read_after(error: DeviceError) {
    let device = Arc::new(Faulty::new(Ram::new(64 * 1024), []));
    let space = space(16 * MIB, Arc::clone(&device) as _);
    let mut region = space.alloc(64 * MIB).expect("allocates");
    fill(&mut region);
    let failing = Rule { verb: Some(Verb::Fetch), when: When::From(0), fault: Fault::fail(error) };
    device.set_plan([failing]);
    verify(&region);
}

#[test]
fn a_lost_device_is_sigbus() {
    if std::env::var_os(VICTIM).is_some() {
        return read_after(DeviceError::Lost);
    }
    dies_of_sigbus("a_lost_device_is_sigbus");
}

#[test]
fn corrupt_frames_are_sigbus() {
    if std::env::var_os(VICTIM).is_some() {
        return read_after(DeviceError::Corrupt);
    }
    dies_of_sigbus("corrupt_frames_are_sigbus");
}

/// Works on four times the budget over a device with this plan; every byte has to be right.
fn survives(plan: Vec<Rule>) -> hmm::Snapshot {
    let space = space(16 * MIB, Arc::new(Faulty::new(Ram::new(64 * 1024), plan)));
    let mut region = space.alloc(64 * MIB).expect("allocates");
    fill(&mut region);
    verify(&region);
    verify(&region);
    space.stats()
}

#[test]
fn passing_errors_are_tried_again() {
    within(120, || {
        let in_part = Fault::Stop { done: 1, why: DeviceError::Io };
        let fails = |verb, when, fault| Rule { verb: Some(verb), when, fault };
        let plan = [
            // With none of its pages done, and one of them is waited for.
            fails(Verb::Fetch, When::Every(7), Fault::fail(DeviceError::Io)),
            fails(Verb::Fetch, When::Every(11), in_part),
            fails(Verb::Store, When::Every(7), in_part),
        ];
        let snapshot = survives(plan.to_vec());
        assert_eq!(snapshot.poisoned, 0, "{snapshot:?}");
        assert!(snapshot.peak_resident <= snapshot.budget, "I9: {snapshot:?}");
    });
}

#[test]
fn a_full_device_gets_the_budget_grown_and_loses_nothing() {
    within(120, || {
        let refuses = Rule {
            verb: Some(Verb::Store),
            when: When::From(40),
            fault: Fault::fail(DeviceError::OutOfMemory),
        };
        let snapshot = survives(vec![refuses]);
        assert!(snapshot.overcharged > 0, "{snapshot:?}");
        assert_eq!(snapshot.poisoned, 0, "{snapshot:?}");
    });
}

#[test]
fn a_slow_device_is_waited_for() {
    within(120, || {
        let throttle = Throttle { latency: Duration::from_millis(2), bytes_per_s: None };
        let space = space(16 * MIB, Arc::new(Throttled::new(Ram::new(64 * 1024), throttle)));
        let mut region = space.alloc(24 * MIB).expect("allocates");
        fill(&mut region);
        verify(&region);
    });
}
