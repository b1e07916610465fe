//! `cargo xtask oracle`: Linux's own HMM test device says what ours has to do.
//!
//! The client (`testing/oracle`) does random operations, the same ones for the same seed, and logs what came of them. It
//! runs on the kernel's device in a guest, and on ours, and the logs are compared. `CONTRIBUTING.md` has the commands.

mod compare;
mod guest;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cargo;
use compare::Log;
use guest::Guest;

const USAGE: &str = "\
usage: cargo xtask oracle [OPTIONS]

  --seeds N      seeds to compare (default 100), from --first N (default 1) on
  --steps N      operations of each (default 100)
  --huge         on memory with huge pages
  --private      only the devices with private memory, 0 and 1
  --ours CMD     the command that runs a program on our device (default: target/release/hmm run --dmirror --)
  --in-guest     run ours in the guest, too, on the same kernel
  --self-check   compare the kernel's device with itself
  --hmm-tests    only run Linux's own HMM tests in the guest, and count";

/// Divergences that are shown.
const MAX_SHOWN: usize = 5;
/// The client's static and dynamic form, for the guest and for `hmm run`.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Against what the kernel's device is compared.
#[derive(Debug, PartialEq, Eq)]
enum Ours {
    Here(String),
    InGuest,
    Kernel,
}

#[derive(Debug)]
struct Options {
    seeds: Vec<u64>,
    /// For the client.
    args: String,
    ours: Ours,
    hmm_tests: bool,
}

pub(crate) fn run(args: &[String]) -> Result<()> {
    if args.iter().any(|arg| arg == "--help") {
        eprintln!("{USAGE}");
        return Ok(());
    }
    let options = parse(args).with_context(|| format!("wrong use\n{USAGE}"))?;
    guest::check_packages()?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(cargo::root()?.join("target"), PathBuf::from);
    let guest = Guest::new(target.join("oracle"))?;
    if options.hmm_tests { hmm_tests(&guest) } else { oracle(&options, &guest, &target) }
}

fn parse(args: &[String]) -> Result<Options> {
    let (mut number, mut first, mut steps) = (100_u64, 1_u64, 100_u64);
    let (mut ours, mut client, mut hmm_tests) = (None, String::new(), false);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--seeds" => number = value()?.parse()?,
            "--first" => first = value()?.parse()?,
            "--steps" => steps = value()?.parse()?,
            "--ours" => ours = Some(Ours::Here(value()?.clone())),
            "--in-guest" => ours = Some(Ours::InGuest),
            "--self-check" => ours = Some(Ours::Kernel),
            "--huge" | "--private" => client = format!("{client} {arg}"),
            "--hmm-tests" => hmm_tests = true,
            other => bail!("there is no option {other}"),
        }
    }
    ensure!(number > 0, "--seeds must be at least 1");
    let ours = ours.unwrap_or_else(|| Ours::Here(String::new()));
    Ok(Options {
        seeds: (first..first + number).collect(),
        args: format!("--steps {steps}{client}"),
        ours,
        hmm_tests,
    })
}

fn oracle(options: &Options, guest: &Guest, target: &Path) -> Result<()> {
    let build = format!("build --quiet --release --package hmm-oracle --target {TARGET}");
    cargo::run(&build, &[("RUSTFLAGS", "-C target-feature=+crt-static")])?;
    let client = target.join(TARGET).join("release/hmm-oracle-client");
    let mut files = vec![("bin/hmm-oracle-client".to_owned(), client)];
    let mut in_guest = "";
    match &options.ours {
        Ours::Kernel => in_guest = "/bin/hmm-oracle-client",
        Ours::InGuest => {
            in_guest = "/bin/hmm run --dmirror -- /bin/hmm-oracle-client-dynamic";
            files.extend(programs_of_ours(target)?);
        }
        Ours::Here(_) => {}
    }
    let seeds: Vec<String> = options.seeds.iter().map(u64::to_string).collect();
    let config = format!("SEEDS='{}'\nARGS='{}'\nOURS='{in_guest}'\n", seeds.join(" "), options.args);
    // A seed takes a fraction of a second, with huge pages a few; a kernel that hangs ends by itself.
    let timeout = Duration::from_secs(120 + 10 * options.seeds.len() as u64);
    let parts = parts(&guest.boot(&files, &config, timeout)?);
    let lines = |part: &str| parts.get(part).cloned().unwrap_or_default();
    for warning in lines("warnings") {
        eprintln!("guest: {warning}");
    }
    let kernel = log_of(&lines("kernel"));
    let ours = match &options.ours {
        Ours::Here(command) => run_here(options, command, target)?,
        Ours::InGuest | Ours::Kernel => log_of(&lines("ours")),
    };
    report(options, &kernel, &ours)
}

/// The client, linked dynamically, and hmm, with the libraries that they need.
fn programs_of_ours(target: &Path) -> Result<Vec<(String, PathBuf)>> {
    build_ours(true)?;
    let hmm = target.join("release/hmm");
    let client = target.join("release/hmm-oracle-client");
    let mut files = vec![("bin/hmm".to_owned(), hmm), ("bin/hmm-oracle-client-dynamic".to_owned(), client)];
    for program in [files[0].1.clone(), files[1].1.clone()] {
        let output = Command::new("ldd").arg(&program).output().context("cannot start ldd")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
        files.extend(libraries.map(|path| (path.to_owned(), PathBuf::from(path))));
    }
    Ok(files)
}

fn build_ours(hmm: bool) -> Result<()> {
    cargo::run("build --quiet --release --package hmm-oracle", &[])?;
    if hmm { cargo::run("build --quiet --release --package hmm-cli", &[]) } else { Ok(()) }
}

/// Runs ours on this machine, one process for each seed.
fn run_here(options: &Options, command: &str, target: &Path) -> Result<Log> {
    build_ours(command.is_empty())?;
    let client = target.join("release/hmm-oracle-client");
    let command = match command {
        "" => format!("'{}' run --dmirror --", target.join("release/hmm").display()),
        other => other.to_owned(),
    };
    let file = target.join("oracle/ours.log");
    let mut lines = Vec::new();
    for seed in &options.seeds {
        let call = format!("{command} '{}' --seed {seed} {}", client.display(), options.args);
        let output = Command::new("sh").args(["-c", &call]).stdin(Stdio::null()).output()?;
        lines.extend(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned));
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            lines.push(format!(
                "seed={seed} failed {}: {}",
                output.status,
                errors.trim().replace('\n', "; ")
            ));
        }
    }
    fs::write(&file, lines.join("\n"))?;
    eprintln!("xtask: the log of ours is {}", file.display());
    Ok(log_of(&lines))
}

fn report(options: &Options, kernel: &Log, ours: &Log) -> Result<()> {
    let missing = options.seeds.iter().filter(|seed| !kernel.contains_key(seed)).count();
    ensure!(missing == 0, "the guest's log lacks {missing} seeds");
    let failed: Vec<&String> = kernel.values().flatten().filter(|line| line.contains(" failed ")).collect();
    ensure!(failed.is_empty(), "the client failed on the kernel's device: {failed:#?}");
    let result = compare::compare(kernel, ours);
    for (rule, count) in &result.explained {
        eprintln!("explained, {count} times: {rule}");
    }
    for divergence in result.divergences.iter().take(MAX_SHOWN) {
        eprintln!("{divergence}");
    }
    let diverged = result.divergences.len();
    eprintln!("{} seeds, {} lines compared, {diverged} seeds diverge", result.nr_seeds, result.nr_lines);
    ensure!(diverged == 0, "ours does not do what the kernel does");
    Ok(())
}

fn hmm_tests(guest: &Guest) -> Result<()> {
    let files = [("bin/hmm-tests".to_owned(), guest.hmm_tests()?)];
    let parts = parts(&guest.boot(&files, "HMM_TESTS=1\n", Duration::from_secs(600))?);
    let lines = parts.get("hmm-tests").context("the guest did not run the tests")?;
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for line in lines.iter().filter(|line| line.starts_with("ok ") || line.starts_with("not ok ")) {
        let count = match (line.starts_with("ok "), line.contains("# SKIP")) {
            (true, false) => &mut passed,
            (true, true) => &mut skipped,
            (false, _) => &mut failed,
        };
        *count += 1;
        if line.starts_with("not ok ") || line.contains("# SKIP") {
            eprintln!("{line}");
        }
    }
    eprintln!("Linux's own HMM tests: {passed} passed, {failed} failed, {skipped} skipped");
    ensure!(
        passed > 0 && failed == 0,
        "the reference itself does not pass; all lines are in oracle/guest.log"
    );
    Ok(())
}

/// Lines after each line `== NAME`.
fn parts(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut parts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines() {
        match line.strip_prefix("== ") {
            Some(other) => name = other.trim_end().to_owned(),
            None => parts.entry(name.clone()).or_default().push(line.to_owned()),
        }
    }
    parts
}

fn log_of(lines: &[String]) -> Log {
    compare::parse(lines.iter().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_understood() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let options = parse(&words("--seeds 3 --first 7 --steps 5 --huge --self-check")).unwrap();
        assert_eq!((options.seeds, options.ours), (vec![7, 8, 9], Ours::Kernel));
        assert_eq!(options.args, "--steps 5 --huge");
        assert!(parse(&words("--seeds 0")).is_err());
        assert!(parse(&words("--seeds")).is_err());
        assert!(parse(&words("--sideways")).is_err());
    }

    #[test]
    fn a_guests_log_has_parts() {
        let parts = parts("noise\n== kernel\nseed=1 a\nseed=2 b\n== ours\nseed=1 a\n== end\n");
        assert_eq!(log_of(&parts["kernel"]).len(), 2);
        assert_eq!(log_of(&parts["ours"]).len(), 1);
        assert!(!parts.contains_key("end"));
    }
}
