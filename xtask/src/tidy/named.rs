//! Tests that documents name as proof: they must be there.
//!
//! In `RULES.md` every `` `file::test` `` is a test, where `file` is the end of a source file's path without `.rs`: long
//! enough that there is one such file. In the documents in prose every word with three underscores or more is one, in whatever file,
//! and every `` `dir/file.rs` `` is the end of a path. A check of the conformance suite is a test if the suite runs it.

use std::path::Path;

use anyhow::{Context, Result};

use crate::cargo::root;
use crate::tidy::sources;

/// Documents that name tests as they tell what holds.
const IN_PROSE: [&str; 4] = ["README.md", "ARCHITECTURE.md", "DESIGN.md", "OPERATIONS.md"];
/// Where a function of the suite's is, and where the suite says which it runs.
const CHECKS: &str = "testing/conformance/src/checks/";
const SUITE: &str = "testing/conformance/src/lib.rs";

/// A source file, and the tests in it.
struct File {
    /// From the root of the tree.
    path: String,
    tests: Vec<String>,
}

/// Checks the documents; what they name and is not there, with its place.
pub(crate) fn check() -> Result<Vec<String>> {
    let root = root()?;
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let suite = read(&root.join(SUITE))?;
    let mut files = Vec::new();
    for path in sources::files(&root)? {
        let name = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
        files.push(File { tests: tests(&name, &read(&path)?, &suite), path: name });
    }
    let mut wrong = check_rules(&read(&root.join("RULES.md"))?, &files);
    for document in IN_PROSE {
        wrong.extend(check_prose(document, &read(&root.join(document))?, &files));
    }
    Ok(wrong)
}

/// The names of the tests in a file.
fn tests(path: &str, text: &str, suite: &str) -> Vec<String> {
    let is_check = path.starts_with(CHECKS);
    let mut tests = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        let name = line.strip_prefix("pub ").unwrap_or(line).strip_prefix("fn ");
        let name = name.and_then(|rest| rest.split(['(', '<']).next());
        match name {
            Some(name) if is_test || (is_check && is_run(name, suite)) => tests.push(name.to_owned()),
            None if line == "#[test]" => is_test = true,
            // Other attributes come in between.
            None if line.starts_with("#[") => {}
            _ => is_test = false,
        }
        is_test &= name.is_none();
    }
    tests
}

/// Whether the suite has a line for the check.
fn is_run(check: &str, suite: &str) -> bool {
    suite.lines().any(|line| line.trim().strip_suffix(',') == Some(check))
}

/// What is between single backticks, with the number of its line.
fn quoted(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let parts = |line| str::split(line, '`').skip(1).step_by(2);
    (1..).zip(text.lines()).flat_map(move |(number, line)| parts(line).map(move |part| (number, part)))
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// The files whose paths end so.
fn ending<'f>(files: &'f [File], end: &str) -> impl Iterator<Item = &'f File> {
    let end = format!("/{end}");
    files.iter().filter(move |file| format!("/{}", file.path).ends_with(&end))
}

fn check_rules(text: &str, files: &[File]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (number, part) in quoted(text) {
        let Some((file, test)) = part.split_once("::") else { continue };
        if !file.split('/').all(is_name) {
            continue;
        }
        let found: Vec<_> = ending(files, &format!("{file}.rs")).collect();
        let why = match &found[..] {
            [] => "there is no such file",
            [one] if one.tests.iter().any(|name| name == test) => continue,
            [_] => "there is no such test",
            [..] => "there are several such files: write more of the path",
        };
        wrong.push(format!("RULES.md:{number}: `{part}`: {why}"));
    }
    wrong
}

fn check_prose(document: &str, text: &str, files: &[File]) -> Vec<String> {
    let is_test = |name: &str| files.iter().any(|file| file.tests.iter().any(|test| test == name));
    let mut wrong = Vec::new();
    for (number, part) in quoted(text) {
        if is_name(part) && part.matches('_').count() >= 3 && !is_test(part) {
            wrong.push(format!("{document}:{number}: `{part}`: there is no such test"));
        }
        if part.contains('/') && part.ends_with(".rs") && ending(files, part).next().is_none() {
            wrong.push(format!("{document}:{number}: `{part}`: there is no such file"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "fn helper() {}\n#[test]\n#[ignore = \"slow\"]\nfn a_is_b() {\n}\nfn other_helper() {}\n\
        \t#[test]\n\tfn in_a_macro(x in 0..9) {}\n";

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), tests: tests(path, text, "  suite_runs_it,\n") }
    }

    #[test]
    fn tests_are_told_from_other_functions() {
        assert_eq!(tests("crates/a/src/b.rs", SOURCE, ""), ["a_is_b", "in_a_macro"]);
        let checks = "pub fn suite_runs_it(make: Make) {}\npub fn nobody_runs_it(make: Make) {}\n";
        assert_eq!(file("testing/conformance/src/checks/a.rs", checks).tests, ["suite_runs_it"]);
        assert!(file("testing/conformance/src/a.rs", checks).tests.is_empty());
    }

    #[test]
    fn a_rule_whose_test_is_not_there_is_found() {
        let files = [file("crates/a/tests/x.rs", SOURCE), file("crates/b/tests/x.rs", SOURCE)];
        let wrong = |text: &str| check_rules(text, &files).len();
        assert_eq!(wrong("| `a/tests/x::a_is_b` | `Select::FAULT`, `in_a_macro`, `a::B::c` |"), 1);
        assert_eq!(wrong("| `a/tests/x::a_is_b`, `b/tests/x::in_a_macro` | `Select::FAULT` |"), 0);
        assert_eq!(wrong("`a/tests/x::a_is_c`"), 1);
        assert_eq!(wrong("`a/tests/x::helper`"), 1);
        assert_eq!(wrong("`sts/x::a_is_b`"), 1);
        assert_eq!(wrong("`x::a_is_b`"), 1);
        assert_eq!(check_rules("\n`y::a_is_b`", &files), ["RULES.md:2: `y::a_is_b`: there is no such file"]);
    }

    #[test]
    fn a_test_that_is_named_in_prose_is_there() {
        let files = [file("crates/a/tests/x.rs", "#[test]\nfn a_is_not_b() {}\n")];
        let wrong = |text: &str| check_prose("DESIGN.md", text, &files).len();
        assert_eq!(wrong("*Shown* by `a_is_not_b` in `tests/x.rs`, `x.rs` and `hmm_range_fault`."), 0);
        assert_eq!(wrong("*Shown* by `a_is_not_c`."), 1);
        let there_is_no_file = "OPERATIONS.md:1: `tests/y.rs`: there is no such file";
        assert_eq!(check_prose("OPERATIONS.md", "*Shown* by `tests/y.rs`.", &files), [there_is_no_file]);
    }
}
