//! Programs of the run that hmm has nothing to do with: what could not be preloaded. They are looked for now and then, because
//! nothing tells of them; those that run for a second or two may be missed.
//!
//! What is managed has a thread of the agent's, by whose name it is known. What has none at two looks in turn, with a second or
//! more between them, is a stray if it is seen why; else after some more looks, because on a machine with too much to do a program
//! may take seconds to start. Once it is told, with the reason as far as that can be seen.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use hmm::control::{CONTROL_ENV, ProcessId};

use super::elf::Image;

/// Between two looks, at the least.
const INTERVAL: Duration = Duration::from_secs(1);
/// Looks at which a program has no agent, if it is seen why, and if not.
const LOOKS: u32 = 2;
const PATIENT_LOOKS: u32 = 10;
/// A look takes at most this part of the time.
const SHARE: u32 = 50;
/// So many are told of by name.
const MAX_TOLD: usize = 16;
/// The thread that every agent has.
const THREAD: &str = "hmm-control";
/// In the name of the agent's library, where it is mapped.
const LIBRARY: &str = "libhmm_agent.so";

/// Why a program is not managed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Static,
    Environment,
    Root,
    /// The agent is there, and does nothing.
    Loaded,
    Unknown,
}

impl Why {
    /// Looks after which that is certain: what has what it needs may be about to start.
    const fn nr_looks(self) -> u32 {
        match self {
            Self::Static | Self::Environment | Self::Root => LOOKS,
            Self::Loaded | Self::Unknown => PATIENT_LOOKS,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Static => "statically linked",
            Self::Environment => "started without hmm's environment variables",
            Self::Root => "in another root directory",
            Self::Loaded => "made by a raw system call, or refused by the run",
            Self::Unknown => "the agent was not loaded",
        })
    }
}

/// A program that ran without hmm.
#[derive(Clone, Debug)]
pub(super) struct Stray {
    pub(super) name: String,
    pub(super) pid: u32,
    pub(super) why: Why,
}

impl fmt::Display for Stray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}] ({})", self.name, self.pid, self.why)
    }
}

/// All that were found.
#[derive(Debug, Default)]
pub(super) struct Strays {
    /// Without a thread of ours at the last look, and at so many in turn.
    suspects: Vec<(ProcessId, u32)>,
    known: Vec<ProcessId>,
    told: Vec<Stray>,
    /// Those that hold no place in the control page, which counts the others itself.
    nr_uncounted: u64,
    last: Option<Instant>,
    took: Duration,
}

impl Strays {
    /// How many there were that nobody else has counted.
    pub(super) const fn nr_uncounted(&self) -> u64 {
        self.nr_uncounted
    }

    /// The first of them.
    pub(super) fn told(&self) -> &[Stray] {
        &self.told
    }

    /// Looks at all descendants, if it is time.
    pub(super) fn look(&mut self) {
        let interval = INTERVAL.max(self.took * SHARE);
        if self.last.is_some_and(|last| last.elapsed() < interval) {
            return;
        }
        let begin = Instant::now();
        self.look_at(&descendants(std::process::id()));
        self.took = begin.elapsed();
        self.last = Some(Instant::now());
    }

    fn look_at(&mut self, pids: &[u32]) {
        let without = pids.iter().filter(|pid| !has_agent(**pid));
        let mut suspects = Vec::new();
        for (process, name) in without.filter_map(|pid| ProcessId::of_pid(*pid).ok()) {
            let nr_before =
                self.suspects.iter().find(|(known, _)| *known == process).map_or(0, |(_, nr)| *nr);
            let nr_looks = nr_before + 1;
            suspects.push((process, nr_looks));
            if nr_looks < LOOKS || self.known.contains(&process) {
                continue;
            }
            let (pid, why) = (process.pid(), why(process.pid()));
            if nr_looks >= why.nr_looks() {
                self.known.push(process);
                self.nr_uncounted += u64::from(why != Why::Loaded);
                if self.told.len() < MAX_TOLD {
                    self.told.push(Stray { name: name.as_str().to_owned(), pid, why });
                }
            }
        }
        self.suspects = suspects;
        // Pids go, and come again with other start times: what is gone cannot be seen any more.
        self.known.retain(|process| self.suspects.iter().any(|(suspect, _)| suspect == process));
    }
}

/// A process's descendants, whichever of their threads has them.
fn descendants(pid: u32) -> Vec<u32> {
    let (mut pids, mut next) = (vec![pid], 0);
    while let Some(pid) = pids.get(next).copied() {
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            pids.extend(text.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        next += 1;
    }
    pids.split_off(1)
}

fn has_agent(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    tasks
        .into_iter()
        .flatten()
        .flatten()
        .any(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim_end() == THREAD))
}

/// As far as it can be seen: others' programs cannot be looked at by everybody.
fn why(pid: u32) -> Why {
    let process = format!("/proc/{pid}");
    let root = |of: &str| fs::metadata(format!("{of}/root/")).map(|root| (root.dev(), root.ino())).ok();
    let is_static = || {
        File::open(format!("{process}/exe"))
            .is_ok_and(|exe| matches!(Image::of_file(&exe), Ok(Image::Static)))
    };
    let contains = |file: &str, what: &str| {
        fs::read(format!("{process}/{file}"))
            .is_ok_and(|text| text.windows(what.len()).any(|part| part == what.as_bytes()))
    };
    match () {
        () if contains("maps", LIBRARY) => Why::Loaded,
        () if is_static() => Why::Static,
        () if fs::read(format!("{process}/environ")).is_ok() && !contains("environ", CONTROL_ENV) => {
            Why::Environment
        }
        () if root(&process).is_some_and(|its| root("/proc/self") != Some(its)) => Why::Root,
        () => Why::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_has_no_agent_at_two_looks_is_told_once() {
        let mut child = Command::new("sleep").arg("60").env_remove(CONTROL_ENV).spawn().unwrap();
        let mut strays = Strays::default();
        assert!(descendants(std::process::id()).contains(&child.id()));
        for nr_looks in 1..4 {
            // Between its start and its execution it has our environment.
            std::thread::sleep(Duration::from_millis(50));
            strays.look_at(&[child.id()]);
            assert_eq!(strays.nr_uncounted(), u64::from(nr_looks > 1));
        }
        let [stray] = strays.told() else { panic!("{strays:?}") };
        assert_eq!((stray.name.as_str(), stray.why), ("sleep", Why::Environment));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// It has what it needs: perhaps it only has not come to it.
    #[test]
    fn what_may_be_about_to_start_is_told_later() {
        let mut child = Command::new("sleep").arg("60").env(CONTROL_ENV, "1").spawn().unwrap();
        let mut strays = Strays::default();
        for nr_looks in 1..=PATIENT_LOOKS {
            std::thread::sleep(Duration::from_millis(50));
            strays.look_at(&[child.id()]);
            assert_eq!(strays.nr_uncounted(), u64::from(nr_looks == PATIENT_LOOKS), "{nr_looks}");
        }
        assert_eq!(strays.told().first().map(|stray| stray.why), Some(Why::Unknown));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn what_has_a_thread_of_that_name_is_managed() {
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name(THREAD.to_owned());
        let thread = thread.spawn(move || told.recv()).unwrap();
        // The thread gives itself its name.
        let begin = Instant::now();
        while !has_agent(std::process::id()) && begin.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(has_agent(std::process::id()));
        tell.send(()).unwrap();
        thread.join().unwrap().unwrap();
    }
}
