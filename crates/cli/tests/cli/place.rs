//! What `hmm run` of root's makes for programs of other users, and that nothing of it is left behind; what is told of programs
//! that are not managed.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::common::{
    Running, TempDir, can_run, finish, is_alive, is_root, kill, run, run_sh, supervisor_and_program,
    wait_until,
};

fn signal_all(pids: impl IntoIterator<Item = u32>) {
    // One that is stopped does nothing before the other is dead, too.
    let pids: Vec<_> = pids.into_iter().map(|pid| i32::try_from(pid).unwrap()).collect();
    pids.iter().for_each(|pid| kill(*pid, libc::SIGSTOP));
    pids.iter().for_each(|pid| kill(*pid, libc::SIGKILL));
}

/// A program that waits, and where the directory of its run is.
fn start(dir: &TempDir) -> (Running, PathBuf) {
    let file = dir.path().join("door");
    let script = format!("echo $HMM_DOOR >{0}.new; mv {0}.new {0}; exec sleep 60", file.display());
    let running = Running::start(&mut run_sh(&script));
    wait_until("the program tells where the door is", || file.exists());
    let door = PathBuf::from(std::fs::read_to_string(&file).unwrap().trim());
    std::fs::remove_file(&file).unwrap();
    (running, door.parent().unwrap().to_owned())
}

#[test]
fn nothing_is_left_behind_whoever_is_killed() {
    if !can_run() || !is_root() {
        return;
    }
    let dir = TempDir::new("place");
    for (front, supervisor) in [(false, false), (true, false), (false, true), (true, true)] {
        let (running, place) = start(&dir);
        let metadata = std::fs::metadata(&place).unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (0, 0o711));
        let (supervisor_pid, program) = supervisor_and_program(running.pid());
        let killed = [(front, running.pid()), (supervisor, supervisor_pid), (!front && !supervisor, program)];
        signal_all(killed.into_iter().filter(|(is_killed, _)| *is_killed).map(|(_, pid)| pid));
        running.finish();
        wait_until("all are gone", || !is_alive(supervisor_pid) && !is_alive(program));
        // Of both nobody is left who could: the next run does.
        if front && supervisor {
            assert_eq!(finish(&mut run(["true"])).code(), 0);
        }
        wait_until("the directory is gone", || !place.exists());
    }
}

/// It runs long enough to be seen.
#[test]
fn a_program_that_is_not_managed_is_told() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new("unmanaged");
    let stats = dir.path().join("stats.json");
    let mut command = crate::common::hmm(["run", "--ram", "64M", "--stats"]);
    command.arg(&stats).args(["--", "sh", "-c", "env -i /bin/sleep 4; exit 3"]);
    let done = finish(&mut command);
    assert_eq!(done.code(), 3);
    let why = "(started without hmm's environment variables)";
    assert!(done.stderr.contains("1 processes ran without hmm"), "{}", done.stderr);
    assert!(done.stderr.contains("sleep[") && done.stderr.contains(why), "{}", done.stderr);
    let stats = std::fs::read_to_string(&stats).unwrap();
    assert!(stats.contains("\"unmanaged_processes\": 1,") && stats.contains(why), "{stats}");
}
