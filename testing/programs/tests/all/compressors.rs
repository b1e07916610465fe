//! xz and zstd with windows larger than the budget.

use hmm_programs::data::write_text;
use hmm_programs::skip::has_programs;
use hmm_programs::{Job, MIB, TempDir, can_run, same_within_budgets, scale};

/// Compresses to standard output, so that the compressed bytes are compared, too; then there and back.
fn compress(program: &str, options: &str, bytes: u64) {
    if !can_run() || !has_programs(&[program]) {
        return;
    }
    let dir = TempDir::new();
    write_text(&dir.join("text"), bytes * scale());
    let text = dir.join("text").display().to_string();
    let options = options.split(' ').chain(["-c", &text]);
    let packed = Job::new(program).args(options);
    same_within_budgets(&packed);
}

#[test]
fn xz_compresses() {
    compress("xz", "-T1 -6", 8 * MIB);
}

#[test]
fn zstd_compresses_with_a_long_window() {
    compress("zstd", "-q -3 --long=27 --single-thread", 96 * MIB);
}

#[test]
fn xz_there_and_back() {
    there_and_back("xz -T2 -9 -c TEXT | xz -dc", &["xz"], 8 * MIB);
}

#[test]
fn zstd_there_and_back() {
    there_and_back("zstd -q -3 --long=27 -T2 -c TEXT | zstd -q -d --long=27 -c", &["zstd"], 96 * MIB);
}

fn there_and_back(script: &str, programs: &[&str], bytes: u64) {
    if !can_run() || !has_programs(programs) {
        return;
    }
    let dir = TempDir::new();
    let text = dir.join("text");
    write_text(&text, bytes * scale());
    let script = script.replace("TEXT", &text.display().to_string());
    same_within_budgets(&Job::sh(&format!("{script} | cmp - {}", text.display())));
}
