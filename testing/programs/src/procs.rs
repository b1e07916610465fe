//! Processes as `/proc` shows them. What is gone meanwhile counts nothing.

use std::fmt::Write;
use std::fs;

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, kill_process, pidfd_open, pidfd_send_signal,
};

/// A process and all that it has started, its front first.
pub fn tree(pid: u32) -> Vec<u32> {
    let mut pids = vec![pid];
    let mut next = 0;
    while let Some(pid) = pids.get(next) {
        // Children belong to the thread that made them.
        for task in tasks(*pid) {
            let text = fs::read_to_string(format!("/proc/{task}/task/{task}/children")).unwrap_or_default();
            pids.extend(text.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        next += 1;
    }
    pids
}

/// The threads of a process.
pub fn tasks(pid: u32) -> Vec<u32> {
    let dir = fs::read_dir(format!("/proc/{pid}/task"));
    dir.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Bytes of anonymous memory that are resident in the process.
pub fn anonymous_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The name of a process, at most 15 bytes of it.
pub fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// The state letter of a thread.
pub fn state(task: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{task}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Sends a signal; who is gone does not get it.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _gone = kill_process(pid, signal);
    }
}

/// Sends a signal to one thread, where the kernel can (Linux 6.9).
pub fn signal_task(task: u32, signal: Signal) {
    /// `PIDFD_THREAD`.
    const THREAD: PidfdFlags = PidfdFlags::from_bits_retain(0o200);
    let task = i32::try_from(task).ok().and_then(Pid::from_raw);
    if let Some(pidfd) = task.and_then(|task| pidfd_open(task, THREAD).ok()) {
        let _gone = pidfd_send_signal(pidfd, signal);
    }
}

/// Kills the process and all that it has started.
pub fn kill_tree(pid: u32) {
    // All are looked for first: who loses its parent is adopted by somebody else, and no longer found.
    kill_all(&tree(pid));
}

/// Kills these processes.
pub fn kill_all(pids: &[u32]) {
    pids.iter().for_each(|pid| signal(*pid, Signal::KILL));
}

/// From now on processes of this one's tree that lose their parent are its children.
///
/// # Errors
/// What `prctl(2)` says.
pub fn adopt_orphans() -> std::io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(getpid()))?)
}

/// All that this process has started, and that is left.
pub fn descendants() -> Vec<u32> {
    tree(std::process::id()).split_off(1)
}

/// Waits for children of this process that have ended, whoever they are: for those that were adopted.
pub fn reap() {
    while rustix::process::wait(WaitOptions::NOHANG).is_ok_and(|ended| ended.is_some()) {}
}

/// What every thread of the tree is waiting for, for the message of a test that hung.
pub fn describe(pid: u32) -> String {
    describe_all(&tree(pid))
}

/// The same for each of these processes.
pub fn describe_all(pids: &[u32]) -> String {
    let mut text = String::new();
    for pid in pids {
        for task in tasks(*pid) {
            let read = |name: &str| fs::read_to_string(format!("/proc/{task}/{name}")).unwrap_or_default();
            let (comm, wchan, syscall) = (read("comm"), read("wchan"), read("syscall"));
            let state = state(task).unwrap_or('?');
            let _ = writeln!(text, "{pid}/{task} {} {state} {wchan} [{}]", comm.trim(), syscall.trim());
        }
    }
    text
}
