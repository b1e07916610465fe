//! What the disk below a file device gives, around the page cache: the floor under everything that comes from there.
//!
//! One request at a time, as a fault waits for one. The file has no name, and is gone with its descriptor.

use super::gb_per_s;
use crate::data::{PAGE_BYTES, Random};
use crate::mirror::memory::{Memory, PageKind};
use crate::report::median;
use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// How much is written and read.
const SPAN_BYTES: usize = 64 << 20;
const BLOCK_BYTES: usize = 2 << 20;
/// Single pages that are read.
const NR_PICKS: usize = 500;
const GENERATION: u64 = 3;

/// A file by direct I/O.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct FileFloor {
    /// The directory that it was made in.
    pub(crate) dir: PathBuf,
    /// Bytes written in a second by blocks of 2 MiB, in 10^9.
    pub(crate) write_gb_per_s: f64,
    /// Bytes read in a second by blocks of 2 MiB, in 10^9.
    pub(crate) read_gb_per_s: f64,
    /// Median time to read one page anywhere.
    pub(crate) read_4k_ns: f64,
}

impl FileFloor {
    /// Measures a new file in the directory.
    ///
    /// # Errors
    /// No such file can be made there; or wrong bytes.
    pub(crate) fn measure(dir: &Path) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::TMPFILE | OFlags::DIRECT;
        let opened = rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR);
        let file: File = opened
            .with_context(|| format!("{} takes no nameless files for direct I/O", dir.display()))?
            .into();
        let mut memory = Memory::filled(SPAN_BYTES, PageKind::Small, GENERATION)?;
        // Once in vain, so that the file has its blocks.
        let mut write = || {
            let begin = Instant::now();
            for (number, block) in memory.bytes_mut().chunks(BLOCK_BYTES).enumerate() {
                file.write_all_at(block, (number * BLOCK_BYTES) as u64)?;
            }
            file.sync_data().map(|()| begin.elapsed().as_secs_f64())
        };
        let write_seconds = write().and_then(|_| write()).context("cannot write to the file")?;
        memory.fill(GENERATION + 1);
        let begin = Instant::now();
        for (number, block) in memory.bytes_mut().chunks_mut(BLOCK_BYTES).enumerate() {
            file.read_exact_at(block, (number * BLOCK_BYTES) as u64).context("cannot read the file")?;
        }
        let read_seconds = begin.elapsed().as_secs_f64();
        memory.verify(GENERATION, 0).context("a file gives back other bytes than it was given")?;
        let read_4k_ns = median(pages(&file, &mut memory)?.into_iter()).context("no time was taken")?;
        Ok(Self {
            dir: dir.to_owned(),
            write_gb_per_s: gb_per_s(SPAN_BYTES, write_seconds),
            read_gb_per_s: gb_per_s(SPAN_BYTES, read_seconds),
            read_4k_ns,
        })
    }
}

/// Reads single pages to where they belong, and gives back what each took.
fn pages(file: &File, memory: &mut Memory) -> Result<Vec<f64>> {
    let mut random = Random::new(1);
    let mut times = Vec::with_capacity(NR_PICKS);
    for _ in 0..NR_PICKS {
        let at = random.below(SPAN_BYTES / PAGE_BYTES) * PAGE_BYTES;
        let page = &mut memory.bytes_mut()[at..at + PAGE_BYTES];
        page.fill(0);
        let begin = Instant::now();
        file.read_exact_at(page, at as u64).context("cannot read a page of the file")?;
        times.push(begin.elapsed().as_nanos() as f64);
    }
    memory.verify(GENERATION, 0).context("a file gives back other bytes than it was given")?;
    ensure!(times.len() == NR_PICKS, "no page was read");
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_a_speed() {
        match FileFloor::measure(Path::new("/var/tmp")) {
            Ok(floor) => {
                assert!(floor.read_gb_per_s > 0.001 && floor.write_gb_per_s > 0.0001, "{floor:?}");
                assert!((100.0..1e9).contains(&floor.read_4k_ns), "{floor:?}");
            }
            Err(why) => {
                let why = format!("{why:#}");
                assert!(why.contains("takes no nameless files"), "{why}");
                eprintln!("SKIPPED: {why}");
            }
        }
        let why = FileFloor::measure(Path::new("/proc")).unwrap_err().to_string();
        assert!(why.starts_with("/proc takes no nameless files"), "{why}");
    }
}
