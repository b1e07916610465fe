//! What a stretch of work cost the machine: CPU time, faults, memory.

use anyhow::{Context, Result};
use std::mem::MaybeUninit;
use std::time::Instant;

/// What the fields of /proc/stat count in: fixed by the kernel's ABI on every architecture hmm runs on.
const USER_HZ: f64 = 100.0;

/// The difference between two moments.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Usage {
    /// Wall clock.
    pub(crate) seconds: f64,
    /// CPU time of all of the process's threads in user mode; under hmm those of the agent are among them.
    pub(crate) user_seconds: f64,
    /// The same in the kernel. Reclaim that the kernel does in a faulting thread is in it, kswapd's is not.
    pub(crate) system_seconds: f64,
    /// CPU time of the whole machine, whoever used it: with the machine otherwise idle, the full price.
    pub(crate) machine_seconds: f64,
    /// Faults that the kernel served without I/O.
    pub(crate) minor_faults: u64,
    /// Faults that it had to read a page for.
    pub(crate) major_faults: u64,
}

impl Usage {
    /// CPU time of whoever else was at work on the machine, or of the kernel's threads for all that is known.
    pub(crate) fn others_seconds(&self) -> f64 {
        (self.machine_seconds - self.user_seconds - self.system_seconds).max(0.0)
    }
}

/// A moment to measure from.
#[derive(Debug)]
pub(crate) struct Meter {
    machine_ticks: u64,
    process: libc::rusage,
    start: Instant,
}

impl Meter {
    /// Begins to measure.
    pub(crate) fn start() -> Result<Self> {
        Ok(Self { machine_ticks: machine_ticks()?, process: process_usage(), start: Instant::now() })
    }

    /// What was used since.
    pub(crate) fn stop(&self) -> Result<Usage> {
        let seconds = self.start.elapsed().as_secs_f64();
        let now = process_usage();
        let machine_ticks = machine_ticks()?.saturating_sub(self.machine_ticks);
        Ok(Usage {
            seconds,
            user_seconds: in_seconds(now.ru_utime) - in_seconds(self.process.ru_utime),
            system_seconds: in_seconds(now.ru_stime) - in_seconds(self.process.ru_stime),
            machine_seconds: machine_ticks as f64 / USER_HZ,
            minor_faults: now.ru_minflt.abs_diff(self.process.ru_minflt),
            major_faults: now.ru_majflt.abs_diff(self.process.ru_majflt),
        })
    }
}

fn in_seconds(time: libc::timeval) -> f64 {
    time.tv_sec as f64 + time.tv_usec as f64 / 1e6
}

fn process_usage() -> libc::rusage {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a whole `rusage` of ours, which the call may write.
    let failed = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    debug_assert_eq!(failed, 0, "getrusage fails only on bad arguments");
    // SAFETY: all fields are integers, for which zeroes are valid, and the kernel wrote the rest.
    unsafe { usage.assume_init() }
}

/// CPU time of the whole machine since boot, in seconds.
///
/// # Errors
/// /proc/stat is not as proc(5) describes it.
pub(crate) fn machine_seconds() -> Result<f64> {
    Ok(machine_ticks()? as f64 / USER_HZ)
}

/// CPU time spent since boot on anything but idling, waiting and other guests.
fn machine_ticks() -> Result<u64> {
    let stat = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    busy_ticks(&stat).context("the first line of /proc/stat is not the one that proc(5) describes")
}

fn busy_ticks(stat: &str) -> Option<u64> {
    let fields: Vec<u64> = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    // user nice system (idle iowait) irq softirq
    Some(fields.get(0..3)?.iter().chain(fields.get(5..7)?).sum())
}

/// Most memory that the process ever had resident, in bytes. Unlike `ru_maxrss`, what ran before an exec is not in it.
pub(crate) fn peak_resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    peak_of(&status).context("there is no VmHWM in /proc/self/status")
}

fn peak_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::Duration;

    #[test]
    fn counts_what_was_done() {
        let meter = Meter::start().unwrap();
        let start = Instant::now();
        let mut fresh = vec![0_u8; 16 << 20];
        fresh.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        while start.elapsed() < Duration::from_millis(100) {}
        let usage = meter.stop().unwrap();
        assert!(usage.machine_seconds - usage.others_seconds() > 0.01, "{usage:?}");
        drop(fresh);
        assert!(usage.seconds >= 0.1);
        assert!(usage.user_seconds + usage.system_seconds > 0.02, "{usage:?}");
        assert!(usage.machine_seconds > 0.01, "{usage:?}");
        // Either 4096 small pages, or 8 huge ones.
        assert!(usage.minor_faults >= 8, "{usage:?}");
        assert!(peak_resident_bytes().unwrap() > 16 << 20);
    }

    #[test]
    fn what_another_process_does_is_others() {
        let script = "i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done";
        let meter = Meter::start().unwrap();
        assert!(Command::new("sh").args(["-c", script]).status().unwrap().success());
        let usage = meter.stop().unwrap();
        assert!(usage.others_seconds() > 0.05, "{usage:?}");
    }

    #[test]
    fn reads_the_kernels_files() {
        assert_eq!(busy_ticks("cpu  1 2 4 8 16 32 64 128 0 0\ncpu0 9"), Some(1 + 2 + 4 + 32 + 64));
        assert_eq!(busy_ticks("cpu  1 2"), None);
        assert_eq!(peak_of("VmPeak:\t 9 kB\nVmHWM:\t   12 kB\n"), Some(12288));
        assert_eq!(peak_of("VmPeak:\t 9 kB\n"), None);
    }
}
