//! What hmm takes, seen from outside.

use hmm_programs::{Done, Hmm, Job, MIB, assert_healthy, assert_same_output, can_run, scale};

/// Everything that is not the program's, nor its device's, nor its metadata.
const FIXED_COST: u64 = 32 * MIB;

/// Some passes over an array whose pages compress to about a half.
fn passes(bytes: u64, nr_passes: u32) -> Job {
    Job::python(&format!(
        "
import random, hashlib
r = random.Random(1)
n = {bytes}
page = [r.randbytes(2048) + bytes(2048) for _ in range(64)]
b = bytearray(n)
for k in range({nr_passes}):
    for i in range(0, n, 4096): b[i:i + 4096] = page[(i // 4096 * 7 + k) % 64]
    for i in range(0, n, 4096): assert b[i:i + 4096] == page[(i // 4096 * 7 + k) % 64], i
print(hashlib.sha256(b).hexdigest())
"
    ))
}

#[test]
fn resident_memory_stays_within_the_budget() {
    if !can_run() {
        return;
    }
    let (bytes, ram) = (128 * MIB * scale(), 32 * MIB * scale());
    let job = passes(bytes, 4);
    let (alone, done) = (job.alone(), job.under_watch(&Hmm::ram(ram)));
    assert_same_output(&done, &alone);
    assert_healthy(&done, ram);
    assert!(done.samples.len() >= 10, "only {} samples in {:?}", done.samples.len(), done.wall);
    let stats = done.stats();
    for sample in &done.samples {
        assert!(
            sample.managed + sample.staging <= ram,
            "more than {ram} bytes are resident: {sample:?}, {stats}"
        );
    }
    // It is used, too: a sampler that finds nothing would find nothing wrong.
    let most = done.samples.iter().map(|sample| sample.managed + sample.staging).max().unwrap();
    assert!(most >= ram / 2, "never more than {most} bytes were resident: {stats}");
    // The device's pool and the metadata by their own account; both gauges are samples, hence the margin of a tenth.
    let device = stats.get("device_bytes") + stats.get("metadata_bytes");
    for sample in &done.samples {
        let most = device + device / 10 + FIXED_COST;
        assert!(sample.other + sample.hmm <= most, "hmm costs more than {most} bytes: {sample:?}, {stats}");
    }
}

/// The kernel copies pages that a fork shares, without asking anybody. A program that does not fit has all of its pages written to on
/// both sides of some forks, and is watched.
fn forks_that_write_to_all(hmm: &Hmm, ram: u64) -> Done {
    let bytes = 48 * MIB * scale();
    let job = Job::python(&format!(
        "
import os
n = {bytes}
b = bytearray(n)
def write(add):
    for i in range(0, n, 4096): b[i:i + 8] = (i + add).to_bytes(8, 'little')
def check(add):
    for i in range(0, n, 4096): assert int.from_bytes(b[i:i + 8], 'little') == i + add, i
for k in range(8):
    write(k)
    pid = os.fork()
    # From the end, which was touched last: most of it is resident.
    for i in range(n - 4096, 0, -4096): b[i + 9] = k
    check(k)
    if pid == 0: os._exit(k)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == k
print('done')
"
    ));
    let (alone, done) = (job.alone(), job.under_watch(hmm));
    assert_same_output(&done, &alone);
    assert_healthy(&done, ram);
    let of_both = done.samples.iter().filter(|sample| sample.nr_managed > 1).count();
    assert!(of_both >= 5, "parent and child were seen together only {of_both} times: {}", done.stats());
    done
}

#[test]
fn what_a_fork_shares_stays_within_the_budget() {
    if !can_run() {
        return;
    }
    let ram = 32 * MIB * scale();
    let done = forks_that_write_to_all(&Hmm::ram(ram), ram);
    for sample in &done.samples {
        assert!(sample.managed + sample.staging <= ram, "of {ram} bytes: {sample:?}, {}", done.stats());
    }
}

/// With a budget for each, none leaves for a child, and both sides have more together than one of them may have.
#[test]
fn what_a_fork_shares_stays_within_the_budget_of_each() {
    if !can_run() {
        return;
    }
    let ram = 32 * MIB * scale();
    let done = forks_that_write_to_all(&Hmm::ram(ram).per_process(), ram);
    for sample in &done.samples {
        assert!(sample.most <= ram, "of {ram} bytes: {sample:?}, {}", done.stats());
    }
    let most = done.samples.iter().map(|sample| sample.managed + sample.staging).max();
    assert!(most > Some(ram + ram / 4), "{most:?} bytes of both: {}", done.stats());
}

#[test]
fn metadata_is_at_most_a_quarter_of_a_percent() {
    if !can_run() {
        return;
    }
    let of = |bytes: u64| {
        let done = passes(bytes, 1).under(&Hmm::ram(32 * MIB * scale()));
        assert_healthy(&done, 32 * MIB * scale());
        done.stats().get("metadata_bytes")
    };
    // What does not grow with the memory is part of the fixed cost.
    let (small, large) = (64 * MIB * scale(), 320 * MIB * scale());
    let (few, many) = (of(small), of(large));
    assert!(few <= FIXED_COST / 16, "{few} bytes of metadata for a small program");
    assert!(many > few, "the metadata of more memory is not more: {few}, {many}");
    assert!(
        (many - few) * 400 <= large - small,
        "{} bytes of metadata for {} bytes",
        many - few,
        large - small
    );
}
