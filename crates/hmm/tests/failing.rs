//! Devices that fail, on the real kernel: right bytes, SIGBUS or more memory, but never wrong bytes and never a hang.

#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

mod common;

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use common::{MIB, space, within};
use hmm::Region;
use hmm::core::notifier::{Change, Pass, Watch};
use hmm::device::decorate::{Fault, Faulty, Rule, Throttle, Throttled, Verb, When};
use hmm::device::{Caps, Device, DeviceError, DevicePfn, Fetch, Ram, Store, Transfer, Usage};
use hmm::mirror::pages;

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
    dies_of(libc::SIGBUS, test);
}

/// The same with another signal.
fn dies_of(signal: i32, test: &str) {
    let mut victim = Command::new(std::env::current_exe().expect("has a name"))
        .args(["--exact", test, "--nocapture"])
        .env(VICTIM, "1")
        .spawn()
        .expect("starts");
    let start = Instant::now();
    loop {
        match victim.try_wait().expect("is a child") {
            Some(status) => return assert_eq!(status.signal(), Some(signal), "{status:?}"),
            None if start.elapsed() > Duration::from_secs(60) => {
                victim.kill().expect("is alive");
                panic!("{test} hangs");
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Fills, has fetches go wrong from then on, and reads.
fn read_after(fault: Fault) {
    let device = Faulty::new(Ram::new(64 * 1024), []).with_patience(Duration::from_secs(1));
    let device = Arc::new(device);
    let space = space(16 * MIB, Arc::clone(&device) as _);
    let mut region = space.alloc(64 * MIB).expect("allocates");
    fill(&mut region);
    let failing = Rule { verb: Some(Verb::Fetch), when: When::From(0), fault };
    device.set_plan([failing]);
    verify(&region);
}

#[test]
fn a_lost_device_is_sigbus() {
    if std::env::var_os(VICTIM).is_some() {
        return read_after(Fault::fail(DeviceError::Lost));
    }
    dies_of_sigbus("a_lost_device_is_sigbus");
}

#[test]
fn corrupt_frames_are_sigbus() {
    if std::env::var_os(VICTIM).is_some() {
        return read_after(Fault::fail(DeviceError::Corrupt));
    }
    dies_of_sigbus("corrupt_frames_are_sigbus");
}

#[test]
fn a_device_that_does_not_answer_is_sigbus() {
    if std::env::var_os(VICTIM).is_some() {
        return read_after(Fault::Stick(Duration::from_secs(1000)));
    }
    dies_of_sigbus("a_device_that_does_not_answer_is_sigbus");
}

/// As for one that is lost, and not a hang: the thread that served the fault goes on.
#[test]
fn a_driver_that_panics_in_a_fetch_is_sigbus() {
    if std::env::var_os(VICTIM).is_some() {
        return read_after(Fault::Panic);
    }
    dies_of_sigbus("a_driver_that_panics_in_a_fetch_is_sigbus");
}

/// One call waits until it is let go.
#[derive(Debug)]
struct Gated {
    inner: Ram,
    /// How long a store takes.
    latency: Duration,
    /// The verb whose next call waits.
    next: Mutex<Option<Verb>>,
    entered: (Mutex<bool>, Condvar),
    open: (Mutex<bool>, Condvar),
}

fn set((flag, changed): &(Mutex<bool>, Condvar)) {
    *flag.lock().expect("is not poisoned") = true;
    changed.notify_all();
}

fn wait((flag, changed): &(Mutex<bool>, Condvar)) {
    drop(changed.wait_while(flag.lock().expect("is not poisoned"), |set| !*set).expect("is not poisoned"));
}

impl Gated {
    fn new() -> Self {
        let inner = Ram::new(64 * 1024);
        let latency = Duration::ZERO;
        Self { inner, latency, next: Mutex::default(), entered: Default::default(), open: Default::default() }
    }

    fn pass(&self, verb: Verb) {
        if self.next.lock().expect("is not poisoned").take_if(|next| *next == verb).is_some() {
            set(&self.entered);
            wait(&self.open);
        }
    }
}

impl Device for Gated {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        self.inner.alloc(frames)
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        self.pass(Verb::Store);
        std::thread::sleep(self.latency);
        self.inner.store(run)
    }

    fn fetch(&self, run: Fetch<'_>) -> Transfer {
        self.pass(Verb::Fetch);
        self.inner.fetch(run)
    }

    fn free(&self, frames: &[DevicePfn]) {
        self.inner.free(frames);
    }

    fn holds(&self, frame: DevicePfn, bytes: &[u8]) -> bool {
        self.inner.holds(frame, bytes)
    }

    fn patience(&self) -> Option<Duration> {
        Some(Duration::from_secs(1000))
    }
}

/// While one call of a device does not return, all other pages are served, those on the device, too; when it does, its own
/// are.
fn goes_on_while_one_waits(verb: Verb) {
    within(120, move || {
        let device = Arc::new(Gated::new());
        let space = space(16 * MIB, Arc::clone(&device) as _);
        let mut region = space.alloc(64 * MIB).expect("allocates");
        fill(&mut region);
        let words = region.as_slice::<u64>();
        let (first, rest) = words.split_at(words.len() / 4);
        let check = |words: &[u64], from: usize| {
            words.iter().enumerate().for_each(|(index, value)| assert_eq!(*value, word(from + index)));
        };
        std::thread::scope(|scope| {
            // From a block's border on that is not being read: streams do not meet.
            *device.next.lock().expect("is not poisoned") = Some(verb);
            let waiting = scope.spawn(|| check(first, 0));
            wait(&device.entered);
            check(rest, first.len());
            if verb == Verb::Fetch {
                assert!(!waiting.is_finished(), "its page is still to come");
            }
            set(&device.open);
            waiting.join().expect("reads what it has written");
        });
        verify(&region);
        assert_eq!(space.stats().poisoned, 0, "{:?}", space.stats());
    });
}

#[test]
fn a_fetch_that_does_not_return_holds_up_nobody_else() {
    goes_on_while_one_waits(Verb::Fetch);
}

#[test]
fn a_store_that_does_not_return_holds_up_nobody() {
    goes_on_while_one_waits(Verb::Store);
}

/// As many calls of a device with patience are under way as may be most of the time; that is no reason to forget what it has.
#[test]
fn what_a_busy_device_has_is_not_stored_again() {
    within(120, || {
        let device = Gated { latency: Duration::from_millis(1), ..Gated::new() };
        let space = space(16 * MIB, Arc::new(device));
        let mut region = space.alloc(64 * MIB).expect("allocates");
        fill(&mut region);
        (0..4).for_each(|_| verify(&region));
        let (snapshot, nr_pages) = (space.stats(), 64 * MIB as u64 / 4096);
        assert!(snapshot.stored < 2 * nr_pages, "{snapshot:?}");
    });
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
fn a_driver_that_panics_in_a_store_loses_nothing() {
    within(120, || {
        let device = Arc::new(Faulty::new(Ram::new(64 * 1024), []));
        let space = space(16 * MIB, Arc::clone(&device) as _);
        let mut region = space.alloc(64 * MIB).expect("allocates");
        region.as_mut_slice::<u64>()[..MIB / 8].fill(1);
        let next = device.calls(Verb::Store) + 1;
        device.set_plan([Rule { verb: Some(Verb::Store), when: When::From(next), fault: Fault::Panic }]);
        fill(&mut region);
        verify(&region);
        // Reclaim and the handlers may be at it at the same moment.
        assert!((next..next + 3).contains(&device.calls(Verb::Store)), "it is not called again");
        let snapshot = space.stats();
        assert!(snapshot.poisoned == 0 && snapshot.overcharged > 0, "{snapshot:?}");
    });
}

struct Panicking;

impl Watch for Panicking {
    type Table = ();

    fn invalidate(&self, (): &mut (), _: &Change) -> Pass {
        panic!("as planned");
    }
}

/// Has a driver told of a change by one of hmm's threads, and waits for it.
fn callback_panics() {
    let space = space(16 * MIB, Arc::new(Ram::new(1024)));
    let mut region = space.alloc(MIB).expect("allocates");
    region.as_mut_slice::<u64>().fill(1);
    let watched = pages(region.as_slice::<u8>());
    let _notifier = space.watch(watched, Arc::new(Mutex::new(())), Panicking).expect("a range");
    let bytes = region.as_mut_slice::<u8>();
    // SAFETY: the region is ours.
    unsafe { libc::madvise(bytes.as_mut_ptr().cast(), bytes.len(), libc::MADV_DONTNEED) };
    std::thread::sleep(Duration::from_secs(60));
}

/// A panic elsewhere on a thread that serves faults ends the process at once, instead of having everybody wait.
#[test]
fn a_callback_that_panics_ends_the_process() {
    if std::env::var_os(VICTIM).is_some() {
        return callback_panics();
    }
    dies_of(libc::SIGABRT, "a_callback_that_panics_ends_the_process");
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
