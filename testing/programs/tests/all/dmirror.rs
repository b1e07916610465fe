//! Linux's HMM test devices under `hmm run --dmirror`: what Linux's own tests leave out.

use hmm_programs::{Hmm, Job, TempDir, can_run, compile};

/// Parts of `c/dmirror.c`.
#[track_caller]
fn holds(part: &str, told: &[&str]) {
    if !can_run() {
        return;
    }
    let dir = TempDir::new();
    let Some(program) = compile("dmirror", &dir) else { return };
    let done = Job::new(program).arg(part).under(&Hmm::dmirror());
    assert_eq!(done.stdout().lines().collect::<Vec<_>>(), told, "{}", done.stderr);
    assert_eq!(done.code(), 0);
}

#[test]
fn wrong_arguments() {
    holds("arguments", &["arguments"]);
}

#[test]
fn seen_from_outside() {
    holds("outside", &["outside"]);
}

#[test]
fn an_inherited_descriptor_is_of_the_openers_memory() {
    holds("inherited", &["inherited"]);
}

#[test]
fn a_descriptor_that_was_sent_outlives_who_opened_it() {
    holds("sent", &["sent"]);
}

#[test]
fn a_mapping_of_the_device() {
    holds("mapped", &["mapped"]);
}

#[test]
fn the_last_close_brings_everything_home() {
    holds("closed_private", &["closed_private"]);
}

#[test]
fn the_last_close_of_a_coherent_device_brings_everything_home() {
    holds("closed_coherent", &["closed_coherent"]);
}

#[test]
fn coherent_devices() {
    holds("coherent", &["coherent"]);
}

#[test]
fn what_does_not_change_keeps_its_entry() {
    holds("entries", &["entries"]);
}

#[test]
fn what_was_unmapped_is_gone() {
    holds("replaced", &["replaced"]);
}

#[test]
fn what_the_program_makes_writable_stays_so() {
    holds("toggles", &["toggles"]);
}

#[test]
fn what_is_shared_stays_so_while_devices_read() {
    holds("shared", &["shared"]);
}

#[test]
fn private_mappings_of_files() {
    holds("file", &["file"]);
}

#[test]
fn exclusive_pages() {
    holds("exclusive", &["exclusive"]);
}

#[test]
fn without_being_asked_for_there_are_none() {
    if !can_run() {
        return;
    }
    let done = Job::sh("test -e /dev/hmm_dmirror0; echo $?").under(&Hmm::ram(Hmm::MIN_RAM));
    assert_eq!(done.stdout(), Job::sh("test -e /dev/hmm_dmirror0; echo $?").alone().stdout());
}
