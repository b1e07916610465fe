//! Linux's own tests of its heterogeneous memory management, unmodified, under `hmm run --dmirror`.
//!
//! They come from Debian's package of the kernel's source, are compiled when the test runs, and are never part of this
//! tree.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hmm_programs::skip::{has_programs, skipped};
use hmm_programs::{Hmm, Job, TempDir, can_run};

/// Where Debian puts the archives.
const SOURCES: &str = "/usr/src";
const TEST: &str = "tools/testing/selftests/mm/hmm-tests.c";
/// What it includes.
const NEEDED: [&str; 5] = [
    TEST,
    "tools/testing/selftests/kselftest_harness.h",
    "tools/testing/selftests/kselftest.h",
    "lib/test_hmm_uapi.h",
    "mm/gup_test.h",
];
/// Why one of them may be skipped: it needs a module that only the kernel has, or pages that the machine has not.
const MAY_SKIP: [(&str, &str); 2] = [
    ("hmm_gup_test", "could not find gup_test driver"),
    ("anon_write_hugetlbfs", "Huge page could not be allocated"),
];

/// How many pages of its own the kernel keeps huge, for those who ask.
const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";
/// What the tests need of them.
const NR_HUGE_PAGES: u32 = 4;

/// Huge pages for the tests, as far as we may ask for some and the machine has them. Given back at the end.
struct HugePages {
    before: String,
}

impl HugePages {
    fn ask() -> Option<Self> {
        let before = std::fs::read_to_string(HUGE_PAGES).ok()?.trim().to_owned();
        let wanted = before.parse::<u32>().ok()? + NR_HUGE_PAGES;
        std::fs::write(HUGE_PAGES, wanted.to_string()).ok()?;
        Some(Self { before })
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(HUGE_PAGES, &self.before);
    }
}

/// The newest archive of the kernel's source.
fn archive() -> Option<PathBuf> {
    let entries = std::fs::read_dir(SOURCES).ok()?;
    let is_source = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with("linux-source-") && name.ends_with(".tar.xz")
    };
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_source).max()
}

/// Compiles the tests. `None`, and a skipped test, where something for that is missing.
fn tests(dir: &TempDir) -> Option<PathBuf> {
    if !can_run() || !has_programs(&["gcc", "tar", "xz"]) {
        return None;
    }
    let Some(archive) = archive() else {
        skipped("the kernel's source is not installed: apt-get install linux-source-6.12");
        return None;
    };
    // Reading the archive takes longer than the tests, so what comes of it is kept.
    let name = archive.file_stem().unwrap().to_string_lossy().replace(".tar", "");
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&name);
    if !root.join(TEST).is_file() {
        extract(&archive, &name, dir, &root);
    }
    let program = dir.join("hmm-tests");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-w", "-D_GNU_SOURCE=", "-pthread", "-I"]).arg(&root).arg("-o").arg(&program);
    assert!(gcc.arg(root.join(TEST)).status().unwrap().success(), "gcc cannot compile {TEST}");
    Some(program)
}

fn extract(archive: &Path, name: &str, dir: &TempDir, root: &Path) {
    let mut tar = Command::new("tar");
    tar.arg("xJf").arg(archive).arg("-C").arg(dir.join(""));
    tar.args(NEEDED.iter().map(|file| format!("{name}/{file}")));
    assert!(tar.status().unwrap().success(), "{} does not have what is needed", archive.display());
    std::fs::create_dir_all(root.parent().unwrap()).unwrap();
    // Another run may have done the same meanwhile. The directories may be on different file systems.
    let copied = Command::new("cp").arg("-rT").arg(dir.join(name)).arg(root).status().unwrap();
    assert!(copied.success(), "cannot copy to {}", root.display());
}

/// What a line of the Test Anything Protocol says of a test.
#[derive(Debug, PartialEq)]
enum Verdict<'a> {
    Passed(&'a str),
    Skipped(&'a str, &'a str),
    Failed(&'a str),
}

fn parse(line: &str) -> Option<Verdict<'_>> {
    let (failed, rest) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
        (Some(rest), _) => (false, rest),
        (None, rest) => (true, rest?),
    };
    let (_, name) = rest.split_once(' ')?;
    Some(match name.split_once(" # SKIP ") {
        Some((name, why)) if !failed => Verdict::Skipped(name, why),
        _ if failed => Verdict::Failed(name),
        _ => Verdict::Passed(name),
    })
}

fn may_skip(name: &str, why: &str) -> bool {
    MAY_SKIP.iter().any(|(test, reason)| name.ends_with(test) && why.contains(reason))
}

#[test]
fn linux_hmm_tests() {
    let dir = TempDir::new();
    let Some(program) = tests(&dir) else { return };
    let _huge_pages = HugePages::ask();
    let done = Job::new(program).patience(Duration::from_secs(300)).under(&Hmm::dmirror());
    let output = done.stdout();
    let verdicts: Vec<_> = output.lines().filter_map(parse).collect();
    let wrong: Vec<_> = verdicts
        .iter()
        .filter(|verdict| match verdict {
            Verdict::Passed(_) => false,
            Verdict::Skipped(name, why) => !may_skip(name, why),
            Verdict::Failed(_) => true,
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}\n{output}\n{}", done.stderr);
    let planned = output.lines().find_map(|line| line.strip_prefix("1..")?.parse().ok());
    assert_eq!(planned, Some(verdicts.len()), "all that were announced have run\n{output}");
    assert!(verdicts.len() >= 58, "{} tests: the suite has lost some", verdicts.len());
    let nr_passed = verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Passed(_))).count();
    assert!(nr_passed >= 54, "{nr_passed} passed\n{output}");
    for verdict in &verdicts {
        if let Verdict::Skipped(name, why) = verdict {
            skipped(&format!("{name}: {why}"));
        }
    }
    assert_eq!(done.code(), 0);
}

#[test]
fn the_protocol_is_understood() {
    assert_eq!(
        parse("ok 1 hmm.hmm_device_private.open_close"),
        Some(Verdict::Passed("hmm.hmm_device_private.open_close"))
    );
    assert_eq!(parse("not ok 22 hmm.a.b"), Some(Verdict::Failed("hmm.a.b")));
    assert_eq!(
        parse("ok 3 hmm.a.b # SKIP no such thing"),
        Some(Verdict::Skipped("hmm.a.b", "no such thing"))
    );
    assert_eq!(parse("#  RUN           hmm.a.b ..."), None);
    assert!(may_skip("hmm.x.hmm_gup_test", "Skipping test, could not find gup_test driver"));
    assert!(!may_skip("hmm.x.migrate", "could not find gup_test driver"));
    assert!(!may_skip("hmm.x.open_close", "DEVICE_COHERENT not available"));
}
