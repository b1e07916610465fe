//! The kernel's answer to the same need: swap on compressed RAM, under a memory cgroup.
//!
//! Everything is set up for one repetition and taken down after it, so that other measurements run on a machine without
//! swap, and every repetition finds an empty device. Taking down is the business of `Drop`; signals end a bench by way of
//! it ([`crate::child`]). A bench that was killed outright leaves its device behind: swap areas carry a label of ours, by
//! which the next bench finds and removes them. A lock file sees to it that what it finds is nobody's any more.

use crate::cgroup::MemoryCgroup;
use crate::data::PAGE_BYTES;
use anyhow::{Context, Result, bail};
use std::ffi::CString;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

const CONTROL: &str = "/sys/class/zram-control";
const LOCK_FILE: &str = "/run/hmm-bench.lock";
const ALGORITHM: &str = "lz4";
/// Before any other swap there is: `SWAP_FLAG_PREFER` with priority 100.
const SWAP_FLAGS: libc::c_int = 0x8000 | 100;

/// The right to have a zram device, swap and a cgroup; one bench on the machine has it.
#[derive(Debug)]
struct Claim(#[expect(dead_code, reason = "held for its lock")] File);

impl Claim {
    fn take() -> Result<Self> {
        let file = File::options().create(true).truncate(false).write(true).open(LOCK_FILE);
        let file = file.with_context(|| format!("cannot open {LOCK_FILE}"))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => {
                bail!("another hmm bench is measuring on this machine; wait for its end")
            }
            Err(TryLockError::Error(error)) => Err(error).context(format!("cannot lock {LOCK_FILE}")),
        }
    }
}

/// Swap on zram and a cgroup to need it. Fields are dropped in order: nobody uses the swap when it is taken away.
#[derive(Debug)]
pub(crate) struct ZramPeer {
    cgroup: MemoryCgroup,
    swap: Swap,
    _claim: Claim,
}

impl ZramPeer {
    /// Sets everything up for a worker that may use `limit_bytes` of RAM, with room to swap `swap_bytes`.
    ///
    /// # Errors
    /// Not root, no zram, no lz4 in it, no memory cgroup: the message is the reason to skip the measurement.
    pub(crate) fn set_up(limit_bytes: u64, swap_bytes: u64) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("needs root");
        }
        let claim = Claim::take()?;
        // In this order: nobody may need the swap any more.
        MemoryCgroup::remove_leftover()?;
        remove_leftovers();
        let swap = Swap::set_up(swap_bytes)?;
        let cgroup = MemoryCgroup::create(limit_bytes)?;
        Ok(Self { cgroup, swap, _claim: claim })
    }

    /// The cgroup that a worker has to join.
    pub(crate) const fn cgroup(&self) -> &MemoryCgroup {
        &self.cgroup
    }

    /// Most RAM that zram has used for what was swapped out, in bytes.
    pub(crate) fn peak_bytes(&self) -> Result<u64> {
        let path = self.swap.sys_dir().join("mm_stat");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        // orig_data_size compr_data_size mem_used_total mem_limit mem_used_max
        let peak = text.split_whitespace().nth(4).and_then(|field| field.parse().ok());
        peak.context("mm_stat of zram is not as its documentation describes it")
    }
}

/// A zram device, formatted and in use as swap as soon as it is set up.
#[derive(Debug)]
struct Swap {
    id: u32,
}

impl Swap {
    fn set_up(bytes: u64) -> Result<Self> {
        let hot_add = format!("{CONTROL}/hot_add");
        let id =
            fs::read_to_string(&hot_add).with_context(|| format!("no zram here: cannot read {hot_add}"))?;
        let swap = Self { id: id.trim().parse().with_context(|| format!("{hot_add} gave no number"))? };
        let algorithm = swap.sys_dir().join("comp_algorithm");
        fs::write(&algorithm, ALGORITHM).with_context(|| format!("zram cannot do {ALGORITHM} here"))?;
        fs::write(swap.sys_dir().join("disksize"), bytes.to_string())
            .context("cannot size the zram device")?;
        let device = swap.device();
        let header = swap_header(bytes / PAGE_BYTES as u64);
        let open = || File::options().write(true).open(&device);
        let write = retry(open).and_then(|file| file.write_all_at(&header, 0).and_then(|()| file.sync_all()));
        write.with_context(|| format!("cannot write to {}", device.display()))?;
        swap.on().with_context(|| format!("cannot swap on {}", device.display()))?;
        Ok(swap)
    }

    fn sys_dir(&self) -> PathBuf {
        PathBuf::from(format!("/sys/block/zram{}", self.id))
    }

    fn device(&self) -> PathBuf {
        PathBuf::from(format!("/dev/zram{}", self.id))
    }

    fn c_device(&self) -> CString {
        CString::new(format!("/dev/zram{}", self.id)).expect("digits hold no zero byte")
    }

    fn on(&self) -> std::io::Result<()> {
        let path = self.c_device();
        // SAFETY: the path ends with a zero byte and outlives the call.
        let failed = unsafe { libc::swapon(path.as_ptr(), SWAP_FLAGS) };
        if failed == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    }

    fn off(&self) -> std::io::Result<()> {
        let path = self.c_device();
        // SAFETY: the path ends with a zero byte and outlives the call.
        let failed = unsafe { libc::swapoff(path.as_ptr()) };
        let error = std::io::Error::last_os_error();
        // EINVAL: it is not in use as swap.
        if failed == 0 || error.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(error) }
    }

    fn take_down(&self) -> Result<()> {
        self.off().with_context(|| format!("cannot stop swapping on {}", self.device().display()))?;
        retry(|| fs::write(self.sys_dir().join("reset"), "1")).context("cannot reset the zram device")?;
        let hot_remove = format!("{CONTROL}/hot_remove");
        retry(|| fs::write(&hot_remove, self.id.to_string())).context("cannot remove the zram device")
    }
}

impl Drop for Swap {
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
fn remove_leftovers() {
    let Ok(devices) = fs::read_dir("/sys/block") else { return };
    for entry in devices.flatten() {
        let name = entry.file_name();
        let Some(id) = name.to_str().and_then(|name| name.strip_prefix("zram")?.parse().ok()) else {
            continue;
        };
        let is_ours = File::open(format!("/dev/zram{id}")).is_ok_and(|device| {
            let mut label = [0; LABEL.len()];
            device.read_exact_at(&mut label, LABEL_OFFSET as u64).is_ok() && label == *LABEL
        });
        if is_ours {
            // Its drop does the work.
            drop(Swap { id });
        }
    }
}

const LABEL: &[u8; 16] = b"hmm-bench-swap\0\0";
const VERSION_OFFSET: usize = 1024;
const LAST_PAGE_OFFSET: usize = 1028;
const LABEL_OFFSET: usize = 1052;
const MAGIC: &[u8; 10] = b"SWAPSPACE2";

/// First page of a swap area, as mkswap(8) would write it (Linux: `union swap_header`).
fn swap_header(nr_pages: u64) -> [u8; PAGE_BYTES] {
    let mut header = [0; PAGE_BYTES];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(VERSION_OFFSET, &1_u32.to_ne_bytes());
    let last_page = u32::try_from(nr_pages - 1).unwrap_or(u32::MAX);
    put(LAST_PAGE_OFFSET, &last_page.to_ne_bytes());
    put(LABEL_OFFSET, LABEL);
    put(PAGE_BYTES - MAGIC.len(), MAGIC);
    header
}
