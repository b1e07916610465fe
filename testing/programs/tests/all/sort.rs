//! sort(1), alone and in pipelines.

use hmm_programs::data::write_text;
use hmm_programs::{Job, MIB, TempDir, can_run, same_within_budgets, scale};

/// Bytes of text that make a working set of about 70 MiB.
fn text(dir: &TempDir) -> String {
    let path = dir.join("text");
    write_text(&path, 32 * MIB * scale());
    path.display().to_string()
}

fn sort(nr_threads: u32) {
    if !can_run() {
        return;
    }
    let dir = TempDir::new();
    let buffer = format!("--buffer-size={}M", 400 * scale());
    let job = Job::new("sort").args([buffer, format!("--parallel={nr_threads}"), text(&dir)]);
    same_within_budgets(&job.env("LC_ALL", "C"));
}

#[test]
fn sort_with_one_thread() {
    sort(1);
}

#[test]
fn sort_with_two_threads() {
    sort(2);
}

#[test]
fn a_pipeline_of_several_sorts() {
    if !can_run() {
        return;
    }
    let (dir, buffer) = (TempDir::new(), 400 * scale());
    let text = text(&dir);
    let script = format!(
        "sort -S {buffer}M -r {text} | sed 's/a/b/' | sort -S {buffer}M -k 3 | uniq -c | tail -n 200000"
    );
    same_within_budgets(&Job::sh(&script).env("LC_ALL", "C"));
}
