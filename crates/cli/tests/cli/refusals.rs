//! What `hmm run` refuses before anything has started, with the exit codes of `env`, and the reason.

use std::path::Path;
use std::process::Command;

use crate::common::{TempDir, finish, hmm, is_root, run, skipped};

#[track_caller]
fn refused(program: impl AsRef<Path>, code: i32, reasons: &[&str]) {
    let done = finish(&mut run([program.as_ref()]));
    assert_eq!(done.code(), code, "{done:?}");
    assert_eq!(done.stdout, "");
    assert!(done.stderr.starts_with("hmm: "), "{}", done.stderr);
    for reason in reasons {
        assert!(done.stderr.contains(reason), "no '{reason}' in: {}", done.stderr);
    }
}

/// A program compiled with the given options, or `None`, said so.
fn compiled(dir: &TempDir, options: &[&str]) -> Option<std::path::PathBuf> {
    let source = dir.file("main.c", "int main(void) { return 0; }\n", 0o644);
    let program = dir.path().join("compiled");
    let built = Command::new("gcc").args(options).arg("-o").arg(&program).arg(source).output();
    match built {
        Ok(output) if output.status.success() => Some(program),
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            skipped(&format!(
                "gcc {options:?} does not work here: {}",
                why.lines().next().unwrap_or_default()
            ));
            None
        }
        Err(error) => {
            skipped(&format!("no gcc: {error}"));
            None
        }
    }
}

#[test]
fn a_program_that_is_not_there() {
    refused("no-such-program-anywhere", 127, &["no-such-program-anywhere", "not found in PATH"]);
    refused("/no/such/program", 127, &["/no/such/program: not found"]);
}

#[test]
fn a_script_without_its_interpreter() {
    let dir = TempDir::new("interpreter");
    let script = dir.file("script", "#!/no/such/interpreter\n", 0o755);
    refused(&script, 127, &["interpreter /no/such/interpreter does not exist"]);
}

#[test]
fn a_file_that_cannot_be_executed() {
    let dir = TempDir::new("mode");
    refused(dir.file("text", "hello", 0o644), 126, &["cannot be executed", "Permission denied"]);
    refused(dir.path(), 126, &["cannot be executed"]);
}

#[test]
fn a_static_program() {
    let dir = TempDir::new("static");
    if let Some(program) = compiled(&dir, &["-static"]) {
        refused(&program, 126, &["statically linked", "dynamically linked build"]);
        let script = dir.file("script", format!("#!{}\n", program.display()), 0o755);
        refused(script, 126, &["compiled: is statically linked"]);
    }
}

#[test]
fn a_static_program_at_any_address() {
    let dir = TempDir::new("static-pie");
    if let Some(program) = compiled(&dir, &["-static-pie"]) {
        refused(program, 126, &["statically linked"]);
    }
}

#[test]
fn a_setuid_program() {
    let dir = TempDir::new("setuid");
    refused(dir.copy("/bin/true", 0o4755), 126, &["setuid bit", "copy without the bit"]);
    refused(dir.copy("/bin/true", 0o2755), 126, &["setgid bit"]);
}

#[test]
fn a_program_with_capabilities() {
    if !is_root() {
        return;
    }
    let dir = TempDir::new("capabilities");
    let program = dir.copy("/bin/true", 0o755);
    // Revision 2, permitted: CAP_NET_RAW.
    let mut value = vec![0_u8; 20];
    value[3] = 2;
    value[5] = 0x20;
    if let Err(error) =
        rustix::fs::setxattr(&program, "security.capability", &value, rustix::fs::XattrFlags::empty())
    {
        return skipped(&format!("no file capabilities on this file system: {error}"));
    }
    refused(program, 126, &["file capabilities"]);
}

#[test]
fn a_program_for_another_machine() {
    let dir = TempDir::new("foreign");
    let mut bytes = std::fs::read("/bin/true").unwrap();
    // The machine's number; 22 is no machine that this runs on.
    bytes[18..20].copy_from_slice(&22_u16.to_le_bytes());
    refused(dir.file("foreign", &bytes, 0o755), 126, &["is built for s390"]);
    // 32 bits.
    bytes[4] = 1;
    bytes[18..20].copy_from_slice(&3_u16.to_le_bytes());
    refused(dir.file("foreign", &bytes, 0o755), 126, &["is built for 32-bit x86"]);
}

#[test]
fn wrong_use() {
    for (args, reason) in [
        (&["run", "--ram", "12Q", "true"][..], "unknown unit 'Q'"),
        (&["run", "--ram", "1M", "true"], "16 MiB is the least"),
        (&["run", "--ram", "64M"], "PROGRAM"),
        (&["run", "true"], "--ram"),
        (&["run", "--ram", "64M", "--device", "floppy", "true"], "unknown device 'floppy'"),
        (&["run", "--ram", "64M", "--device", "lz4:cap=1", "true"], "out of range"),
        (&["run", "--ram", "64M", "--stats", "/no/such/directory/file", "true"], "/no/such/directory/file"),
        (&["fly"], "unrecognized subcommand"),
    ] {
        let done = finish(&mut hmm(args));
        assert_eq!(done.code(), 125, "{args:?}: {done:?}");
        assert!(done.stderr.contains(reason), "{args:?}: no '{reason}' in: {}", done.stderr);
    }
}

#[test]
fn help_and_version_are_no_errors() {
    let version = finish(&mut hmm(["--version"]));
    assert_eq!(
        (version.code(), version.stdout.as_str()),
        (0, concat!("hmm ", env!("CARGO_PKG_VERSION"), "\n"))
    );
    for args in
        [&["--help"][..], &["run", "--help"], &["doctor", "--help"], &["demo", "--help"], &["help", "run"]]
    {
        let help = finish(&mut hmm(args));
        assert_eq!((help.code(), help.stderr.as_str()), (0, ""), "{args:?}");
        assert!(help.stdout.contains("Usage: hmm"), "{args:?}: {}", help.stdout);
    }
}
