//! A program with its arguments, and runs of it. Every run has a watchdog.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::command::Hmm;
use crate::sampler::{Sample, Sampler};
use crate::stats::Stats;
use crate::temp::TempDir;
use crate::{procs, scale};

/// Between two looks at a run.
const TICK: Duration = Duration::from_millis(2);

/// A program, and how it is called.
#[derive(Clone, Debug)]
pub struct Job {
    words: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    input: Option<PathBuf>,
    patience: Duration,
}

/// A run that has ended.
#[derive(Debug)]
pub struct Done {
    /// How.
    pub status: ExitStatus,
    /// What it wrote on standard error.
    pub stderr: String,
    /// The highest number of bytes of anonymous memory that were seen to be resident, over all processes.
    pub peak_anonymous: u64,
    /// How long it took.
    pub wall: Duration,
    /// What `--stats` wrote.
    pub stats: Option<Stats>,
    /// What was seen from outside, where that was asked for.
    pub samples: Vec<Sample>,
    stdout: PathBuf,
    _dir: TempDir,
}

impl Done {
    /// The file with its standard output.
    pub fn stdout_path(&self) -> &Path {
        &self.stdout
    }

    /// Its standard output.
    ///
    /// # Panics
    /// When it is no text.
    pub fn stdout(&self) -> String {
        std::fs::read_to_string(&self.stdout).expect("the output is text")
    }

    /// The exit code; panics when there is none.
    #[track_caller]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("no exit code: {self:?}"))
    }

    /// The signal that ended it.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// The figures; panics when there are none.
    #[track_caller]
    pub fn stats(&self) -> &Stats {
        self.stats.as_ref().unwrap_or_else(|| panic!("no figures: {self:?}"))
    }
}

impl Job {
    /// A program without arguments.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let patience = Duration::from_secs(90 * scale());
        Self { words: vec![program.as_ref().to_owned()], envs: Vec::new(), input: None, patience }
    }

    /// `sh -c SCRIPT`.
    pub fn sh(script: &str) -> Self {
        Self::new("sh").args(["-c", script])
    }

    /// A script for Debian's python, which is the one that has Debian's numpy.
    pub fn python(script: &str) -> Self {
        Self::new("/usr/bin/python3").args(["-c", script]).env("PYTHONHASHSEED", "0")
    }

    /// With an argument more.
    #[must_use]
    pub fn arg(mut self, word: impl AsRef<OsStr>) -> Self {
        self.words.push(word.as_ref().to_owned());
        self
    }

    /// With more arguments.
    #[must_use]
    pub fn args<I: AsRef<OsStr>>(self, words: impl IntoIterator<Item = I>) -> Self {
        words.into_iter().fold(self, Self::arg)
    }

    /// With an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.envs.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// With a file as standard input.
    #[must_use]
    pub fn input(mut self, path: impl Into<PathBuf>) -> Self {
        self.input = Some(path.into());
        self
    }

    /// With another time until it counts as hanging.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience * u32::try_from(scale()).unwrap_or(u32::MAX);
        self
    }

    /// Runs it without hmm.
    #[track_caller]
    pub fn alone(&self) -> Done {
        self.run(&[], TempDir::new(), &mut |_| {})
    }

    /// Runs it under `hmm run`.
    #[track_caller]
    pub fn under(&self, hmm: &Hmm) -> Done {
        self.under_meanwhile(hmm, &mut |_| {})
    }

    /// Runs it under `hmm run`, and calls `look` with the pid of its front now and then.
    #[track_caller]
    pub fn under_meanwhile(&self, hmm: &Hmm, look: &mut dyn FnMut(u32)) -> Done {
        let dir = TempDir::new();
        self.run(&hmm.prefix(&dir.join("stats.json")), dir, look)
    }

    /// Runs it under `hmm run`, looking at its memory from outside now and then.
    #[track_caller]
    pub fn under_watch(&self, hmm: &Hmm) -> Done {
        let mut sampler = Sampler::new();
        let done = self.under_meanwhile(hmm, &mut |front| sampler.look(front));
        Done { samples: sampler.finish(), ..done }
    }

    /// Starts it under `hmm run` in the background, in a process group of its own.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn_under(&self, hmm: &Hmm, dir: &TempDir) -> Child {
        self.spawn(&hmm.prefix(&dir.join("stats.json")), dir)
    }

    /// Starts it without hmm, for a test that talks to it meanwhile.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn_alone(&self, dir: &TempDir) -> Child {
        self.spawn(&[], dir)
    }

    fn spawn(&self, prefix: &[OsString], dir: &TempDir) -> Child {
        let words: Vec<_> = prefix.iter().chain(&self.words).collect();
        let stdin =
            self.input.as_ref().map_or_else(Stdio::null, |path| File::open(path).expect("input").into());
        let create = |name| File::create(dir.join(name)).expect("there is room for temporary files");
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).envs(self.envs.iter().cloned()).process_group(0);
        command.stdin(stdin).stdout(create("stdout")).stderr(create("stderr"));
        command.spawn().unwrap_or_else(|error| panic!("cannot start {words:?}: {error}"))
    }

    #[track_caller]
    fn run(&self, prefix: &[OsString], dir: TempDir, look: &mut dyn FnMut(u32)) -> Done {
        let start = Instant::now();
        let mut child = self.spawn(prefix, &dir);
        let (status, peak_anonymous) = self.wait(&mut child, &dir, look);
        Done {
            status,
            peak_anonymous,
            wall: start.elapsed(),
            stderr: read_lossy(&dir.join("stderr")),
            stats: Stats::read(&dir.join("stats.json")),
            samples: Vec::new(),
            stdout: dir.join("stdout"),
            _dir: dir,
        }
    }

    /// Waits for the end; who takes too long is killed, and the test fails.
    #[track_caller]
    fn wait(&self, child: &mut Child, dir: &TempDir, look: &mut dyn FnMut(u32)) -> (ExitStatus, u64) {
        let (start, mut peak_anonymous) = (Instant::now(), 0);
        loop {
            if let Some(status) = child.try_wait().expect("it is our child") {
                return (status, peak_anonymous);
            }
            let anonymous = procs::tree(child.id()).into_iter().map(procs::anonymous_bytes).sum();
            peak_anonymous = peak_anonymous.max(anonymous);
            look(child.id());
            if start.elapsed() > self.patience {
                let threads = procs::describe(child.id());
                procs::kill_tree(child.id());
                let _killed = child.wait();
                let stderr = read_lossy(&dir.join("stderr"));
                panic!("{:?} hangs; its threads were:\n{threads}\nstderr: {stderr}", self.words);
            }
            std::thread::sleep(TICK);
        }
    }
}

fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}
