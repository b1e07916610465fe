//! Whether a process is one of the run: the program, or what descends from it.
//!
//! The supervisor is the reaper of its descendants, so whatever dies in between, a way from parent to parent leads to it. A pid
//! may be another process's from one moment to the next, but then that is younger than the child.

use std::fs;

use hmm_uapi::tasks::split_stat;

/// No chain is so long; where processes come and go meanwhile one may be without an end.
const MAX_STEPS: usize = 4096;
/// How often a way is looked for that a death in between has cut.
const TRIES: usize = 3;

/// Fields of a process's `stat` behind the state, which is the third of them all: its parent, and when it started, the 22nd.
const PARENT: usize = 0;
const START_TIME: usize = 22 - 4;

/// Whether `pid` descends from `ancestor`. For something that is alive: to be found out afterwards.
pub(super) fn descends(pid: u32, ancestor: u32) -> bool {
    (0..TRIES).any(|_| leads_to(pid, ancestor))
}

fn leads_to(pid: u32, ancestor: u32) -> bool {
    let Some(mut process) = look(pid) else { return false };
    for _ in 0..MAX_STEPS {
        let Some(parent) = look(process.parent) else { return false };
        if parent.start_time > process.start_time {
            return false;
        }
        if process.parent == ancestor {
            return true;
        }
        process = parent;
    }
    false
}

struct Process {
    parent: u32,
    start_time: u64,
}

fn look(pid: u32) -> Option<Process> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let (_, mut fields) = split_stat(&stat)?;
    let _state = fields.next()?;
    let parent = fields.nth(PARENT)?.parse().ok()?;
    let start_time = fields.nth(START_TIME - PARENT - 1)?.parse().ok()?;
    Some(Process { parent, start_time })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    #[test]
    fn a_child_and_its_child_descend_and_others_do_not() {
        let me = std::process::id();
        let mut child = Command::new("sh");
        child.args(["-c", "sleep 60 & echo $!; wait"]).stdout(Stdio::piped());
        let mut child = child.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let inner: u32 = line.trim().parse().unwrap();
        assert!(descends(child.id(), me) && descends(inner, me) && descends(inner, child.id()));
        assert!(!descends(me, child.id()) && !descends(me, me) && !descends(1, me));
        assert!(!descends(look(me).unwrap().parent, me) && !descends(u32::MAX >> 1, me));
        for pid in [inner, child.id()] {
            kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
        }
        child.wait().unwrap();
    }
}
