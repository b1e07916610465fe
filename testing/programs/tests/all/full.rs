//! Devices that are full.

use hmm_programs::{Hmm, Job, MIB, assert_same_output, can_run};

/// 64 MiB that nobody can compress, written and read again.
const INCOMPRESSIBLE: &str = "
import hashlib, random
r = random.Random(1)
parts = [r.randbytes(1 << 20) for _ in range(64)]
print(hashlib.sha256(b''.join(parts[:8])).hexdigest())
for part in parts: print(hashlib.sha256(part).hexdigest())
";

fn hmm() -> Hmm {
    Hmm::ram(16 * MIB).device("lz4:cap=8M")
}

#[test]
fn the_program_is_killed_with_figures() {
    if !can_run() {
        return;
    }
    let done = Job::python(INCOMPRESSIBLE).under(&hmm());
    assert_eq!(done.signal(), Some(9), "{done:?}");
    for part in
        ["python3[", "no room left", "of a budget of 16 MiB", "of at most 8 MiB on lz4", "--on-full grow"]
    {
        assert!(done.stderr.contains(part), "no '{part}' in: {}", done.stderr);
    }
    assert_eq!(done.stats().verdict(), Some("DeviceFull"));
    assert!(done.stats().get("peak_resident_bytes") <= 16 * MIB, "{}", done.stats());
}

#[test]
fn the_budget_grows() {
    if !can_run() {
        return;
    }
    let job = Job::python(INCOMPRESSIBLE);
    let (alone, done) = (job.alone(), job.under(&hmm().grow()));
    assert!(done.stderr.contains("the budget of 16 MiB was exceeded"), "{}", done.stderr);
    assert_eq!(done.code(), 0);
    assert_eq!(done.stdout(), alone.stdout());
    assert!(done.stats().count("overcharged") > 0, "{}", done.stats());
    assert_eq!(done.stats().count("pgpoison"), 0, "{}", done.stats());
}

#[test]
fn a_device_that_is_just_large_enough() {
    if !can_run() {
        return;
    }
    let job = Job::python(INCOMPRESSIBLE);
    let (alone, done) = (job.alone(), job.under(&Hmm::ram(16 * MIB).device("lz4:cap=96M")));
    assert_same_output(&done, &alone);
    assert!(done.stats().get("device_bytes") <= 96 * MIB, "{}", done.stats());
}
