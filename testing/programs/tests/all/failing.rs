//! Devices that fail: SIGBUS for who touches what is lost, right bytes for everybody else, and never a hang.

use hmm_programs::{Hmm, Job, MIB, can_run};

const SIGBUS: i32 = 7;
const SIGKILL: i32 = 9;

/// Writes 96 MiB and reads all of it again.
const FILL_AND_READ: &str = "
import hashlib, random
r = random.Random(1)
parts = [r.randbytes(1 << 16) * 16 for _ in range(96)]
for n, part in enumerate(parts):
    print(n, hashlib.sha256(part).hexdigest(), flush=True)
";

#[test]
fn a_device_that_is_lost_raises_sigbus() {
    if !can_run() {
        return;
    }
    let job = Job::python(FILL_AND_READ);
    let alone = job.alone();
    // There is room for all of it, and the device lives until about half of it has been stored.
    let done = job.under(&Hmm::ram(48 * MIB).device("lz4:cap=256M,lost-after=400"));
    // Memory that cannot leave any more fills the budget, or what is lost is touched: what comes first.
    assert!(matches!(done.signal(), Some(SIGBUS | SIGKILL)), "{done:?}");
    assert!(done.stderr.contains("a device failed"), "{}", done.stderr);
    assert!(done.stderr.contains("device 1: the device is lost"), "{}", done.stderr);
    assert_eq!(done.stats().verdict(), Some("DeviceLost"));
    // What it said before is right.
    assert!(alone.stdout().starts_with(&done.stdout()), "{}", done.stdout());
}

/// In bounded time: it waits for what is asked, and not for more.
#[test]
fn a_device_that_does_not_answer_is_given_up() {
    if !can_run() {
        return;
    }
    let job = Job::python(FILL_AND_READ);
    let alone = job.alone();
    for device in
        ["lz4:cap=256M,stuck-after=400,patience=2", "file:path=/var/tmp,cap=256M,stuck-after=400,patience=2"]
    {
        let start = std::time::Instant::now();
        let done = job.under(&Hmm::ram(48 * MIB).device(device));
        assert!(matches!(done.signal(), Some(SIGBUS | SIGKILL)), "{done:?}");
        assert!(done.stderr.contains("device 1: the device has not answered"), "{}", done.stderr);
        assert!(alone.stdout().starts_with(&done.stdout()), "{}", done.stdout());
        assert!(start.elapsed().as_secs() < 40, "{:?}", start.elapsed());
    }
}

/// On a thread of hmm's in the program, which has no standard error: it is told all the same, and is no hang.
#[test]
fn a_driver_that_panics_ends_the_program_with_a_word() {
    if !can_run() {
        return;
    }
    let job = Job::python(FILL_AND_READ);
    let alone = job.alone();
    let done = job.under(&Hmm::ram(48 * MIB).device("lz4:cap=256M,panic-after=400"));
    assert_eq!(done.signal(), Some(SIGKILL), "{done:?}");
    assert!(done.stderr.contains("was ended: hmm failed in it"), "{}", done.stderr);
    let said =
        done.stderr.lines().find(|line| line.contains("a device panics, as planned")).expect("it is told");
    assert!(said.contains("faulty.rs:"), "and where: {said}");
    assert_eq!(done.stats().verdict(), Some("Defect"));
    assert!(alone.stdout().starts_with(&done.stdout()), "{}", done.stdout());
}
