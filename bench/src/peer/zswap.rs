//! zswap: the kernel's compressed cache in front of its swap, switched on for one repetition.
//!
//! It is one for the whole machine, and its settings are not ours: what they were is written down before they are changed,
//! and put back by the drop, or by the next bench when this one was killed.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const PARAMETERS: &str = "/sys/module/zswap/parameters";
const SAVED_FILE: &str = "/run/hmm-bench.zswap";
const ALGORITHM: &str = "lz4";
/// How often the pool is looked at, which does not tell its peak.
const INTERVAL: Duration = Duration::from_millis(20);

/// zswap, switched on.
#[derive(Debug)]
pub(super) struct Zswap {
    compressor: String,
    stop: Arc<AtomicBool>,
    peak_bytes: Arc<AtomicU64>,
    watcher: Option<JoinHandle<()>>,
}

impl Zswap {
    /// Switches it on, with lz4 where this kernel's can do that.
    ///
    /// # Errors
    /// There is no zswap, or it cannot be switched on.
    pub(super) fn set_up() -> Result<Self> {
        if !Path::new(PARAMETERS).exists() {
            bail!("this kernel has no zswap: there is no {PARAMETERS}");
        }
        let saved = format!("{} {}", get("enabled")?, get("compressor")?);
        fs::write(SAVED_FILE, saved).with_context(|| format!("cannot write {SAVED_FILE}"))?;
        // What the kernel has no lz4 for stays as it is, and is told.
        let _ = set("compressor", ALGORITHM);
        let (stop, peak_bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let watcher = {
            let (stop, peak_bytes) = (Arc::clone(&stop), Arc::clone(&peak_bytes));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    peak_bytes.fetch_max(pool_bytes().unwrap_or(0), Ordering::Relaxed);
                    thread::sleep(INTERVAL);
                }
            })
        };
        // From here on the drop puts everything back.
        let mut zswap = Self { compressor: String::new(), stop, peak_bytes, watcher: Some(watcher) };
        set("enabled", "Y")?;
        // Only now: before it is first switched on, any name is taken.
        zswap.compressor = get("compressor")?;
        Ok(zswap)
    }

    /// What is to be known of the figures, if anything.
    pub(super) fn note(&self) -> Option<String> {
        let other = self.compressor != ALGORITHM;
        other.then(|| format!("zswap compresses by {}: this kernel's has no {ALGORITHM}", self.compressor))
    }

    /// Most RAM that it was seen to use, in bytes.
    pub(super) fn peak_bytes(&self) -> u64 {
        self.peak_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Zswap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It cannot panic, and what it has seen is told.
        let _ = self.watcher.take().map(JoinHandle::join);
        restore();
    }
}

/// Puts back what was written down, if anything was.
pub(super) fn restore() {
    let Ok(saved) = fs::read_to_string(SAVED_FILE) else { return };
    let put_back = || {
        let (enabled, compressor) = saved.trim().split_once(' ').context("it is not as it was written")?;
        set("enabled", enabled)?;
        set("compressor", compressor)?;
        fs::remove_file(SAVED_FILE).context("cannot remove it")
    };
    if let Err(error) = put_back() {
        eprintln!("hmm bench: the settings of zswap in {SAVED_FILE} cannot be put back: {error:#}");
    }
}

fn get(name: &str) -> Result<String> {
    let path = format!("{PARAMETERS}/{name}");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.trim().to_owned())
}

fn set(name: &str, value: &str) -> Result<()> {
    let path = format!("{PARAMETERS}/{name}");
    fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}"))
}

fn pool_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Zswap:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
