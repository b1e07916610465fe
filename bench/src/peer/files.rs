//! Files of the bench's own: one to swap to, or one that is mapped. Each is gone when this is.

use super::area;
use crate::data::PAGE_BYTES;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const SWAP_NAME: &str = "hmm-bench.swap";
const MAPPED_NAME: &str = "hmm-bench.map";

/// A file, readable by nobody else, for as long as this lives.
#[derive(Debug)]
struct OwnFile(PathBuf);

impl OwnFile {
    /// Makes it. The caller has the lock, so one of that name was left by a bench that was killed.
    fn create(dir: &Path, name: &str) -> Result<(Self, File)> {
        let path = dir.join(name);
        // It may not be there.
        let _ = fs::remove_file(&path);
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("cannot make the file {}", path.display()))?;
        Ok((Self(path), file))
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            eprintln!("hmm bench: cannot remove {}: {error}; do so by hand", self.0.display());
        }
    }
}

/// A file in use as swap. Fields are dropped in order.
#[derive(Debug)]
pub(super) struct SwapFile {
    _area: Active,
    _file: OwnFile,
}

#[derive(Debug)]
struct Active(PathBuf);

impl Drop for Active {
    fn drop(&mut self) {
        if let Err(error) = area::off(&self.0) {
            let path = self.0.display();
            eprintln!("hmm bench: cannot stop swapping to {path}: {error}; `swapoff {path}` does it by hand");
        }
    }
}

impl SwapFile {
    /// Makes a file of so many bytes in the directory and swaps to it.
    ///
    /// # Errors
    /// No room, or a file system that cannot be swapped to.
    pub(super) fn set_up(dir: &Path, bytes: u64) -> Result<Self> {
        let (own, file) = OwnFile::create(dir, SWAP_NAME)?;
        let path = own.0.clone();
        // Files with holes cannot be swapped to.
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)
            .with_context(|| format!("no room for {bytes} bytes of swap in {}", dir.display()))?;
        file.write_all_at(&area::header(bytes / PAGE_BYTES as u64), 0)
            .and_then(|()| file.sync_all())
            .with_context(|| format!("cannot write to {}", path.display()))?;
        area::on(&path).with_context(|| format!("cannot swap to a file in {}", dir.display()))?;
        Ok(Self { _area: Active(path), _file: own })
    }
}

/// Takes down the swap files that killed benches have left, wherever they are.
pub(super) fn remove_leftovers() {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    for path in left_over(&swaps) {
        drop(SwapFile { _area: Active(path.clone()), _file: OwnFile(path) });
    }
}

/// Files in use as swap that only a bench has made. A deleted one has another name.
fn left_over(swaps: &str) -> impl Iterator<Item = PathBuf> {
    let paths = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(PathBuf::from);
    paths.filter(|path| path.file_name().is_some_and(|name| name == SWAP_NAME))
}

/// A file to be mapped, as large as the working set, without blocks of its own yet.
#[derive(Debug)]
pub(super) struct MappedFile(OwnFile);

impl MappedFile {
    /// Makes it in the directory.
    ///
    /// # Errors
    /// It cannot be made there.
    pub(super) fn set_up(dir: &Path, bytes: u64) -> Result<Self> {
        let (own, file) = OwnFile::create(dir, MAPPED_NAME)?;
        // With its blocks, so that none has to be found when a page is written back.
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)
            .with_context(|| format!("no room for a file of {bytes} bytes in {}", dir.display()))?;
        Ok(Self(own))
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_a_bench_are_taken_down() {
        let swaps = "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0 partition 1 0 100\n/swap/my.swap file 1 0 -2\n\
                     /var/tmp/hmm-bench.swap file 1 0 100\n";
        assert!(left_over(swaps).eq([PathBuf::from("/var/tmp/hmm-bench.swap")]));
        assert_eq!(left_over("").count(), 0);
    }

    #[test]
    fn a_mapped_file_goes_with_its_owner() {
        let dir = std::env::temp_dir().join(format!("hmm-bench-files-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let file = MappedFile::set_up(&dir, 1 << 20).unwrap();
        assert_eq!(fs::metadata(file.path()).unwrap().len(), 1 << 20);
        drop(file);
        // Fails if anything is left in it.
        fs::remove_dir(&dir).unwrap();
    }

    #[test]
    fn what_cannot_be_made_says_where() {
        let why = format!("{:#}", MappedFile::set_up(Path::new("/nowhere"), 4096).unwrap_err());
        assert!(why.contains("/nowhere/hmm-bench.map"), "{why}");
    }
}
