//! The C interface from C: the example, compiled against the header and linked with the library.

#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where cargo has put the library: beside the tests.
fn library_dir() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a file");
    test.parent().expect("it is in a directory").to_owned()
}

fn compile(words: &[&str], output: &Path) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut gcc = Command::new("gcc");
    gcc.args(["-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pedantic"]);
    gcc.arg("-I").arg(root.join("include")).arg(root.join("examples/saxpy.c")).args(words);
    gcc.arg("-L").arg(library_dir()).arg("-o").arg(output);
    gcc.status().expect("gcc was found").success()
}

#[test]
fn the_example_is_right() {
    if Command::new("gcc").arg("--version").output().is_err() {
        println!("SKIPPED: gcc is not installed");
        return;
    }
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("saxpy");
    assert!(compile(&["-lhmm_c"], &program), "the example does not compile");
    let output = Command::new(program).env("LD_LIBRARY_PATH", library_dir()).output().expect("it can be run");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.contains("are right"), "{:?}\n{stdout}{stderr}", output.status);
}
