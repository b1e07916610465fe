//! xz and zstd with windows larger than the budget.

use hmm_programs::data::{write_noise, write_text};
use hmm_programs::skip::has_programs;
use hmm_programs::{Job, MIB, TempDir, can_run, same_within_budgets, scale};

/// The match finder's tables are what takes memory, and every byte of the input goes to a random place in them.
#[test]
fn xz_compresses() {
    if !can_run() || !has_programs(&["xz"]) {
        return;
    }
    let dir = TempDir::new();
    write_noise(&dir.join("noise"), MIB / 4 * scale());
    same_within_budgets(&Job::new("xz").args(["-T1", "-9", "-c"]).arg(dir.join("noise")));
}

#[test]
fn zstd_compresses_with_a_long_window() {
    if !can_run() || !has_programs(&["zstd"]) {
        return;
    }
    let dir = TempDir::new();
    write_text(&dir.join("text"), 96 * MIB * scale());
    same_within_budgets(
        &Job::new("zstd").args(["-q", "-3", "--long=27", "--single-thread", "-c"]).arg(dir.join("text")),
    );
}

/// The window is all of the decoder's memory.
#[test]
fn xz_decompresses_with_a_large_window() {
    if !can_run() || !has_programs(&["xz"]) {
        return;
    }
    let dir = TempDir::new();
    let (text, packed) = (dir.join("text"), dir.join("text.xz"));
    write_text(&text, 72 * MIB * scale());
    let window = format!("--lzma2=preset=0,dict={}MiB", (64 * scale()).min(1536));
    let made = Job::new("xz").args(["-T1", &window, "-k"]).arg(&text).alone();
    assert!(made.status.success(), "{made:?}");
    same_within_budgets(&Job::new("xz").args(["-dc"]).arg(&packed));
}

#[test]
fn zstd_there_and_back() {
    if !can_run() || !has_programs(&["zstd", "cmp"]) {
        return;
    }
    let dir = TempDir::new();
    write_text(&dir.join("text"), 96 * MIB * scale());
    let text = dir.join("text").display().to_string();
    let script = format!("zstd -q -3 --long=27 -T2 -c {text} | zstd -q -d --long=27 -c | cmp - {text}");
    same_within_budgets(&Job::sh(&script));
}
