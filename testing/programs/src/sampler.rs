//! A managed program's memory as the kernel counts it, independent of what hmm says.
//!
//! `/proc/PID/smaps` marks what is registered with a userfaultfd: for missing pages (`um`) the program's managed memory,
//! for write protection only (`uw`) the staging area. What is resident there is what `--ram` bounds. Pages that move
//! from one to the other while the file is being read would be counted twice, or not at all; so the process is stopped
//! for each look, with the agent's threads, which are threads of it like others.
//!
//! Of the anonymous memory elsewhere (page tables aside) some is the program's: stack, data segments. The rest is what
//! hmm costs: the device's pool, metadata, and what is fixed.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::procs;

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(40);
/// For a stop to take effect.
const PATIENCE: Duration = Duration::from_secs(2);

/// Resident bytes at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Of managed memory.
    pub managed: u64,
    /// Of staging.
    pub staging: u64,
    /// Of other anonymous memory in the program's process.
    pub other: u64,
    /// Of anonymous memory in hmm's own processes.
    pub hmm: u64,
}

/// Looks at a run now and then.
#[derive(Debug)]
pub struct Sampler {
    last: Instant,
    samples: Vec<Sample>,
}

impl Sampler {
    pub(crate) fn new() -> Self {
        Self { last: Instant::now(), samples: Vec::new() }
    }

    /// Looks at the run whose front this is, if the time has come and the program runs.
    pub(crate) fn look(&mut self, front: u32) {
        if self.last.elapsed() < INTERVAL {
            return;
        }
        self.last = Instant::now();
        let tree = procs::tree(front);
        if let [front, supervisor, program] = tree[..] {
            let hmm = procs::anonymous_bytes(front) + procs::anonymous_bytes(supervisor);
            procs::signal(program, Signal::STOP);
            if stands_still(program)
                && let Some(sample) = resident(program)
            {
                self.samples.push(Sample { hmm, ..sample });
            }
            procs::signal(program, Signal::CONT);
        }
    }

    pub(crate) fn finish(self) -> Vec<Sample> {
        self.samples
    }
}

/// Waits until every thread of the process is stopped, or cannot be because the kernel is waiting on its behalf.
fn stands_still(pid: u32) -> bool {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let states: Vec<_> = procs::tasks(pid).into_iter().filter_map(procs::state).collect();
        if states.is_empty() || states.iter().any(|state| matches!(state, 'Z' | 'X')) {
            return false;
        }
        if states.iter().all(|state| matches!(state, 'T' | 'D')) && states.contains(&'T') {
            return true;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    false
}

fn resident(pid: u32) -> Option<Sample> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let (mut sample, mut anonymous) = (Sample::default(), 0);
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("Anonymous:") {
            anonymous = rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024;
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            // The last line of a mapping.
            let has = |wanted| flags.split_whitespace().any(|flag| flag == wanted);
            let sum = match (has("um"), has("uw")) {
                (true, _) => &mut sample.managed,
                (false, true) => &mut sample.staging,
                (false, false) => &mut sample.other,
            };
            *sum += anonymous;
        }
    }
    // Before the program is executed, and after its end, there is nothing.
    (sample.managed > 0).then_some(sample)
}
