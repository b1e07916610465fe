//! All tests, and an honest count.
//!
//! A test that cannot run here (a program is missing, a right) says `SKIPPED: why` on its output and passes; for cargo it
//! is a test like others. So the output of tests that pass is shown, too, and read: a test is skipped if it says so, and
//! is not counted as passed. Tests with real programs append what they skip to the file `HMM_SKIPPED_FILE` as well,
//! which is read in the end: nothing is lost if a test's output is.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::cargo::cargo;

/// What was counted.
#[derive(Debug, Default)]
struct Count {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// Tests that were skipped, with their reasons.
    skipped: BTreeMap<String, String>,
    /// The test whose output is being shown.
    current: Option<String>,
}

impl Count {
    /// Takes notice of a line of cargo's output. Says whether it is worth showing.
    fn line(&mut self, line: &str) -> bool {
        if let Some(rest) = line.strip_prefix("test result: ") {
            self.result(rest);
        } else if let Some(name) =
            line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            self.current = Some(name.to_owned());
        } else if let Some(why) = line.strip_prefix("SKIPPED: ") {
            let name = self.current.clone().unwrap_or_else(|| why.to_owned());
            let why = why.strip_prefix(&format!("{name}: ")).unwrap_or(why);
            self.skip(&name, why);
        } else if let Some((name, why)) = ignored(line) {
            self.skip(name, why);
        } else {
            return !line.is_empty();
        }
        true
    }

    /// `ok. 3 passed; 0 failed; 1 ignored; ...`
    fn result(&mut self, text: &str) {
        let number = |what: &str| {
            let (before, _) = text.split_once(what)?;
            before.trim_end().rsplit(' ').next()?.parse::<u64>().ok()
        };
        self.passed += number("passed").unwrap_or(0);
        self.failed += number("failed").unwrap_or(0);
        self.ignored += number("ignored").unwrap_or(0);
        self.current = None;
    }

    fn skip(&mut self, name: &str, why: &str) {
        let whys = self.skipped.entry(name.to_owned()).or_default();
        if !whys.split("; ").any(|known| known == why) {
            whys.push_str(if whys.is_empty() { "" } else { "; " });
            whys.push_str(why);
        }
    }

    /// The file that tests append to: `TEST: why` in each line.
    fn file(&mut self, text: &str) {
        for (name, why) in text.lines().filter_map(|line| line.split_once(": ")) {
            self.skip(name, why);
        }
    }

    /// Ignored tests are among the skipped, and no passed ones; the others passed as far as cargo knows.
    fn nr_passed(&self) -> u64 {
        let said_so = (self.skipped.len() as u64).saturating_sub(self.ignored);
        self.passed.saturating_sub(said_so)
    }

    fn report(&self) {
        for (name, why) in &self.skipped {
            eprintln!("skipped: {name}: {why}");
        }
        eprintln!("{} passed, {} failed, {} skipped", self.nr_passed(), self.failed, self.skipped.len());
    }
}

/// `test NAME ... ignored, why`
fn ignored(line: &str) -> Option<(&str, &str)> {
    let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let why = outcome.strip_prefix("ignored")?;
    Some((name, why.strip_prefix(", ").unwrap_or("ignored")))
}

/// Runs them, with more arguments for `cargo test`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let skipped_file = std::env::temp_dir().join(format!("hmm-skipped-{}", std::process::id()));
    std::fs::write(&skipped_file, "").with_context(|| format!("cannot write {}", skipped_file.display()))?;
    let mut command = cargo()?;
    command.args(["test", "--workspace", "--no-fail-fast"]).args(args);
    if !args.iter().any(|arg| arg == "--") {
        command.arg("--");
    }
    command.arg("--show-output").env("HMM_SKIPPED_FILE", &skipped_file).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start cargo")?;
    let mut count = Count::default();
    for line in BufReader::new(child.stdout.take().context("its output is piped")?).split(b'\n') {
        let line = line.context("cannot read cargo's output")?;
        let line = String::from_utf8_lossy(&line);
        if count.line(&line) {
            eprintln!("{line}");
        }
    }
    let status = child.wait().context("cargo is gone")?;
    count.file(&std::fs::read_to_string(&skipped_file).unwrap_or_default());
    let _best_effort = std::fs::remove_file(&skipped_file);
    count.report();
    ensure!(status.success() && count.failed == 0, "tests failed ({status})");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_tests_are_not_counted_as_passed() {
        let mut count = Count::default();
        for line in [
            "running 5 tests",
            "test one ... ok",
            "test two ... ignored, takes an hour",
            "test three ... ok",
            "successes:",
            "---- three stdout ----",
            "SKIPPED: needs root",
            "---- four stdout ----",
            "SKIPPED: four: not installed: redis-server",
            "test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ] {
            count.line(line);
        }
        count.file("four: not installed: redis-server\nfive: no /dev/userfaultfd\n");
        assert_eq!((count.nr_passed(), count.failed), (2, 1));
        let skipped: Vec<_> = count.skipped.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        assert_eq!(
            skipped,
            [
                "five: no /dev/userfaultfd",
                "four: not installed: redis-server",
                "three: needs root",
                "two: takes an hour"
            ]
        );
    }
}
