//! The test that most programs get: the same output on a part of the memory.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use crate::MIB;
use crate::command::Hmm;
use crate::job::{Done, Job};

/// Runs the job alone, and then within 50 % and 25 % of the memory that it was seen to use; everything it says must be
/// the same, and pages must have left.
///
/// # Panics
/// When something differs, the budget was exceeded, or the job is too small for the test to mean something.
#[track_caller]
pub fn same_within_budgets(job: &Job) {
    let alone = job.alone();
    assert!(alone.status.success(), "without hmm: {alone:?}");
    for percent in [50, 25] {
        let ram = (alone.peak_anonymous * percent / 100).next_multiple_of(MIB);
        assert!(ram >= Hmm::MIN_RAM, "too small a test: {} bytes are used", alone.peak_anonymous);
        let managed = job.under(&Hmm::ram(ram));
        eprintln!(
            "{} MiB in {} MiB: {:.2} s instead of {:.2} s",
            alone.peak_anonymous / MIB,
            ram / MIB,
            managed.wall.as_secs_f64(),
            alone.wall.as_secs_f64()
        );
        // Its message has the figures.
        assert_healthy(&managed, ram);
        assert_same_output(&managed, &alone);
        // What does not fit has left at least once. Not all of a program's memory is managed, and a peak is short.
        let stored = managed.stats().count("pgstore") * 4096;
        // Several processes may have their peaks at the same time alone and one after the other under hmm: then nothing
        // says how much did not fit, only that some did not.
        let is_one_process = managed.stats().get("processes") == 1;
        let excess = if is_one_process { alone.peak_anonymous - ram } else { 2 * 4096 };
        assert!(stored >= excess / 2, "{stored} bytes left, {excess} did not fit: {}", managed.stats());
    }
}

/// The run ended well, in its budget, with nothing lost, and every process managed.
///
/// # Panics
/// If not.
#[track_caller]
pub fn assert_healthy(done: &Done, ram: u64) {
    let stats = done.stats();
    assert!(done.status.success(), "{} {}\n{stats}", done.status, done.stderr);
    assert!(stats.get("peak_resident_bytes") <= ram, "the budget of {ram} was exceeded: {stats}");
    assert_eq!(stats.count("overcharged"), 0, "{stats}");
    assert_eq!(stats.count("pgpoison"), 0, "{stats}");
    assert_eq!(stats.get("unmanaged_processes"), 0, "{stats}");
    assert_eq!(stats.verdict(), None, "{stats}");
}

/// Both runs said the same, byte for byte.
///
/// # Panics
/// If not, with the place.
#[track_caller]
pub fn assert_same_output(managed: &Done, alone: &Done) {
    assert_eq!(managed.stderr, alone.stderr, "standard error differs");
    assert_eq!(managed.status, alone.status);
    assert_same_file(managed.stdout_path(), alone.stdout_path());
}

/// Both files have the same content.
///
/// # Panics
/// If not, with the place.
#[track_caller]
pub fn assert_same_file(one: &Path, other: &Path) {
    let open = |path| BufReader::with_capacity(1 << 20, File::open(path).expect("it was written"));
    let (mut one, mut other) = (open(one), open(other));
    let (mut left, mut right, mut offset) = ([0; 65536], [0; 65536], 0);
    loop {
        let (here, there) = (fill(&mut one, &mut left), fill(&mut other, &mut right));
        let differing = left[..here].iter().zip(&right[..there]).position(|(left, right)| left != right);
        if let Some(at) = differing {
            panic!("the output differs at byte {}: {} instead of {}", offset + at, left[at], right[at]);
        }
        assert_eq!(here, there, "the output has another length, from byte {offset} on");
        if here == 0 {
            return;
        }
        offset += here;
    }
}

fn fill(from: &mut impl Read, buffer: &mut [u8]) -> usize {
    let mut len = 0;
    while len < buffer.len() {
        match from.read(&mut buffer[len..]).expect("a file can be read") {
            0 => break,
            more => len += more,
        }
    }
    len
}
