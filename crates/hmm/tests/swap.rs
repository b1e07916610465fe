//! Memory that the kernel swaps out by itself, on the real kernel. Needs root, for a swap file of a few MiB.

#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

#[path = "common/watchdog.rs"]
mod watchdog;

use std::ffi::{CString, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use hmm::AddressSpace;
use hmm::core::addr::PageRange;
use watchdog::within;

const BYTES: usize = 2 << 20;

unsafe extern "C" {
    fn swapon(path: *const c_char, flags: c_int) -> c_int;
    fn swapoff(path: *const c_char) -> c_int;
}

/// A swap file, as long as it lives.
struct Swap(PathBuf);

impl Swap {
    fn new() -> Result<Self, String> {
        let path = PathBuf::from(format!("/var/tmp/hmm-test-swap-{}", std::process::id()));
        let this = Self(path.clone());
        let said = |error: std::io::Error| format!("{}: {error}", path.display());
        std::fs::write(&path, vec![0; 4 * BYTES]).map_err(said)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(said)?;
        let made = Command::new("mkswap").arg(&path).output().map_err(said)?;
        if !made.status.success() {
            return Err(String::from_utf8_lossy(&made.stderr).into_owned());
        }
        // SAFETY: a path that ends with a zero.
        match unsafe { swapon(this.name().as_ptr(), 0) } {
            0 => Ok(this),
            _ => Err(format!("swapon: {}", std::io::Error::last_os_error())),
        }
    }

    fn name(&self) -> CString {
        CString::new(self.0.as_os_str().as_bytes()).expect("has no zero")
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        // SAFETY: a path that ends with a zero.
        unsafe { swapoff(self.name().as_ptr()) };
        let _best_effort = std::fs::remove_file(&self.0);
    }
}

/// Bytes of this process in swap.
fn swapped() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("can be read");
    let line = status.lines().find_map(|line| line.strip_prefix("VmSwap:")).expect("is told");
    line.trim().split(' ').next().expect("a number").parse::<usize>().expect("a number") * 1024
}

#[test]
fn what_is_swapped_out_is_evicted_and_comes_back() {
    let swap = match Swap::new() {
        Ok(swap) => swap,
        Err(why) => return println!("SKIPPED: no swap can be had: {why}"),
    };
    within(60, || {
        let space = AddressSpace::builder().build().expect("userfaultfd can be had");
        let mut region = space.alloc(BYTES).expect("there is memory");
        let words = || (1..).map(|word: u64| word * 3);
        region.as_mut_slice::<u64>().iter_mut().zip(words()).for_each(|(word, value)| *word = value);
        let start = region.as_ptr();
        let before = swapped();
        // SAFETY: it changes no bytes.
        let advised = unsafe { libc::madvise(start.cast(), BYTES, libc::MADV_PAGEOUT) };
        assert_eq!(advised, 0, "{}", std::io::Error::last_os_error());
        assert!(swapped() >= before + BYTES / 2, "the kernel has swapped it out");
        let start = start.expose_provenance() as u64;
        let range = PageRange::of_bytes(start, start + BYTES as u64);
        assert_eq!(space.evict_pages(range), BYTES / 4096);
        assert!(region.as_slice::<u64>().iter().zip(words()).all(|(word, value)| *word == value));
    });
    drop(swap);
}
