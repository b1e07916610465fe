//! `hmm doctor` and `hmm demo`, as who runs the tests and as an ordinary user.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::common::{HMM, TempDir, can_run, finish, hmm, is_root, skipped};
use serde_json::Value;

/// The user "nobody", who has no rights.
const NOBODY: u32 = 65_534;

/// A command of an ordinary user, with a copy of hmm that he can reach.
fn as_nobody(dir: &TempDir, args: &[&str]) -> Command {
    let mut command = Command::new(dir.path().join("hmm"));
    command.args(args).current_dir("/").uid(NOBODY).gid(NOBODY).process_group(0);
    command
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn doctor_says_by_its_exit_status_whether_a_run_works() {
    let done = finish(&mut hmm(["doctor", "--json"]));
    let says = json(&done.stdout);
    assert_eq!(done.code() == 0, says["run"].as_bool().unwrap());
    let facts = says["facts"].as_array().unwrap();
    assert!(facts.iter().all(|fact| fact["status"] == "ok" || fact["remedy"].is_string()), "{says:#}");

    let run = finish(&mut hmm(["run", "--ram", "64M", "true"]));
    assert_eq!(run.code() == 0, done.code() == 0, "{run:?}");
    let text = finish(&mut hmm(["doctor"])).stdout;
    for fact in facts {
        assert!(text.contains(fact["name"].as_str().unwrap()), "{text}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let script = format!("{} doctor | head -c 1", HMM);
    let done = finish(Command::new("sh").args(["-c", &script]));
    assert_eq!(done.stderr, "");
}

#[test]
fn an_ordinary_user_is_told_what_is_missing() {
    if !is_root() {
        return;
    }
    let dir = TempDir::new("doctor-nobody");
    dir.copy(HMM, 0o755);
    let says = json(&finish(&mut as_nobody(&dir, &["doctor", "--json"])).stdout);
    if says["run"] == true {
        return skipped("every user may have a full userfaultfd here");
    }
    let doctor = finish(&mut as_nobody(&dir, &["doctor"]));
    assert_eq!(doctor.code(), 1);
    assert!(doctor.stdout.contains("to change it:"), "{}", doctor.stdout);

    let run = finish(&mut as_nobody(&dir, &["run", "--ram", "64M", "true"]));
    assert_eq!(run.code(), 125);
    for part in ["userfaultfd", "to change it:", "/dev/userfaultfd", "hmm doctor"] {
        assert!(run.stderr.contains(part), "no '{part}' in: {}", run.stderr);
    }
}

#[test]
fn a_user_who_may_open_the_device_can_run() {
    if !is_root() || !can_run() {
        return;
    }
    let dir = TempDir::new("device-nobody");
    let hmm = dir.copy(HMM, 0o755);
    // The same device with the rights that an administrator would give, in a mount namespace of its own.
    let script = format!(
        "mknod {0}/node c $(stat -c '%Hr %Lr' /dev/userfaultfd) && chmod 666 {0}/node && \
         mount --bind {0}/node /dev/userfaultfd && \
         exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups {1} run --ram 64M -- id -u",
        dir.path().display(),
        hmm.display()
    );
    let done = finish(Command::new("unshare").args(["--mount", "sh", "-c", &script]).process_group(0));
    if done.stderr.contains("mknod") || done.stderr.contains("mount") || done.stderr.contains("not found") {
        return skipped(&format!("the device cannot be lent here: {}", done.stderr));
    }
    assert_eq!((done.code(), done.stdout.trim()), (0, NOBODY.to_string().as_str()), "{done:?}");
}

#[track_caller]
fn demo_is_right(command: &mut Command) -> Value {
    let done = finish(command);
    assert_eq!(done.code(), 0, "{}", done.stderr);
    let report = json(&done.stdout);
    assert_eq!(report["verified"], true);
    assert_eq!(report["working_set_bytes"], 48 << 20);
    assert!(report["peak_resident_bytes"].as_u64().unwrap() <= 16 << 20, "{report:#}");
    assert!(report["away_bytes"].as_u64().unwrap() >= 24 << 20, "{report:#}");
    assert_eq!(report["phases"].as_array().unwrap().len(), 5);
    assert!(report["compression_ratio"].as_f64().unwrap() > 1.5, "{report:#}");
    report
}

const SMALL_DEMO: [&str; 6] = ["demo", "--ram", "16M", "--size", "48M", "--json"];

#[test]
fn the_demo_verifies_every_byte() {
    if can_run() {
        demo_is_right(&mut hmm(SMALL_DEMO));
        let done = finish(&mut hmm(&SMALL_DEMO[..5]));
        for part in
            ["working set", "RAM budget", "resident at the peak", ": 1", "p99", "random updates", "MB/s"]
        {
            assert!(done.stdout.contains(part), "no '{part}' in: {}", done.stdout);
        }
        assert_eq!(done.stderr, "", "no bar in a pipe");
    }
}

#[test]
fn the_demo_works_for_an_ordinary_user() {
    if !is_root() {
        return;
    }
    let dir = TempDir::new("demo-nobody");
    dir.copy(HMM, 0o755);
    let says = json(&finish(&mut as_nobody(&dir, &["doctor", "--json"])).stdout);
    if says["library"] != true {
        return skipped("an ordinary user has no userfaultfd of user mode here");
    }
    let report = demo_is_right(&mut as_nobody(&dir, &SMALL_DEMO));
    assert_eq!(report["user_mode_only"], says["run"] != true);
}

#[test]
fn a_demo_that_cannot_be_says_why() {
    for (args, part) in [(["demo", "--ram", "1M"], "too small"), (["demo", "--size", "1"], "1 MiB to 1 TiB")]
    {
        let done = finish(&mut hmm(args));
        assert_eq!(done.code(), 125, "{done:?}");
        assert!(done.stderr.contains(part), "{}", done.stderr);
    }
}
