//! `hmm run` on a terminal: what it shows, and the terminal's keys.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};

use crate::common::{HMM, TempDir, can_run, skipped, wait_until};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// A command that has a terminal of its own.
struct OnTerminal {
    child: Child,
    keys: File,
    screen: Arc<Mutex<String>>,
}

impl OnTerminal {
    /// `None`, said so, where there is no `setsid`.
    fn start<I: AsRef<OsStr>>(command: impl IntoIterator<Item = I>) -> Option<Self> {
        let keys = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&keys).unwrap();
        unlockpt(&keys).unwrap();
        let name = ptsname(&keys, Vec::new()).unwrap().into_string().unwrap();
        let terminal = File::options().read(true).write(true).open(name).unwrap();
        // A session of its own, of which this is the terminal. Nobody has told it to ignore the terminal's keys.
        let mut setsid = Command::new("setsid");
        setsid.args(["--ctty", "env", "--default-signal"]).args(command).stdin(terminal.try_clone().unwrap());
        let child = setsid.stdout(terminal.try_clone().unwrap()).stderr(terminal).spawn();
        drop(setsid);
        let Ok(child) = child else {
            skipped("no setsid");
            return None;
        };
        let (keys, screen) = (File::from(keys), Arc::new(Mutex::new(String::new())));
        let (mut output, shared) = (keys.try_clone().unwrap(), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Ends with an error when the last of the other side is closed.
            while let Ok(len @ 1..) = output.read(&mut bytes) {
                shared.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..len]));
            }
        });
        Some(Self { child, keys, screen })
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    #[track_caller]
    fn wait_for(&self, text: &str) {
        wait_until(text, || self.screen.lock().unwrap().contains(text));
    }

    /// Waits for the end; what it wrote, too.
    #[track_caller]
    fn finish(mut self) -> (ExitStatus, String) {
        let mut status = None;
        wait_until("it ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        // What was written before the end may still be on its way.
        std::thread::sleep(std::time::Duration::from_millis(100));
        (status.unwrap(), self.screen.lock().unwrap().clone())
    }
}

/// A command line whose program needs a few times the budget for a second or more; its output goes to a file.
fn busy(dir: &TempDir, options: &str, before: &str) -> [String; 3] {
    let lines =
        (0..700_000_u64).map(|line| format!("{:016x} {line}\n", line.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let file = dir.file("text", lines.collect::<String>(), 0o644);
    let sort = format!("sort --parallel=1 --buffer-size=1G {}", file.display());
    ["sh", "-c", &format!("{before}exec {HMM} run {options} --ram 16M -- {sort} >{}.sorted", file.display())]
        .map(str::to_owned)
}

#[test]
fn a_terminal_sees_the_line_and_the_summary() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new("terminal");
    let Some(run) = OnTerminal::start(busy(&dir, "", "stty cols 200; ")) else { return };
    let (status, screen) = run.finish();
    assert!(status.success(), "{screen}");
    for part in
        ["MiB resident, ", " on lz4, ", " faults/s, p50 ", "(budget 16 MiB", "hmm: sort: exit status 0 after"]
    {
        assert!(screen.contains(part), "no '{part}' in: {screen:?}");
    }
    // The line is gone before the summary comes.
    assert!(screen.contains("\r\x1b[Khmm: sort: exit status"), "{screen:?}");
}

#[test]
fn a_narrow_terminal_gets_no_more_than_a_line() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new("narrow");
    let Some(run) = OnTerminal::start(busy(&dir, "", "stty cols 30; ")) else { return };
    let (_, screen) = run.finish();
    let lines: Vec<&str> = screen.split("\x1b[K").filter(|line| line.contains("resident")).collect();
    assert!(!lines.is_empty(), "{screen:?}");
    assert!(lines.iter().all(|line| line.trim_matches('\r').len() < 30), "{lines:?}");
}

#[test]
fn quiet_is_quiet_and_a_screen_in_raw_mode_is_left_alone() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new("quiet");
    if let Some(run) = OnTerminal::start(busy(&dir, "--quiet", "")) {
        let (status, screen) = run.finish();
        assert_eq!((status.code(), screen.as_str()), (Some(0), ""));
    }
    if let Some(run) = OnTerminal::start(busy(&dir, "", "stty raw -echo; ")) {
        let (_, screen) = run.finish();
        assert!(!screen.contains("resident"), "{screen:?}");
        assert!(screen.contains("exit status 0"), "{screen:?}");
    }
}

#[test]
fn a_program_within_its_budget_is_not_talked_about_while_it_works() {
    if !can_run() {
        return;
    }
    let script = [HMM, "run", "--ram", "64M", "--", "sh", "-c", "sleep 1.5; echo done"];
    let Some(run) = OnTerminal::start(script) else { return };
    let (_, screen) = run.finish();
    assert!(screen.starts_with("done\r\nhmm: sh: exit status 0"), "{screen:?}");
}

#[test]
fn the_interrupt_key_ends_the_program_and_hmm() {
    if !can_run() {
        return;
    }
    let Some(mut run) =
        OnTerminal::start([HMM, "run", "--ram", "64M", "--", "sh", "-c", "echo ready; sleep 60"])
    else {
        return;
    };
    run.wait_for("ready");
    run.press("\x03");
    let (status, screen) = run.finish();
    assert_eq!(status.signal(), Some(libc::SIGINT), "{screen}");
    assert!(screen.contains("hmm: sh: ended by SIGINT"), "{screen}");
}

#[test]
fn a_shell_can_stop_and_continue_it() {
    if !can_run() {
        return;
    }
    let script = format!(
        "set -m; {HMM} run --quiet --ram 64M -- sh -c \
         'trap \"echo $((6 * 7)) on\" CONT; echo ready; while :; do sleep 0.1; done'; \
         echo \"stopped: $?\"; fg >/dev/null"
    );
    let Some(mut run) = OnTerminal::start(["bash", "--norc", "-c", &script]) else { return };
    run.wait_for("ready");
    run.press("\x1a");
    run.wait_for(&format!("stopped: {}", 128 + libc::SIGSTOP));
    // When the program writes that, which is not how the shell shows its command, the terminal is its again.
    run.wait_for("42 on");
    run.press("\x03");
    let (status, screen) = run.finish();
    assert_eq!(
        status.code(),
        Some(128 + libc::SIGINT),
        "what the shell says of a job that a signal ended: {screen}"
    );
}
