//! Chores of the project: `cargo xtask`.

mod cargo;
mod ci;
mod interleavings;
mod oracle;
mod sanitize;
mod test;
mod tidy;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  test [ARGS]    all tests, with a count of those that could not run here and why; ARGS go to cargo test
  interleavings  the parts that work without locks between them, in all orders (loom) or very many (shuttle)
  tidy           the rules of the source tree that no compiler checks
  sanitize KIND  the tests under AddressSanitizer (address) or ThreadSanitizer (thread); the rest goes to cargo test
  oracle         compares our HMM test device with Linux's own, in a virtual machine; --help says how
  ci             everything that must hold before a change is taken: tidy, format, lints, documentation, tests";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next();
    let rest: Vec<String> = args.collect();
    let result = match command.as_deref() {
        Some("test") => test::run(&rest),
        Some("interleavings") if rest.is_empty() => interleavings::run(),
        Some("tidy") if rest.is_empty() => tidy::run(),
        Some("oracle") => oracle::run(&rest),
        Some("sanitize") => sanitize::run(&rest),
        Some("ci") if rest.is_empty() => ci::run(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
