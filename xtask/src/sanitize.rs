//! The tests under AddressSanitizer or ThreadSanitizer, by hand: a run of all takes longer than CI has.
//!
//! Rust and the C code of lz4 are instrumented. AddressSanitizer works with the standard library as it is delivered.
//! ThreadSanitizer does not: it has to see what locks and reference counts order. So the standard library is built, too,
//! for which its source is needed (`rustup component add rust-src`).

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::cargo::cargo;

/// Packages whose tests run under a sanitizer.
const PACKAGES: [&str; 14] = [
    "hmm-codec",
    "hmm-conformance",
    "hmm-core",
    "hmm-device",
    "hmm-dmirror",
    "hmm-file",
    "hmm",
    "hmm-lz4",
    "hmm-model",
    "hmm-oracle",
    "hmm-replay",
    "hmm-sim",
    "hmm-soft",
    "hmm-uapi",
];

/// Packages whose tests do not, and why.
const LEFT_OUT: [(&str, &str); 7] = [
    ("hmm-capi", "its test is a program in C, which is linked without a sanitizer's runtime"),
    (
        "hmm-agent",
        "it is preloaded into a program that has no sanitizer's runtime, and would manage its shadow",
    ),
    ("hmm-cli", "its tests run programs with the agent in them"),
    ("hmm-programs", "as hmm-cli"),
    ("hmm-bench", "its tests measure, and set up the kernel's swap"),
    ("hmm-torture", "as hmm-cli"),
    ("xtask", "it has no threads, and no memory of its own making"),
];

/// A sanitizer.
struct Sanitizer {
    /// As compilers call it.
    name: &'static str,
    /// Whether the standard library has to be instrumented as well.
    builds_std: bool,
    /// Settings of its runtime.
    options: (&'static str, &'static str),
    /// Whether one test runs after the other.
    in_turn: bool,
    /// What else is left out, and why: packages, and parts of them.
    left_out: &'static [(&'static str, &'static str)],
}

const SANITIZERS: [Sanitizer; 2] = [
    // Tests leave address spaces and their threads behind by design, and raise signals: what is lost is poisoned. Locals of ours
    // must not be where nobody knows that a stack is (I6): such memory may be managed.
    Sanitizer {
        name: "address",
        builds_std: false,
        options: (
            "ASAN_OPTIONS",
            "detect_leaks=0:handle_sigbus=0:handle_segv=0:detect_stack_use_after_return=0",
        ),
        in_turn: false,
        left_out: &[],
    },
    Sanitizer {
        name: "thread",
        builds_std: true,
        options: ("TSAN_OPTIONS", "halt_on_error=1:handle_sigbus=0:handle_segv=0"),
        // Mappings come and go by system calls that it does not see: what one test has unmapped is the next one's.
        in_turn: true,
        // Its runtime notes what a thread does in memory that lies beside the program's large blocks, and a device takes what lies
        // beside: then a thread of ours waits for a page while it holds a lock.
        left_out: &[
            ("hmm-sim", "the simulator is one thread: there is nothing to be ordered, and it takes an hour"),
            (
                "threads that serve their own faults (tests/in_thread* of hmm)",
                "an atomic in managed memory is accessed under a lock of the sanitizer's, which the fault's handler needs",
            ),
            (
                "the examples of hmm-soft",
                "their devices have the program's heap, and with it what the sanitizer keeps beside it",
            ),
            (
                "the raw threads of hmm-uapi (tests/thread.rs)",
                "the sanitizer notes what a thread does in storage that libc's threads have",
            ),
        ],
    },
];

pub(crate) fn run(args: &[String]) -> Result<()> {
    let name = args.first().map(String::as_str);
    let Some(sanitizer) = SANITIZERS.iter().find(|sanitizer| Some(sanitizer.name) == name) else {
        bail!("say which: `cargo xtask sanitize address` or `cargo xtask sanitize thread`");
    };
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let ask = |args: &[&str]| {
        let output = Command::new(&rustc).args(args).output().context("cannot start rustc")?;
        ensure!(output.status.success(), "rustc {args:?} failed");
        String::from_utf8(output.stdout).context("rustc says what is no text")
    };
    let host = ask(&["-vV"])?;
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let flag = format!("-Zsanitizer={name} --cfg={name}_sanitizer", name = sanitizer.name);
    let c_flag = format!("-fsanitize={} -fno-omit-frame-pointer", sanitizer.name);
    let mut command = cargo()?;
    command.args(["test", "--locked", "--no-fail-fast", "--target", host]);
    command.args(["--target-dir", &format!("target/{}", sanitizer.name)]);
    if sanitizer.builds_std {
        let sysroot = ask(&["--print", "sysroot"])?;
        let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/Cargo.lock");
        ensure!(
            source.exists(),
            "the standard library's source is needed, and {} is not there: `rustup component add rust-src`",
            source.display()
        );
        command.arg("-Zbuild-std");
    }
    let rest = &args[1..];
    let says = |which: &[&str]| rest.iter().take_while(|arg| *arg != "--").any(|arg| which.contains(&&**arg));
    let tell = |(what, why): &(&str, &str)| eprintln!("xtask: left out: {what}: {why}");
    if !says(&["-p", "--package"]) {
        LEFT_OUT.iter().chain(sanitizer.left_out).for_each(tell);
        let is_left_out = |package: &&&str| sanitizer.left_out.iter().any(|(what, _)| what == *package);
        command.args(
            PACKAGES.iter().filter(|package| !is_left_out(package)).flat_map(|package| ["-p", package]),
        );
    }
    if !says(&["--lib", "--bin", "--bins", "--test", "--tests", "--example", "--examples"]) {
        command.arg("--tests");
    }
    command.args(rest);
    // Options of compilers that are no nightlies, which these have to be for.
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", flag);
    command.env(format!("CFLAGS_{}", host.replace('-', "_")), c_flag);
    // With `abort` cargo builds the standard library twice, of which rustc takes the wrong one.
    command.env("CARGO_PROFILE_DEV_PANIC", "unwind");
    let (variable, options) = sanitizer.options;
    let options = std::env::var(variable).map_or(options.to_owned(), |more| format!("{options}:{more}"));
    command.env(variable, options);
    if sanitizer.in_turn {
        command.env("RUST_TEST_THREADS", "1");
    }
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "tests failed under the {} sanitizer ({status})", sanitizer.name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_crate_is_tested_or_left_out_for_a_reason() {
        let mut known: Vec<&str> = PACKAGES.into_iter().chain(LEFT_OUT.map(|(name, _)| name)).collect();
        let mut all: Vec<&str> = crate::tidy::crates().collect();
        known.sort_unstable();
        all.sort_unstable();
        assert_eq!(known, all);
    }
}
