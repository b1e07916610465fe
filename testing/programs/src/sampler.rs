//! A managed program's memory as the kernel counts it, independent of what hmm says.
//!
//! `/proc/PID/smaps` marks what is registered with a userfaultfd: for missing pages (`um`) the program's managed memory,
//! for write protection only (`uw`) the staging area. What is resident there, in all processes of the run, is what `--ram`
//! bounds. A page that processes share since a fork is one page, so each counts its share of it (`Pss`).
//!
//! Pages that move from one place to the other while the files are being read would be counted twice, or not at all; so the
//! processes are stopped for each look, with the agent's threads, which are threads of them like others. What waits in the kernel
//! (state D) cannot stop before it has gone on, and may move pages then: on a loaded machine the thread that it waits for, which
//! has the lock of the mappings, comes to run when it likes. So a look counts when the next one sees the same.
//!
//! To stop takes its time, too, on a loaded machine: half a second, or two. A program that is stopped most of the time seems to
//! hang; so the longer a look took, the later comes the next.
//!
//! Of the anonymous memory elsewhere (page tables aside) some is the program's: stack, data segments. The rest is what
//! hmm costs: the device's pool, metadata, and what is fixed.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::procs;

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(40);
/// Of so much time the program is stopped for one part.
const STOPPED_SHARE: u32 = 10;
/// Processes of hmm's own in front of the program: the front and the supervisor.
const NR_OWN: usize = 2;
/// Threads of the agent that move pages.
const AGENTS: [&str; 4] = ["hmm-control", "hmm-handler", "hmm-reclaim", "hmm-dmirror"];
/// For a stop to take effect.
const PATIENCE: Duration = Duration::from_secs(2);
/// Looks until one sees what the one before has seen.
const MAX_LOOKS: usize = 8;
/// What has not stopped after so long waits in the kernel.
const NO_MOTION: Duration = Duration::from_millis(20);

/// Resident bytes at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Of managed memory.
    pub managed: u64,
    /// Of staging.
    pub staging: u64,
    /// Of both, in the process that has most of it, what it shares with others in full.
    pub most: u64,
    /// Of other anonymous memory in the program's processes.
    pub other: u64,
    /// Processes that had managed memory.
    pub nr_managed: u64,
    /// Of anonymous memory in hmm's own processes.
    pub hmm: u64,
}

/// Looks at a run now and then.
#[derive(Debug)]
pub struct Sampler {
    interval: Duration,
    /// How long the last look took, and when it was over.
    took: Duration,
    last: Instant,
    samples: Vec<Sample>,
}

impl Sampler {
    pub(crate) fn new() -> Self {
        Self::every(INTERVAL)
    }

    /// With so much time between two looks.
    pub fn every(interval: Duration) -> Self {
        Self { interval, took: Duration::ZERO, last: Instant::now(), samples: Vec::new() }
    }

    /// Looks at the run whose front this is, if the time has come and the program runs.
    pub fn look(&mut self, front: u32) {
        if self.last.elapsed() < pause(self.interval, self.took) {
            return;
        }
        let start = Instant::now();
        let programs = stop_programs(front);
        if programs.iter().all(|pid| stands_still(*pid)) {
            // Before the program is executed, and after its end, there is nothing.
            let seen = settled(|| resident(&programs)).filter(|sample| sample.managed > 0);
            if let Some(mut sample) = seen {
                sample.hmm = procs::tree(front).into_iter().take(NR_OWN).map(procs::anonymous_bytes).sum();
                self.samples.push(sample);
            }
        }
        programs.iter().for_each(|pid| procs::signal(*pid, Signal::CONT));
        (self.took, self.last) = (start.elapsed(), Instant::now());
    }

    /// What was seen.
    pub fn finish(self) -> Vec<Sample> {
        self.samples
    }
}

/// From the end of a look that took so long to the next.
fn pause(interval: Duration, took: Duration) -> Duration {
    interval.max(took * (STOPPED_SHARE - 1))
}

/// What is seen twice in a row, if that comes soon.
fn settled(mut look: impl FnMut() -> Sample) -> Option<Sample> {
    let mut last = look();
    for _ in 1..MAX_LOOKS {
        let next = look();
        if next == last {
            return Some(next);
        }
        last = next;
    }
    None
}

/// Stops the program and everything that it has started, also what it starts meanwhile. Gives them.
fn stop_programs(front: u32) -> Vec<u32> {
    let mut programs = Vec::new();
    loop {
        let tree = procs::tree(front);
        let new: Vec<_> = tree.into_iter().skip(NR_OWN).filter(|pid| !programs.contains(pid)).collect();
        if new.is_empty() {
            return programs;
        }
        new.iter().for_each(|pid| procs::signal(*pid, Signal::STOP));
        programs.extend(new);
    }
}

/// Waits until no thread of the process moves: it is stopped, or gone, or cannot stop because the kernel waits on its behalf.
///
/// Who waits in a system call for a page that is away cannot stop before it has that. As those are stopped who would bring it,
/// the kernel tries again and again, and the thread seems to run. If the first thread waits in such a way, to which the
/// signal was given, the others do not hear of it, and are told themselves.
fn stands_still(pid: u32) -> bool {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let states: Vec<_> =
            procs::tasks(pid).into_iter().filter_map(|task| Some((task, procs::state(task)?))).collect();
        let is_late = start.elapsed() > NO_MOTION;
        let rests = |(task, state): &(u32, char)| match state {
            'T' | 'D' | 'Z' | 'X' => true,
            'R' => is_late && !AGENTS.contains(&procs::name(*task).as_str()),
            _ => false,
        };
        let waits = !states.is_empty() && states.iter().all(|(_, state)| *state == 'D');
        if states.iter().all(rests) && (!waits || is_late) {
            return true;
        }
        if is_late {
            let awake = states.iter().filter(|this| !rests(this));
            awake.for_each(|(task, _)| procs::signal_task(*task, Signal::STOP));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    false
}

fn resident(programs: &[u32]) -> Sample {
    let mut sum = Sample::default();
    let mut seen: Vec<String> = Vec::new();
    for pid in programs {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
        // After vfork two processes have the same memory.
        if seen.contains(&text) {
            continue;
        }
        add(&mut sum, &text);
        seen.push(text);
    }
    sum
}

/// Adds the memory of one process.
fn add(sample: &mut Sample, smaps: &str) {
    let before = sample.managed;
    let (mut resident, mut share, mut anonymous, mut own) = (0, 0, 0, 0);
    for line in smaps.lines() {
        if let Some(rest) = line.strip_prefix("Rss:") {
            resident = bytes(rest);
        } else if let Some(rest) = line.strip_prefix("Pss:") {
            share = bytes(rest);
        } else if let Some(rest) = line.strip_prefix("Anonymous:") {
            anonymous = bytes(rest);
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            // The last line of a mapping.
            let has = |wanted| flags.split_whitespace().any(|flag| flag == wanted);
            match (has("um"), has("uw")) {
                (true, _) => sample.managed += share,
                (false, true) => sample.staging += share,
                (false, false) => sample.other += anonymous,
            }
            own += if has("um") || has("uw") { resident } else { 0 };
        }
    }
    sample.most = sample.most.max(own);
    sample.nr_managed += u64::from(sample.managed > before);
}

fn bytes(field: &str) -> u64 {
    field.trim().strip_suffix(" kB").and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_stopped_for_a_part_of_the_time_however_long_that_takes() {
        let millis = Duration::from_millis;
        assert_eq!(pause(millis(40), millis(2)), millis(40));
        assert_eq!(pause(millis(150), millis(2000)), millis(18_000));
    }

    #[test]
    fn what_moves_during_a_look_is_not_counted_twice() {
        let seen = |pages: &[u64]| {
            let mut looks = pages.iter().map(|pages| Sample { managed: *pages, ..Sample::default() });
            settled(|| looks.next().unwrap()).map(|sample| sample.managed)
        };
        assert_eq!(seen(&[20, 16, 16]), Some(16));
        assert_eq!(seen(&[16, 16]), Some(16));
        assert_eq!(seen(&[1, 2, 3, 4, 5, 6, 7, 8]), None, "it does not come to rest");
    }
}
