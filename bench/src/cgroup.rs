//! A memory cgroup of the bench's own, which holds one worker to the budget.
//!
//! It is made directly below the root of the memory hierarchy, under a fixed name: only one bench works at a time (see
//! [`crate::zram`]), so one that exists already was left by a bench that was killed.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

const NAME: &str = "hmm-bench";

/// The two interfaces of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// A cgroup that exists as long as this does. Dropping it kills who is still in it.
#[derive(Debug)]
pub(crate) struct MemoryCgroup {
    path: PathBuf,
    version: Version,
}

impl MemoryCgroup {
    /// Makes a cgroup that may use `limit_bytes` of memory, and as much swap as there is.
    ///
    /// # Errors
    /// No memory controller, or no right to make a cgroup: the message is the reason to skip the measurement.
    pub(crate) fn create(limit_bytes: u64) -> Result<Self> {
        let (root, version) = memory_root()?;
        let path = root.join(NAME);
        fs::create_dir(&path).with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        let group = Self { path, version };
        let file = group.path.join(match version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        });
        fs::write(&file, limit_bytes.to_string())
            .with_context(|| format!("cannot set {}", file.display()))?;
        Ok(group)
    }

    /// Takes down what a killed bench has left.
    ///
    /// # Errors
    /// It cannot be removed, or there is no memory controller.
    pub(crate) fn remove_leftover() -> Result<()> {
        let (root, version) = memory_root()?;
        let path = root.join(NAME);
        if path.exists() {
            Self { path, version }
                .take_down()
                .context("a cgroup left by an earlier bench cannot be removed")?;
        }
        Ok(())
    }

    /// The file that a process joins by writing to.
    pub(crate) fn procs_file(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// How many processes the kernel has killed here for want of memory.
    pub(crate) fn oom_kills(&self) -> Result<u64> {
        let file = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let text = fs::read_to_string(self.path.join(file)).with_context(|| format!("cannot read {file}"))?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok());
        count.with_context(|| format!("{file} does not tell the number of kills"))
    }

    /// Kills who is left, and removes the cgroup.
    fn take_down(&self) -> Result<()> {
        for _ in 0..200 {
            for pid in fs::read_to_string(self.procs_file()).unwrap_or_default().lines() {
                let pid = pid.parse().ok().and_then(Pid::from_raw);
                // It may end by itself at any moment.
                let _ = kill_process(pid.context("cgroup.procs names no process")?, Signal::KILL);
            }
            if fs::remove_dir(&self.path).is_ok() || !self.path.exists() {
                return Ok(());
            }
            sleep(Duration::from_millis(10));
        }
        bail!("{} is still in use", self.path.display())
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            eprintln!(
                "hmm bench: the cgroup cannot be removed: {error:#}; remove it by `rmdir {}`",
                self.path.display()
            );
        }
    }
}

fn memory_root() -> Result<(PathBuf, Version)> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    find_root(&mounts, |root| fs::read_to_string(root.join("cgroup.subtree_control")).unwrap_or_default())
}

/// Where the memory controller is, given the mounts and what is enabled below the root of a version 2 hierarchy.
fn find_root(mounts: &str, enabled: impl Fn(&Path) -> String) -> Result<(PathBuf, Version)> {
    let mount = |fs_type: &str, option: &str| {
        mounts.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let found = fields.get(2) == Some(&fs_type) && fields.get(3)?.split(',').any(|has| has == option);
            found.then(|| PathBuf::from(fields[1]))
        })
    };
    if let Some(root) = mount("cgroup", "memory") {
        return Ok((root, Version::V1));
    }
    let Some(root) = mount("cgroup2", "rw") else {
        bail!("no memory cgroup hierarchy is mounted for writing")
    };
    if !enabled(&root).split_whitespace().any(|controller| controller == "memory") {
        let control = root.join("cgroup.subtree_control");
        bail!("the memory controller is off; `echo +memory > {}` turns it on", control.display());
    }
    Ok((root, Version::V2))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
    const V2: &str = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";

    #[test]
    fn finds_the_memory_controller() {
        let found = find_root(V1, |_| String::new()).unwrap();
        assert_eq!(found, (PathBuf::from("/sys/fs/cgroup/memory"), Version::V1));
        let found = find_root(V2, |_| "cpu memory pids\n".to_owned()).unwrap();
        assert_eq!(found, (PathBuf::from("/sys/fs/cgroup"), Version::V2));
    }

    #[test]
    fn says_why_there_is_none() {
        let off = find_root(V2, |_| "cpu pids\n".to_owned()).unwrap_err().to_string();
        assert!(off.contains("+memory > /sys/fs/cgroup/cgroup.subtree_control"), "{off}");
        assert!(find_root("proc /proc proc rw 0 0\n", |_| String::new()).is_err());
    }
}
