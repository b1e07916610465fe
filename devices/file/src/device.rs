//! The device.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hmm_device::{Caps, Device, DeviceError, DevicePfn, Fetch, MemKind, PAGE_SIZE, Store, Transfer, Usage};
use hmm_uapi::AddrRange;
use rapidhash::v3::{RapidSecrets, rapidhash_v3_seeded};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::rand::GetRandomFlags;

use crate::frames::Frames;
use crate::open::{FileError, Opened, open};
use crate::ring::Rings;
use crate::transfer::{BATCH, Buffer, Requests};

const BATCH_BYTES: usize = BATCH * PAGE_SIZE;
/// Frame numbers have 32 bits.
const MAX_FRAMES: u64 = 1 << 32;

/// Where the file is, and how large it may become.
#[derive(Clone, Debug)]
pub struct FileConfig {
    dir: PathBuf,
    capacity_bytes: u64,
    io_uring: bool,
    direct: bool,
    patience: Option<Duration>,
}

/// How long a request is waited for unless it is said: what the kernel's own disk drivers wait, as a rule.
pub const PATIENCE: Duration = Duration::from_secs(30);

impl FileConfig {
    /// A file of at most so many bytes in that directory. What is no multiple of 4096 is cut off.
    pub fn new(dir: impl Into<PathBuf>, capacity_bytes: u64) -> Self {
        Self { dir: dir.into(), capacity_bytes, io_uring: true, direct: true, patience: Some(PATIENCE) }
    }

    /// Through the page cache: the kernel keeps a part of what is away in RAM, and reads ahead.
    #[must_use]
    pub fn through_page_cache(mut self) -> Self {
        self.direct = false;
        self
    }

    const fn nr_frames(&self) -> u64 {
        self.capacity_bytes / PAGE_SIZE as u64
    }

    /// For how long a request is waited for: 30 s unless it is said. `None`: for ever.
    /// See [`Device::patience`](hmm_device::Device::patience).
    #[must_use]
    pub const fn with_patience(mut self, patience: Option<Duration>) -> Self {
        self.patience = patience;
        self
    }

    /// By `pread` and `pwrite` alone.
    #[must_use]
    pub fn without_io_uring(mut self) -> Self {
        self.io_uring = false;
        self
    }
}

/// Pages in a file. It [is](AsFd) the descriptor of the file. See the [crate] for what is in it and what can go wrong.
#[derive(Debug)]
pub struct FileDevice {
    config: FileConfig,
    file: Opened,
    rings: Option<Rings>,
    frames: Mutex<Frames>,
    secrets: RapidSecrets,
    /// A batch and a page: somewhere in it a batch begins at a page's border.
    bounce: Mutex<Box<[u8]>>,
}

impl FileDevice {
    /// Makes the file, and a table with 8 bytes for each frame, of which only what is used is touched.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn create(config: &FileConfig) -> Result<Self, FileError> {
        let nr_frames = config.nr_frames();
        if !(1..=MAX_FRAMES).contains(&nr_frames) {
            return Err(FileError::Capacity(config.capacity_bytes));
        }
        Self::on(config, open(&config.dir, nr_frames * PAGE_SIZE as u64, config.direct)?)
    }

    fn on(config: &FileConfig, file: Opened) -> Result<Self, FileError> {
        // It fits where there are addresses of 64 bits.
        let frames = Frames::new(usize::try_from(config.nr_frames()).unwrap_or(usize::MAX));
        Ok(Self {
            config: config.clone(),
            file,
            rings: config.io_uring.then(Rings::new).flatten(),
            frames: Mutex::new(frames.map_err(|errno| FileError::Table(errno.into()))?),
            secrets: RapidSecrets::seed(seed()),
            bounce: Mutex::new(vec![0; BATCH_BYTES + PAGE_SIZE].into_boxed_slice()),
        })
    }

    /// Where its tables are, which are no part of the allocator's memory: they must not be managed.
    pub fn own_ranges(&self) -> [AddrRange; 3] {
        self.frames().ranges()
    }

    /// On a file that is there, through the page cache.
    #[cfg(test)]
    pub(crate) fn with_file(config: &FileConfig, fd: OwnedFd) -> Self {
        Self::on(config, Opened { fd, direct: false }).expect("addresses")
    }

    /// Whether requests are made by io_uring.
    pub const fn has_io_uring(&self) -> bool {
        self.rings.is_some()
    }

    /// Whether the file is accessed around the page cache.
    pub const fn is_direct(&self) -> bool {
        self.file.direct
    }

    /// Makes another file like the device's, empty. For the child of a fork, which has no right to its parent's: when no frame
    /// is handed out, and the descriptor is put in the place of the device's (`dup3`), the device is the child's own. One with
    /// an io_uring cannot be taken over so.
    ///
    /// # Errors
    /// See [`FileError`]; also when the file cannot be accessed as the first one is.
    pub fn another_file(&self) -> Result<OwnedFd, FileError> {
        let bytes = self.config.nr_frames() * PAGE_SIZE as u64;
        let opened = open(&self.config.dir, bytes, self.file.direct)?;
        if opened.direct == self.file.direct {
            Ok(opened.fd)
        } else {
            Err(FileError::Create {
                dir: self.config.dir.clone(),
                source: std::io::ErrorKind::Unsupported.into(),
            })
        }
    }

    #[cfg(test)]
    pub(crate) const fn file(&self) -> &Opened {
        &self.file
    }

    fn frames(&self) -> MutexGuard<'_, Frames> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A checksum, never 0. Two different pages have the same one with a probability of about 2^-57.
    fn sum(&self, page: &[u8]) -> u64 {
        rapidhash_v3_seeded(page, &self.secrets).max(1)
    }

    /// Transfers a batch; says how many pages, from the front, and why not the next.
    fn transfer(&self, frames: &[DevicePfn], buffer: Buffer<'_>) -> (usize, Option<DeviceError>) {
        let mut requests = Requests::new(frames, buffer);
        if let Some(rings) = &self.rings {
            rings.try_all(self.file.fd.as_fd(), &mut requests);
        }
        for request in requests.iter_mut() {
            request.finish(self.file.fd.as_fd());
            if request.error.is_some() {
                // What is behind it does not count.
                break;
            }
        }
        requests.outcome()
    }

    fn is_usable(&self, bytes: &[u8]) -> bool {
        !self.file.direct || bytes.as_ptr().addr().is_multiple_of(PAGE_SIZE)
    }

    fn write(&self, frames: &[DevicePfn], bytes: &[u8]) -> (usize, Option<DeviceError>) {
        if self.is_usable(bytes) {
            return self.transfer(frames, Buffer::Write(bytes));
        }
        self.with_bounce(bytes.len(), |bounce| {
            bounce.copy_from_slice(bytes);
            self.transfer(frames, Buffer::Write(bounce))
        })
    }

    fn read(&self, frames: &[DevicePfn], bytes: &mut [u8]) -> (usize, Option<DeviceError>) {
        if self.is_usable(bytes) {
            return self.transfer(frames, Buffer::Read(bytes));
        }
        self.with_bounce(bytes.len(), |bounce| {
            let outcome = self.transfer(frames, Buffer::Read(bounce));
            bytes.copy_from_slice(bounce);
            outcome
        })
    }

    /// Lends memory that begins at a page's border, up to a batch of it.
    fn with_bounce<T>(&self, len: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
        let mut bounce = self.bounce.lock().unwrap_or_else(PoisonError::into_inner);
        let start = bounce.as_ptr().align_offset(PAGE_SIZE);
        work(&mut bounce[start..start + len])
    }

    fn store_batch(&self, frames: &[DevicePfn], bytes: &[u8]) -> (usize, Option<DeviceError>) {
        let (done, stop) = self.write(frames, bytes);
        let mut table = self.frames();
        for (pfn, page) in frames[..done].iter().zip(bytes.chunks_exact(PAGE_SIZE)) {
            table.set_sum(*pfn, self.sum(page));
        }
        (done, stop)
    }

    fn fetch_batch(&self, frames: &[DevicePfn], bytes: &mut [u8]) -> (usize, Option<DeviceError>) {
        let mut sums = [0; BATCH];
        let mut nr_known = 0;
        let mut stop = None;
        let table = self.frames();
        for (sum, pfn) in sums.iter_mut().zip(frames) {
            match table.sum(*pfn) {
                Ok(known) => *sum = known,
                Err(why) => {
                    stop = Some(why);
                    break;
                }
            }
            nr_known += 1;
        }
        drop(table);
        let (nr_read, failed) = self.read(&frames[..nr_known], &mut bytes[..nr_known * PAGE_SIZE]);
        let pages = bytes.chunks_exact(PAGE_SIZE).zip(&sums).take(nr_read);
        match pages.map(|(page, sum)| self.sum(page) == *sum).position(|is_right| !is_right) {
            Some(wrong) => (wrong, Some(DeviceError::Corrupt)),
            None => (nr_read, failed.or(stop)),
        }
    }
}

impl AsFd for FileDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.fd.as_fd()
    }
}

/// Carries a run out batch by batch, until one stops.
fn in_batches(
    frames: &[DevicePfn],
    mut batch: impl FnMut(usize, &[DevicePfn]) -> (usize, Option<DeviceError>),
) -> Transfer {
    let mut done = 0;
    for part in frames.chunks(BATCH) {
        let (moved, stop) = batch(done, part);
        done += moved;
        if let Some(why) = stop {
            return Transfer::stopped(done, why);
        }
    }
    Transfer::complete(done)
}

/// Random, so that nobody can choose pages that have the same checksum.
fn seed() -> u64 {
    let mut seed = [0; 8];
    // Without random numbers checksums still find what goes wrong by accident.
    let _ = rustix::rand::getrandom(&mut seed, GetRandomFlags::NONBLOCK);
    u64::from_ne_bytes(seed)
}

impl Device for FileDevice {
    fn caps(&self) -> Caps {
        Caps {
            kind: MemKind::Private,
            capacity_pages: self.frames().capacity() as u64,
            preferred_run_pages: 32,
            store_page_ns: 2_000,
            fetch_page_ns: 6_000,
            keeps_copies: true,
        }
    }

    fn usage(&self) -> Usage {
        let table = self.frames();
        let bytes = |nr_frames: usize| (nr_frames * PAGE_SIZE) as u64;
        Usage {
            frames: table.nr_taken() as u64,
            used_bytes: bytes(table.nr_taken()),
            capacity_bytes: bytes(table.capacity()),
        }
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        self.frames().take(frames)
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        // No further than the first that must not be stored to.
        let nr_empty = self.frames().empty(run.frames);
        let transfer = in_batches(&run.frames[..nr_empty], |done, frames| {
            let first = done * PAGE_SIZE;
            self.store_batch(frames, &run.bytes[first..first + frames.len() * PAGE_SIZE])
        });
        if transfer.stop.is_none() && nr_empty < run.frames.len() {
            return Transfer::stopped(nr_empty, DeviceError::Unsupported);
        }
        transfer
    }

    fn fetch(&self, run: Fetch<'_>) -> Transfer {
        in_batches(run.frames, |done, frames| {
            let first = done * PAGE_SIZE;
            self.fetch_batch(frames, &mut run.bytes[first..first + frames.len() * PAGE_SIZE])
        })
    }

    fn free(&self, frames: &[DevicePfn]) {
        let mut table = self.frames();
        frames.iter().for_each(|pfn| table.free(*pfn));
    }

    fn holds(&self, frame: DevicePfn, bytes: &[u8]) -> bool {
        let known = self.frames().sum(frame);
        known == Ok(self.sum(bytes))
    }

    fn patience(&self) -> Option<Duration> {
        self.config.patience
    }

    fn flush(&self) -> Result<(), DeviceError> {
        rustix::fs::fdatasync(&self.file.fd).map_err(|_| DeviceError::Io)
    }
}
