//! Programs on more memory than they may hold.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{TempDir, can_run, finish, hmm};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// Lines of text that do not compress below half.
fn random_text(dir: &TempDir, nr_lines: u64) -> PathBuf {
    let mut text = String::new();
    let mut state = 0x1234_5678_9abc_def0_u64;
    for _ in 0..nr_lines {
        // xorshift
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        writeln!(text, "{state:016x}{:016x}{:016x}", state.wrapping_mul(3), state.rotate_left(21)).unwrap();
    }
    dir.file("text", text, 0o644)
}

/// All of the file in memory at once, sorted by one thread.
fn sort(file: &Path) -> Vec<String> {
    ["sort", "--parallel=1", "--buffer-size=400M"]
        .map(str::to_owned)
        .into_iter()
        .chain([file.display().to_string()])
        .collect()
}

fn stats(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn sort_gives_the_same_on_a_quarter_of_its_memory() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new("sort");
    let (file, figures) = (random_text(&dir, 600_000), dir.path().join("stats.json"));
    let expected = finish(Command::new("sort").arg(&file));
    let done = finish(hmm(["run", "--ram", "24M", "--stats"]).arg(&figures).args(sort(&file)));
    assert_eq!(done.code(), 0, "{}", done.stderr);
    assert!(done.stdout == expected.stdout, "the output differs");
    assert_eq!(done.stderr, "");

    let figures = stats(&figures);
    let number = |name: &str| figures[name].as_u64().unwrap();
    assert!(number("peak_resident_bytes") <= 24 * MIB, "{figures:#}");
    assert!(number("away_bytes") > 8 * MIB, "{figures:#}");
    assert!(number("device_bytes") > MIB, "{figures:#}");
    assert!(figures["counters"]["pgmajfault"].as_u64().unwrap() > 0, "{figures:#}");
    assert!(number("metadata_bytes") > 0, "{figures:#}");
}

#[test]
fn a_full_device_ends_the_program_with_figures() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new("full");
    let (file, figures) = (random_text(&dir, 600_000), dir.path().join("stats.json"));
    let mut command = hmm(["run", "--ram", "16M", "--device", "lz4:cap=2M", "--stats"]);
    let done = finish(command.arg(&figures).args(sort(&file)));
    assert_eq!(done.signal(), Some(libc::SIGKILL), "{done:?}");
    for part in
        ["sort[", "no room left", "of a budget of 16 MiB", "of at most 2 MiB on lz4", "--on-full grow"]
    {
        assert!(done.stderr.contains(part), "no '{part}' in: {}", done.stderr);
    }
    assert_eq!(stats(&figures)["verdict"]["kind"], "DeviceFull");
}

#[test]
fn the_budget_may_grow_instead() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new("grow");
    let file = random_text(&dir, 600_000);
    let expected = finish(Command::new("sort").arg(&file));
    let mut command = hmm(["run", "--ram", "16M", "--device", "lz4:cap=2M", "--on-full", "grow"]);
    let done = finish(command.args(sort(&file)));
    assert_eq!(done.code(), 0, "{}", done.stderr);
    assert!(done.stdout == expected.stdout, "the output differs");
    assert!(done.stderr.contains("the budget of 16 MiB was exceeded"), "{}", done.stderr);
}

#[test]
fn what_does_not_fit_into_the_first_device_goes_to_the_second() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new("tiers");
    let (file, figures) = (random_text(&dir, 600_000), dir.path().join("stats.json"));
    let expected = finish(Command::new("sort").arg(&file));
    let mut command = hmm(["run", "--ram", "16M", "--device", "lz4:cap=2M", "--device"]);
    command.arg(format!("file:path={}", dir.path().display())).arg("--stats").arg(&figures);
    let done = finish(command.args(sort(&file)));
    assert_eq!((done.code(), done.stderr.as_str()), (0, ""));
    assert!(done.stdout == expected.stdout, "the output differs");
    let figures = stats(&figures);
    let number = |name: &str| figures[name].as_u64().unwrap();
    assert!(number("peak_resident_bytes") <= 16 * MIB, "{figures:#}");
    for (device, least) in [(0, MIB), (1, 8 * MIB)] {
        let device = &figures["devices"][device];
        for name in ["held_bytes", "used_bytes"] {
            assert!(device[name].as_u64().unwrap() > least, "{name}: {figures:#}");
        }
    }
    assert!(figures["devices"][0]["demoted_pages"].as_u64().unwrap() > 0, "{figures:#}");
    assert_eq!(figures["devices"][1]["demoted_pages"], 0, "there is none below");
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.len() == 2, "more than the text and the figures: {left:?}");
}

#[test]
fn a_directory_that_takes_no_file_is_told() {
    if !can_run() {
        return;
    }
    let done = finish(&mut hmm(["run", "--ram", "16M", "--device", "file:path=/proc,cap=64M", "--", "true"]));
    assert_eq!(done.code(), 125, "{done:?}");
    assert!(done.stderr.contains("cannot make a file in /proc"), "{}", done.stderr);
    let done = finish(&mut hmm(["run", "--ram", "16M", "--device", "file:path=/no/where", "--", "true"]));
    assert_eq!(done.code(), 125, "{done:?}");
    assert!(done.stderr.contains("option path: /no/where: No such file"), "{}", done.stderr);
}

/// Scripts that sort a text more than once.
struct Sorts {
    dir: TempDir,
    file: PathBuf,
    sorted: String,
}

impl Sorts {
    fn new(name: &str) -> Self {
        let dir = TempDir::new(name);
        let file = random_text(&dir, 200_000);
        let sorted = finish(Command::new("sort").arg(&file)).stdout;
        Self { dir, file, sorted }
    }

    /// Runs a script, in which `SORT` sorts the text, in a directory where it writes these outputs. Gives the figures.
    fn run(&self, options: &[&str], script: &str, outputs: &[&str]) -> Value {
        let (dir, figures) = (self.dir.path(), self.dir.path().join("stats.json"));
        let script = script.replace("SORT", &sort(&self.file).join(" "));
        let mut command = hmm(["run"]);
        command.current_dir(dir).args(options).arg("--stats").arg(&figures).args(["sh", "-c", &script]);
        let done = finish(&mut command);
        assert_eq!((done.code(), done.stderr.as_str()), (0, ""), "{options:?}");
        for name in outputs {
            let output = std::fs::read_to_string(dir.join(name)).unwrap();
            assert!(output == self.sorted, "output {name} differs");
        }
        stats(&figures)
    }
}

#[test]
fn processes_share_the_budget_and_give_it_back() {
    if !can_run() {
        return;
    }
    let sorts = Sorts::new("several");
    let figures = sorts.run(&["--ram", "32M"], "SORT >a & SORT >b; wait; SORT >c", &["a", "b", "c"]);
    assert!(figures["processes"].as_u64().unwrap() >= 4, "{figures:#}");
    assert!(figures["peak_resident_bytes"].as_u64().unwrap() <= 32 * MIB, "{figures:#}");
}

/// Two that sort at the same time, in a budget that one of them needs nearly all of.
#[test]
fn each_process_has_the_budget_to_itself_where_that_is_asked_for() {
    if !can_run() {
        return;
    }
    let sorts = Sorts::new("each");
    let evicted = |ram: &str, options: &[&str]| {
        let options_with_ram = [&["--ram", ram], options].concat();
        let figures = sorts.run(&options_with_ram, "SORT >a & SORT >b; wait", &["a", "b"]);
        assert!(figures["peak_resident_bytes"].as_u64() <= figures["budget_bytes"].as_u64(), "{figures:#}");
        assert_eq!(figures["per_process"], !options.is_empty());
        figures["counters"]["pgsteal"].as_u64().unwrap()
    };
    let needed = 4 * std::fs::metadata(&sorts.file).unwrap().len();
    let enough = needed.to_string();
    assert_eq!(evicted(&enough, &["--per-process"]), 0, "each has enough");
    assert!(evicted("16M", &["--per-process"]) > 0, "each is bounded");
    assert!(evicted("16M", &[]) > 0);
}

/// What is resident of a shell, of its parent and of that one's parent: under `hmm run` these are the program with the
/// agent in it, the supervisor and the front. In KiB, shared pages in part.
const RESIDENT: &str = "for pid in $$ $PPID $(sed -n 's/^PPid:\\s*//p' /proc/$PPID/status); do \
     echo $(cat /proc/$pid/comm) $(sed -n 's/^Pss: *\\([0-9]*\\) kB/\\1/p' /proc/$pid/smaps_rollup); done";

#[test]
fn what_hmm_takes_for_itself_is_little() {
    if !can_run() {
        return;
    }
    for ram in ["16M", "64G"] {
        let done = finish(&mut hmm(["run", "--ram", ram, "--", "sh", "-c", RESIDENT]));
        assert_eq!((done.code(), done.stderr.as_str()), (0, ""));
        let figures: Vec<(&str, u64)> = done
            .stdout
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter_map(|(name, figure)| Some((name, figure.parse().ok()?)))
            .collect();
        assert!(matches!(figures[..], [("sh", _), ("hmm", _), ("hmm", _)]), "{}", done.stdout);
        let sum: u64 = figures.iter().map(|(_, kib)| kib).sum();
        assert!((1..=32 << 10).contains(&sum), "{figures:?}");
    }
}
