//! `hmm run` is not there, as far as the program and its caller can tell.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{
    HMM, Running, TempDir, can_run, children, finish, finish_with_input, hmm, is_alive, kill, run, run_sh,
    wait_until,
};

#[test]
fn exit_codes_are_the_programs() {
    if !can_run() {
        return;
    }
    for code in [0, 1, 3, 125, 127, 255] {
        let done = finish(&mut run_sh(&format!("exit {code}")));
        assert_eq!(done.code(), code);
        assert_eq!(done.stderr, "", "quiet in a pipe");
    }
}

#[test]
fn the_signal_that_ends_the_program_ends_hmm() {
    if !can_run() {
        return;
    }
    for signal in
        [libc::SIGTERM, libc::SIGKILL, libc::SIGSEGV, libc::SIGABRT, libc::SIGPIPE, libc::SIGRTMIN() + 3]
    {
        let done = finish(&mut run_sh(&format!("kill -{signal} $$")));
        assert_eq!(done.signal(), Some(signal), "{done:?}");
    }
}

/// What time(1) tells is the program's time.
#[test]
fn what_the_program_took_is_told_to_the_caller() {
    if !can_run() {
        return;
    }
    // Some tenths of a second. `times` tells of the shell in its first line, and of its children in the second.
    let work = "i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done; exit 3";
    let script = format!("'{HMM}' run --ram 64M -- sh -c '{work}'; echo $?; times");
    let done = finish(Command::new("sh").args(["-c", &script]));
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!((lines.len(), lines[0]), (3, "3"), "{done:?}");
    let user = lines[2].split('s').next().and_then(|time| time.split_once('m')).unwrap();
    let seconds: f64 = user.1.parse().unwrap();
    assert!(user.0 != "0" || seconds > 0.05, "{done:?}");
}

#[test]
fn arguments_input_and_output_are_the_programs() {
    if !can_run() {
        return;
    }
    let done = finish(&mut run(["printf", "%s|", "a b", "", "--quiet", "-"]));
    assert_eq!(done.stdout, "a b||--quiet|-|");
    let done = finish_with_input(&mut run(["cat"]), "some input\n");
    assert_eq!(done.stdout, "some input\n");
    let done = finish(&mut run_sh("echo to stderr >&2"));
    assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("", "to stderr\n"));
    // The program goes by the name that was typed.
    let done = finish(&mut run_sh("echo $0"));
    assert_eq!(done.stdout, "sh\n");
}

#[test]
fn a_script_without_an_interpreter_is_the_shells() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new("plain-script");
    let script = dir.file("script", "echo \"plain $1\"\n", 0o755);
    let done = finish(&mut run([script.as_os_str(), "script".as_ref()]));
    assert_eq!((done.code(), done.stdout.as_str()), (0, "plain script\n"), "{done:?}");
}

/// What a program sees of its process, with and without hmm.
#[track_caller]
fn same_with_and_without(what: &str, script: &str) {
    // As `run_sh` does.
    let without = finish(Command::new("env").args(["--default-signal", "sh", "-c", script]));
    let with = finish(&mut run_sh(script));
    assert_eq!(with.stdout, without.stdout, "{what}");
    assert_ne!(with.stdout, "", "{what}");
}

#[test]
fn the_program_finds_nothing_unusual() {
    if !can_run() {
        return;
    }
    same_with_and_without("descriptors", "ls /proc/self/fd | wc -l");
    same_with_and_without(
        "blocked and ignored signals",
        "grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status | head -2",
    );
    same_with_and_without("working directory", "pwd");
    same_with_and_without("limits", "cat /proc/self/limits");
}

#[test]
fn the_program_is_in_its_callers_process_group() {
    if !can_run() {
        return;
    }
    let running = Running::start(&mut run_sh("cut -d' ' -f5 /proc/self/stat"));
    let front = running.pid();
    assert_eq!(running.finish().stdout.trim(), front.to_string());
}

#[test]
fn nesting_is_refused() {
    if !can_run() {
        return;
    }
    let done = finish(&mut run([HMM, "run", "--ram", "64M", "true"]));
    assert_eq!(done.code(), 125);
    assert!(done.stderr.contains("runs under hmm itself"), "{}", done.stderr);
}

/// Who executes a program says what its run is like, in the environment. The page that all processes may write to does not.
#[test]
fn a_program_that_is_not_told_of_its_run_is_refused() {
    if !can_run() {
        return;
    }
    for (change, why) in [
        (&["-u", "HMM_CONFIG"][..], "'' is where ram should be"),
        (&["HMM_CONFIG=ram=4096"], "there is no per-process"),
    ] {
        let done = finish(run(["env"]).args(change).args(["sh", "-c", "echo it ran"]));
        assert_eq!((done.code(), done.stdout.as_str()), (125, ""), "{done:?}");
        assert!(done.stderr.contains(why) && done.stderr.contains("HMM_ variables"), "{}", done.stderr);
    }
    let done = finish(&mut run(["env", "-i", "sh", "-c", "echo it ran"]));
    assert_eq!(
        (done.code(), done.stdout.as_str()),
        (0, "it ran\n"),
        "without all of it: as outside of the run"
    );
}

#[test]
fn what_the_program_leaves_running_is_not_waited_for() {
    if !can_run() {
        return;
    }
    let start = Instant::now();
    // It holds neither of our pipes; nor must the supervisor, which stays with it.
    let running = Running::start(&mut run_sh("sleep 60 </dev/null >/dev/null 2>&1 & echo $!"));
    let supervisor = {
        let mut found = None;
        wait_until("the supervisor is there", || {
            found = children(running.pid()).first().copied();
            found.is_some()
        });
        found.unwrap()
    };
    let done = running.finish();
    assert_eq!(done.code(), 0);
    assert!(start.elapsed() < Duration::from_secs(30), "it waited");
    let left: u32 = done.stdout.trim().parse().unwrap();
    assert!(is_alive(left) && is_alive(supervisor));

    // Programs that it starts are still managed, without a word of the dynamic linker; and the supervisor ends last.
    kill(i32::try_from(left).unwrap(), libc::SIGTERM);
    wait_until("the supervisor ends", || !is_alive(supervisor));
}

#[test]
fn programs_started_late_by_what_was_left_are_managed() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new("late");
    let output = dir.path().join("output");
    let script =
        format!("(sleep 1; grep -c libhmm_agent /proc/self/maps) >{} 2>&1 </dev/null &", output.display());
    assert_eq!(finish(&mut run_sh(&script)).code(), 0);
    wait_until("the late program has written", || {
        std::fs::read_to_string(&output).is_ok_and(|text| text.ends_with('\n'))
    });
    let text = std::fs::read_to_string(&output).unwrap();
    assert!(text.trim().parse::<u32>().is_ok_and(|nr_mappings| nr_mappings > 0), "{text}");
}

#[test]
fn figures_are_written_where_they_are_asked_for() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new("stats");
    let file = dir.path().join("stats.json");
    let done =
        finish(hmm(["run", "--ram", "64M", "--quiet", "--stats"]).arg(&file).args(["sh", "-c", "exit 7"]));
    assert_eq!((done.code(), done.stderr.as_str()), (7, ""));
    // Complete when hmm ends.
    let stats: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(stats["exit_status"], 7);
    assert_eq!(stats["signal"], serde_json::Value::Null);
    assert_eq!(stats["budget_bytes"], 64 << 20);
    assert_eq!(stats["command"], serde_json::json!(["sh", "-c", "exit 7"]));
    assert_eq!(stats["processes"], 1);
    assert!(stats["counters"]["pgfault"].is_u64());

    let done = finish(hmm(["run", "--ram", "64M", "--stats"]).arg(&file).args(["sh", "-c", "kill -USR1 $$"]));
    assert_eq!(done.signal(), Some(libc::SIGUSR1));
    let stats: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(stats["signal"], "SIGUSR1");
}

#[test]
fn a_summary_is_printed_where_it_is_asked_for() {
    if !can_run() {
        return;
    }
    let done = finish(&mut hmm(["run", "--ram", "64M", "--summary", "sh", "-c", "exit 3"]));
    assert!(done.stderr.contains("hmm: sh: exit status 3 after"), "{}", done.stderr);
    assert!(done.stderr.contains("of 64 MiB"), "{}", done.stderr);
    let done = finish(&mut hmm(["run", "--ram", "64M", "--summary", "sh", "-c", "kill -TERM $$"]));
    assert!(done.stderr.contains("hmm: sh: ended by SIGTERM"), "{}", done.stderr);
}
