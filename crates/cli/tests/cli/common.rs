//! What the tests of the command share: how to call it with a watchdog, and how to say that a test could not run.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Nothing here takes a tenth of it, unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The command under test.
pub(crate) const HMM: &str = env!("CARGO_BIN_EXE_hmm");

/// `hmm` with arguments, in a process group of its own.
pub(crate) fn hmm<I: AsRef<OsStr>>(args: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(HMM);
    command.args(args).process_group(0);
    command
}

/// `hmm run --ram 64M -- PROGRAM..`.
pub(crate) fn run<I: AsRef<OsStr>>(program: impl IntoIterator<Item = I>) -> Command {
    let mut command = hmm(["run", "--ram", "64M", "--"]);
    command.args(program);
    command
}

/// `hmm run --ram 64M -- sh -c SCRIPT`, where no signal is ignored: a shell sets no trap for one that it inherits as
/// ignored, as of `nohup` or in the background of a script.
pub(crate) fn run_sh(script: &str) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal", HMM, "run", "--ram", "64M", "--", "sh", "-c", script]);
    command.process_group(0);
    command
}

/// How a command ended, and what it wrote.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
    /// The exit code; panics with everything that is known when there is none.
    #[track_caller]
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("no exit code: {self:?}"))
    }

    /// The signal that ended it.
    pub(crate) fn signal(&self) -> Option<i32> {
        self.status.signal()
    }
}

/// A command that runs, its output being collected.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    stdout: JoinHandle<String>,
    stderr: JoinHandle<String>,
}

impl Running {
    /// Starts the command with nothing to read.
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::start_with(command, Stdio::null())
    }

    fn start_with(command: &mut Command, stdin: Stdio) -> Self {
        let mut child = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = collect(child.stdout.take().unwrap());
        let stderr = collect(child.stderr.take().unwrap());
        Self { child, stdout, stderr }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end. What takes too long is killed, with all its process group, and fails the test.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Done {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if start.elapsed() > PATIENCE {
                kill(-i32::try_from(self.pid()).unwrap(), libc::SIGKILL);
                let status = self.child.wait().unwrap();
                panic!("it hangs; killed ({status}); stderr: {}", self.stderr.join().unwrap());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Done { status, stdout: self.stdout.join().unwrap(), stderr: self.stderr.join().unwrap() }
    }
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Runs a command to its end.
#[track_caller]
pub(crate) fn finish(command: &mut Command) -> Done {
    Running::start(command).finish()
}

/// Runs a command that reads `input`.
#[track_caller]
pub(crate) fn finish_with_input(command: &mut Command, input: &str) -> Done {
    let mut running = Running::start_with(command, Stdio::piped());
    running.child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    running.finish()
}

/// Sends a signal.
pub(crate) fn kill(pid: i32, signal: i32) {
    // SAFETY: the call takes two numbers.
    unsafe { libc::kill(pid, signal) };
}

/// Waits until something is the case.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The state letter of `/proc/PID/stat`, and the parent. `None` when the process is gone.
pub(crate) fn process_state(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Whether the process runs or sleeps: it is not gone, and no zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    process_state(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

/// The children of a process.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Supervisor and program of a front, once the program runs.
pub(crate) fn supervisor_and_program(front: u32) -> (u32, u32) {
    let mut found = (0, 0);
    wait_until("the program runs", || {
        let Some(supervisor) = children(front).first().copied() else { return false };
        let Some(program) = children(supervisor).first().copied() else { return false };
        found = (supervisor, program);
        // Before it executes the program, it is a copy of the supervisor.
        let exe = |pid| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
        exe(program) != exe(supervisor)
    });
    found
}

/// Whether `hmm run` works here; says so if not, and why.
pub(crate) fn can_run() -> bool {
    static CAN_RUN: OnceLock<bool> = OnceLock::new();
    let can_run = *CAN_RUN.get_or_init(|| finish(&mut hmm(["doctor"])).status.success());
    if !can_run {
        skipped("`hmm run` does not work here, see `hmm doctor`");
    }
    can_run
}

/// Whether the test has the rights of root; says so if not.
pub(crate) fn is_root() -> bool {
    // SAFETY: the call has no arguments and cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    if !is_root {
        skipped("needs root");
    }
    is_root
}

/// Says that a test could not run.
pub(crate) fn skipped(reason: &str) {
    println!("SKIPPED: {reason}");
}

/// A directory that goes away with the test.
#[derive(Debug)]
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hmm-cli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A file with content and mode.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let source = self.0.join(format!("{name}.source"));
        std::fs::write(&source, content).unwrap();
        let path = self.copy_as(&source, name, mode);
        std::fs::remove_file(source).unwrap();
        path
    }

    /// A copy of a program.
    pub(crate) fn copy(&self, program: impl AsRef<Path>, mode: u32) -> PathBuf {
        let name = program.as_ref().file_name().unwrap().to_string_lossy().into_owned();
        self.copy_as(program.as_ref(), &name, mode)
    }

    /// Written by another process: as long as somebody may write to a file, it cannot be executed, and a child that
    /// another thread is just starting would still have it open.
    fn copy_as(&self, source: &Path, name: &str, mode: u32) -> PathBuf {
        let path = self.0.join(name);
        assert!(Command::new("cp").arg(source).arg(&path).status().unwrap().success());
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _left_behind = std::fs::remove_dir_all(&self.0);
    }
}
