//! Rules for single files.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cargo::root;

/// Lines of code that a file may have; its tests at the end do not count.
const MAX_LINES: usize = 500;
/// The last of the invariants.
const LAST_INVARIANT: u32 = 10;
/// Where `unsafe` may be: what talks to the kernel or shares memory, and programs' calls of libc.
const MAY_BE_UNSAFE: [&str; 15] = [
    "crates/uapi/",
    "crates/codec/src/lz4.rs",
    "crates/hmm/",
    "crates/agent/",
    "crates/capi/",
    "devices/dmirror/src/memory.rs",
    "devices/file/",
    "devices/lz4/",
    "devices/soft/",
    "crates/cli/",
    "bench/",
    "testing/oracle/",
    "testing/conformance/",
    "testing/torture/",
    "xtask/src/tidy/",
];

/// Checks every source file; what is wrong, with its place.
pub(crate) fn check() -> Result<Vec<String>> {
    let root = root()?;
    let mut wrong = Vec::new();
    for path in files(&root)? {
        let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
        wrong.extend(check_file(&name, &String::from_utf8_lossy(&text)));
    }
    Ok(wrong)
}

/// Every source file of the tree.
pub(super) fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for dir in ["crates", "devices", "testing", "bench", "xtask"] {
        collect(&root.join(dir), &mut files)?;
    }
    files.push(root.join("Cargo.toml"));
    files.sort();
    Ok(files)
}

/// The `.rs`, `.toml` and `.c` files in a directory.
fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot look into {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|kind| kind == "rs" || kind == "toml" || kind == "c") {
            files.push(path);
        }
    }
    Ok(())
}

fn check_file(name: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let may_be_unsafe = MAY_BE_UNSAFE.iter().any(|dir| name.starts_with(dir));
    // The line that says so must not say so.
    let unfinished = ["to", "do!"].concat();
    for (number, line) in (1..).zip(text.lines()) {
        let mut say = |what: &str| wrong.push(format!("{name}:{number}: {what}"));
        if !line.is_ascii() {
            say("not ASCII");
        }
        if line.contains(&unfinished) {
            say("unfinished");
        }
        if name.ends_with(".rs") {
            let code = line.split("//").next().unwrap_or_default();
            if !may_be_unsafe && has_word(code, "unsafe") {
                say("`unsafe` has no place in this crate");
            }
            if let Some(invariant) = unknown_invariant(line) {
                say(&format!("there is no invariant {invariant}"));
            }
        }
    }
    let nr_lines = text.lines().take_while(|line| *line != "mod tests {").count();
    if name.ends_with(".rs") && nr_lines > MAX_LINES {
        wrong.push(format!("{name}: {nr_lines} lines; {MAX_LINES} is the most: split it"));
    }
    wrong
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
}

fn has_word(text: &str, word: &str) -> bool {
    words(text).any(|this| this == word)
}

/// An `I` with a number that is none of ours.
fn unknown_invariant(line: &str) -> Option<&str> {
    words(line).find(|word| {
        let number = word.strip_prefix('I').and_then(|rest| rest.parse::<u32>().ok());
        number.is_some_and(|number| !(1..=LAST_INVARIANT).contains(&number))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_found() {
        let wrong = |name: &str, text: &str| check_file(name, text).len();
        assert_eq!(wrong("crates/core/src/a.rs", "fn fine() {} // I1 to I10, not unsafe\n"), 0);
        assert_eq!(wrong("crates/core/src/a.rs", "unsafe { go() }\n"), 1);
        assert_eq!(wrong("crates/core/src/lib.rs", "#![forbid(unsafe_code)]\n"), 0);
        assert_eq!(wrong("crates/uapi/src/a.rs", "unsafe { go() }\n"), 0);
        assert_eq!(
            wrong("crates/core/src/a.rs", &format!("// I{} and I{} are none\n", LAST_INVARIANT + 1, 0)),
            1
        );
        assert_eq!(wrong("crates/core/src/a.rs", &["fn a() { to", "do!() }\n"].concat()), 1);
        assert_eq!(wrong("Cargo.toml", "# caf\u{e9}\n"), 1);
        assert_eq!(wrong("crates/core/src/a.rs", &"\n".repeat(MAX_LINES + 1)), 1);
        assert_eq!(
            wrong("crates/core/src/a.rs", &format!("mod tests {{\n{}", "\n".repeat(MAX_LINES + 1))),
            0
        );
    }
}
