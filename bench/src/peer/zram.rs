//! Swap on compressed RAM.

use super::area;
use crate::data::PAGE_BYTES;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

const CONTROL: &str = "/sys/class/zram-control";
const ALGORITHM: &str = "lz4";

/// A zram device, formatted and in use as swap as soon as it is set up.
#[derive(Debug)]
pub(super) struct ZramSwap {
    id: u32,
}

impl ZramSwap {
    /// Makes a device for so many bytes.
    ///
    /// # Errors
    /// No zram, or no lz4 in it.
    pub(super) fn set_up(bytes: u64) -> Result<Self> {
        let hot_add = format!("{CONTROL}/hot_add");
        let id =
            fs::read_to_string(&hot_add).with_context(|| format!("no zram here: cannot read {hot_add}"))?;
        let swap = Self { id: id.trim().parse().with_context(|| format!("{hot_add} gave no number"))? };
        let algorithm = swap.sys_dir().join("comp_algorithm");
        fs::write(&algorithm, ALGORITHM).with_context(|| format!("zram cannot do {ALGORITHM} here"))?;
        fs::write(swap.sys_dir().join("disksize"), bytes.to_string())
            .context("cannot size the zram device")?;
        let device = swap.device();
        let header = area::header(bytes / PAGE_BYTES as u64);
        let open = || File::options().write(true).open(&device);
        let write = retry(open).and_then(|file| file.write_all_at(&header, 0).and_then(|()| file.sync_all()));
        write.with_context(|| format!("cannot write to {}", device.display()))?;
        area::on(&device).with_context(|| format!("cannot swap on {}", device.display()))?;
        Ok(swap)
    }

    /// Most RAM that zram has used for what was swapped out, in bytes.
    ///
    /// # Errors
    /// It does not tell.
    pub(super) fn peak_bytes(&self) -> Result<u64> {
        let path = self.sys_dir().join("mm_stat");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        // orig_data_size compr_data_size mem_used_total mem_limit mem_used_max
        let peak = text.split_whitespace().nth(4).and_then(|field| field.parse().ok());
        peak.context("mm_stat of zram is not as its documentation describes it")
    }

    fn sys_dir(&self) -> PathBuf {
        PathBuf::from(format!("/sys/block/zram{}", self.id))
    }

    fn device(&self) -> PathBuf {
        PathBuf::from(format!("/dev/zram{}", self.id))
    }

    fn take_down(&self) -> Result<()> {
        area::off(&self.device())
            .with_context(|| format!("cannot stop swapping on {}", self.device().display()))?;
        retry(|| fs::write(self.sys_dir().join("reset"), "1")).context("cannot reset the zram device")?;
        let hot_remove = format!("{CONTROL}/hot_remove");
        retry(|| fs::write(&hot_remove, self.id.to_string())).context("cannot remove the zram device")
    }
}

impl Drop for ZramSwap {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            let device = self.device();
            let device = device.display();
            eprintln!("hmm bench: {error:#}; `swapoff {device}; zramctl --reset {device}` does it by hand");
        }
    }
}

/// Tries for two seconds: whoever watches for new block devices holds them open for a moment.
fn retry<T>(mut action: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    for _ in 0..100 {
        if let Ok(done) = action() {
            return Ok(done);
        }
        sleep(Duration::from_millis(20));
    }
    action()
}

/// Takes down every zram device that carries our label. The caller holds the lock, so no living bench uses it.
pub(super) fn remove_leftovers() {
    let Ok(devices) = fs::read_dir("/sys/block") else { return };
    for entry in devices.flatten() {
        let name = entry.file_name();
        let Some(id) = name.to_str().and_then(|name| name.strip_prefix("zram")?.parse().ok()) else {
            continue;
        };
        let is_ours = File::open(format!("/dev/zram{id}")).is_ok_and(|device| {
            let mut label = [0; area::LABEL.len()];
            device.read_exact_at(&mut label, area::LABEL_OFFSET as u64).is_ok() && label == *area::LABEL
        });
        if is_ours {
            // Its drop does the work.
            drop(ZramSwap { id });
        }
    }
}
