//! Policies, traces and their replay, on the real kernel.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::common::{Done, TempDir, can_run, finish, hmm, skipped};

const POLICIES: [&str; 4] = ["clock", "fifo", "twice", "round"];

/// Text that does not fit into 16 MiB while it is sorted, nor compress well.
fn text(dir: &TempDir) -> PathBuf {
    let mut text = String::new();
    let mut state = 0x1234_5678_9abc_def0_u64;
    for _ in 0..300_000 {
        // xorshift
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        writeln!(text, "{state:016x}{:016x}{:016x}", state.wrapping_mul(3), state.rotate_left(21)).unwrap();
    }
    dir.file("text", text, 0o644)
}

fn sort(file: &Path) -> [String; 4] {
    ["sort", "--parallel=1", "--buffer-size=200M", &file.display().to_string()].map(str::to_owned)
}

fn json(text: impl AsRef<[u8]>) -> Value {
    serde_json::from_slice(text.as_ref()).unwrap()
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("no {name} in {value:#}"))
}

#[track_caller]
fn replayed(trace: &Path, options: &[&str]) -> Done {
    let done = finish(hmm(["replay"]).arg(trace).args(options));
    assert_eq!((done.code(), done.stderr.as_str()), (0, ""), "{done:?}");
    done
}

#[track_caller]
fn refused(args: &mut Command, reason: &str) {
    let done = finish(args);
    assert_eq!((done.code(), done.stdout.as_str()), (125, ""), "{done:?}");
    assert!(done.stderr.starts_with("hmm: ") && done.stderr.contains(reason), "{reason}: {}", done.stderr);
}

#[test]
fn a_program_does_the_same_under_every_policy() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new("policies");
    let (file, figures) = (text(&dir), dir.path().join("stats.json"));
    let expected = finish(Command::new("sort").arg(&file));
    for policy in POLICIES {
        let options = ["run", "--ram", "16M", "--policy", policy, "--stats"];
        let done = finish(hmm(options).arg(&figures).args(sort(&file)));
        assert_eq!((done.code(), done.stderr.as_str()), (0, ""), "{policy}");
        assert!(done.stdout == expected.stdout, "{policy}: the output differs");
        let figures = json(std::fs::read(&figures).unwrap());
        let counters = &figures["counters"];
        assert_eq!(figures["policy"], policy);
        assert!(number(counters, "pgmajfault") > 1000, "{counters:#}");
        assert_eq!(number(counters, "pgprefetch") == 0, policy == "fifo", "{counters:#}");
    }
}

#[test]
fn a_trace_has_what_was_counted_and_is_replayed_to_the_same_bytes() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new("trace");
    let (file, figures, trace) = (text(&dir), dir.path().join("stats.json"), dir.path().join("a.trace"));
    let expected = finish(Command::new("sort").arg(&file));
    for policy in POLICIES {
        let mut command = hmm(["trace", "--ram", "16M", "--policy", policy, "--stats"]);
        let done = finish(command.arg(&figures).arg("-o").arg(&trace).args(sort(&file)));
        assert_eq!((done.code(), done.stderr.as_str()), (0, ""), "{policy}");
        assert!(done.stdout == expected.stdout, "{policy}: the output differs");

        let counters = &json(std::fs::read(&figures).unwrap())["counters"];
        let counted = |name| number(counters, name);
        let replay = replayed(&trace, &["--json"]);
        let replay = json(replay.stdout);
        let recorded = &replay["recorded"];
        assert_eq!(number(recorded, "lost"), 0);
        assert_eq!((&replay["recorded_policy"], number(&replay, "ram_bytes")), (&policy.into(), 16 << 20));
        for (name, count) in [
            ("fetched", counted("pgfetch") + counted("pgprefetch")),
            ("evicted", counted("pgsteal")),
            ("stored", counted("pgstore")),
            ("unchanged", counted("pgclean")),
        ] {
            assert_eq!(number(recorded, name), count, "{policy} {name}: {recorded:#} {counters:#}");
        }
        assert!(number(recorded, "touches") > 1000 && number(recorded, "processes") == 1, "{recorded:#}");
        for counts in replay["policies"].as_array().unwrap() {
            assert_eq!(number(counts, "touches"), number(recorded, "touches"));
            let of_use = number(counts, "useful") + number(counts, "useless");
            assert_eq!(of_use, number(counts, "read_ahead"));
            assert!(number(&replay["least"], "fetched") <= number(counts, "fetched"), "{replay:#}");
        }
        let again = || replayed(&trace, &["--policy", "twice,clock", "--ram", "20M"]).stdout;
        let first = again();
        assert_eq!(first, again());
        let rows: Vec<_> = first.lines().filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(rows[1..], ["faults", "(recorded)", "twice", "clock", "(least)"], "{first}");
        assert!(!first.contains("There would be more faults"));
        assert!(replayed(&trace, &[]).stdout.contains("There would be more faults"));
        assert!(first.contains(&format!("recorded with 16 MiB under {policy}; replayed with 20 MiB")));
    }
}

#[test]
fn a_trace_ends_as_its_program_does_and_has_its_processes() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new("endings");
    let trace = dir.path().join("a.trace");
    let sh = |script| {
        let mut command = hmm(["trace", "--ram", "16M", "--output"]);
        command.arg(&trace).args(["--", "sh", "-c", script]);
        finish(&mut command)
    };
    assert_eq!(sh("exit 7").code(), 7);
    assert_eq!(sh("kill -9 $$").signal(), Some(9));
    assert_eq!(sh("(true; true) & (true; true); wait; exit 3").code(), 3);
    let replay = json(replayed(&trace, &["--json"]).stdout);
    assert!(number(&replay["recorded"], "processes") >= 3, "{replay:#}");
}

#[test]
fn what_cannot_be_written_or_read_is_said() {
    let dir = TempDir::new("refused");
    let nowhere = dir.path().join("no/such/directory");
    refused(hmm(["trace", "--ram", "16M", "-o"]).arg(&nowhere).arg("true"), "cannot write the trace to");
    refused(hmm(["replay"]).arg(&nowhere), "cannot read the trace");
    refused(&mut hmm(["trace", "--ram", "1M", "true"]), "too little to work with");
    let text = dir.file("text", "hello, this is no trace", 0o644);
    refused(hmm(["replay"]).arg(&text), "it is no trace of hmm's");
    refused(hmm(["replay", "--ram", "1M"]).arg(&text), "16 MiB is the least");
    if !can_run() {
        return;
    }
    let done = finish(&mut hmm(["trace", "--ram", "16M", "-o", "/dev/full", "echo", "hello"]));
    assert_eq!((done.code(), done.stdout.as_str()), (0, "hello\n"));
    assert!(done.stderr.contains("the trace in /dev/full is not complete"), "{}", done.stderr);

    let trace = dir.path().join("a.trace");
    assert_eq!(finish(hmm(["trace", "--ram", "16M", "-o"]).arg(&trace).arg("true")).code(), 0);
    let whole = std::fs::read(&trace).unwrap();
    std::fs::write(&trace, &whole[..whole.len() - 5]).unwrap();
    refused(hmm(["replay"]).arg(&trace), "it is cut off behind");
    let mut damaged = whole;
    damaged[50] ^= 4;
    std::fs::write(&trace, damaged).unwrap();
    refused(hmm(["replay"]).arg(&trace), "it is damaged");
}

/// Touches 12 MiB again and again, and between that a part of 192 MiB once each; then all of the 12 MiB.
const HOT_AND_SCAN: &str = r"
#include <stdlib.h>
#include <string.h>
enum { PAGE = 4096, HOT = 3072, COLD = 49152 };
static volatile unsigned sum;
static void touch(char *pages, long first, long end) {
    for (long page = first; page < end; page++) sum += pages[page * PAGE];
}
int main(void) {
    char *hot = aligned_alloc(2 << 20, (long)HOT * PAGE), *cold = aligned_alloc(2 << 20, (long)COLD * PAGE);
    for (long page = 0; page < COLD; page++) memset(cold + page * PAGE, page, PAGE);
    for (long page = 0; page < HOT; page++) memset(hot + page * PAGE, page, PAGE);
    for (long round = 0; round < 12; round++) {
        touch(hot, 0, HOT);
        touch(cold, round * 2048, round * 2048 + 2048);
    }
    for (long round = 0; round < 6; round++) {
        touch(hot, 0, HOT);
        touch(cold, 24576, COLD);
    }
    return 0;
}
";

/// Pages that devices delivered.
fn fetched(program: &Path, policy: &str, figures: &Path) -> u64 {
    let options = ["run", "--ram", "48M", "--policy", policy, "--stats"];
    let done = finish(hmm(options).arg(figures).arg(program));
    assert_eq!((done.code(), done.stderr.as_str()), (0, ""), "{policy}");
    let counters = &json(std::fs::read(figures).unwrap())["counters"];
    number(counters, "pgfetch") + number(counters, "pgprefetch")
}

#[test]
fn a_hot_set_survives_scans_under_twice() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new("scan");
    let source = dir.file("scan.c", HOT_AND_SCAN, 0o644);
    let (program, figures) = (dir.path().join("scan"), dir.path().join("stats.json"));
    let built = Command::new("gcc").args(["-O1", "-o"]).arg(&program).arg(&source).status();
    if !built.is_ok_and(|status| status.success()) {
        return skipped("no gcc");
    }
    let [clock, twice] = ["clock", "twice"].map(|policy| fetched(&program, policy, &figures));
    println!("{clock} pages fetched under clock, {twice} under twice");
    // The hot set is 3072 pages, and is touched six times behind a scan.
    assert!(twice + 3 * 3072 < clock, "{clock} under clock, {twice} under twice");
}
