//! The device.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hmm_codec::content::{Fingerprint, same_filled};
use hmm_codec::lanes::Lanes;
use hmm_device::{Caps, Device, DeviceError, DevicePfn, Fetch, MemKind, Store, Transfer, Usage};
use hmm_uapi::{AddrRange, Errno};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::rand::GetRandomFlags;

use crate::BLOCK_BYTES;
use crate::entry::Content;
use crate::files::Files;
use crate::lane::Lane;
#[cfg(test)]
use crate::open::Opened;
use crate::open::{FileError, open, open_dir};
use crate::queue::Queue;
use crate::store::Lucks;
use crate::table::Table;

/// Block numbers have 32 bits.
const MAX_BLOCKS: u64 = 1 << 32;

/// How the requests of a call are made. Where the kernel does not do it so, they are made [one by one](Self::Single).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// All at once, by an io_uring (`io_uring_setup(2)`): it may have threads of its own in the process.
    Uring,
    /// All at once, by `io_submit(2)`, which has none. Around the page cache only.
    Aio,
    /// One after the other, by `pread` and `pwrite`.
    Single,
}

/// Where the file is, and how large it may become.
#[derive(Clone, Debug)]
pub struct FileConfig {
    dir: PathBuf,
    capacity_bytes: u64,
    requests: By,
    direct: bool,
    compress: bool,
    patience: Option<Duration>,
}

/// How long a request is waited for unless it is said: what the kernel's own disk drivers wait, as a rule.
pub const PATIENCE: Duration = Duration::from_secs(30);

impl FileConfig {
    /// A file of at most so many bytes in that directory. What is no multiple of 4096 is cut off.
    pub fn new(dir: impl Into<PathBuf>, capacity_bytes: u64) -> Self {
        Self {
            dir: dir.into(),
            capacity_bytes,
            requests: By::Uring,
            direct: true,
            compress: true,
            patience: Some(PATIENCE),
        }
    }

    /// Through the page cache: the kernel keeps a part of what is away in RAM, and reads ahead.
    #[must_use]
    pub fn through_page_cache(mut self) -> Self {
        self.direct = false;
        self
    }

    const fn nr_blocks(&self) -> u64 {
        self.capacity_bytes / BLOCK_BYTES as u64
    }

    /// Whether pages are compressed: they are unless it is said.
    #[must_use]
    pub const fn with_compression(mut self, compress: bool) -> Self {
        self.compress = compress;
        self
    }

    pub(crate) const fn compresses(&self) -> bool {
        self.compress
    }

    /// For how long a request is waited for: 30 s unless it is said. `None`: for ever.
    /// See [`Device::patience`](hmm_device::Device::patience).
    #[must_use]
    pub const fn with_patience(mut self, patience: Option<Duration>) -> Self {
        self.patience = patience;
        self
    }

    /// How requests are made: by io_uring unless it is said, where there is one.
    #[must_use]
    pub const fn with_requests(mut self, by: By) -> Self {
        self.requests = by;
        self
    }
}

/// Pages in a file. It [is](AsFd) the descriptor of the file. See the [crate] for what is in it and what can go wrong.
#[derive(Debug)]
pub struct FileDevice {
    pub(crate) config: FileConfig,
    pub(crate) files: Files,
    table: Mutex<Table>,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) lanes: Lanes<Lane>,
    pub(crate) lucks: Lucks,
    nr_frames: u64,
    own_ranges: Vec<AddrRange>,
}

impl FileDevice {
    /// Makes the file, and a table with 256 bytes for each block of it (16 for each frame), of which only what is used is
    /// touched.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn create(config: &FileConfig) -> Result<Self, FileError> {
        let nr_blocks = config.nr_blocks();
        if !(1..=MAX_BLOCKS).contains(&nr_blocks) {
            return Err(FileError::Capacity(config.capacity_bytes));
        }
        let dir = open_dir(&config.dir)?;
        let own = open(&dir, &config.dir, nr_blocks * BLOCK_BYTES as u64, config.direct)?;
        Self::on(config, Files::new(dir, own))
    }

    fn on(config: &FileConfig, files: Files) -> Result<Self, FileError> {
        let no_room = |errno: Errno| FileError::Table(errno.into());
        let table = Table::new(config.nr_blocks()).map_err(no_room)?;
        let mut own_ranges: Vec<AddrRange> = table.ranges().collect();
        let direct = files.own.direct;
        let queue = || match config.requests {
            By::Uring => Queue::uring(),
            By::Aio if direct => Queue::Aio(None),
            By::Aio | By::Single => Queue::None,
        };
        let lanes = Lanes::try_new(|| Lane::new(queue()).inspect(|lane| own_ranges.extend(lane.ranges())));
        Ok(Self {
            config: config.clone(),
            files,
            nr_frames: table.nr_frames() as u64,
            table: Mutex::new(table),
            fingerprint: Fingerprint::new(seed()),
            lanes: lanes.map_err(no_room)?,
            lucks: Lucks::default(),
            own_ranges,
        })
    }

    /// Where its tables and its working memory are, which are no part of the allocator's memory: they must not be managed.
    pub fn own_ranges(&self) -> &[AddrRange] {
        &self.own_ranges
    }

    /// On a file that is there, through the page cache.
    #[cfg(test)]
    pub(crate) fn with_file(config: &FileConfig, fd: OwnedFd) -> Self {
        let dir = open_dir(&config.dir).expect("it is there");
        Self::on(config, Files::new(dir, Opened { fd, direct: false })).expect("addresses")
    }

    /// What a fork makes of it, but with copies of all descriptors.
    #[cfg(test)]
    pub(crate) fn copied(&self) -> Self {
        let mut copy = Self::on(&self.config, self.files.copied()).expect("addresses");
        copy.fingerprint = self.fingerprint.clone();
        self.table().copy_to(&mut copy.table());
        copy
    }

    /// How requests are made.
    pub fn requests(&self) -> By {
        match self.lanes.enter().queue {
            Queue::Uring { .. } => By::Uring,
            Queue::Aio(_) => By::Aio,
            Queue::None => By::Single,
        }
    }

    /// Whether the file is accessed around the page cache.
    pub const fn is_direct(&self) -> bool {
        self.files.own.direct
    }

    /// Makes another file like the device's own, empty. For the child of a fork.
    ///
    /// # Errors
    /// See [`FileError`]; also when the file cannot be accessed as the first one is.
    pub(crate) fn another_file(&self) -> Result<OwnedFd, FileError> {
        let bytes = self.config.nr_blocks() * BLOCK_BYTES as u64;
        let opened = open(&self.files.dir, &self.config.dir, bytes, self.is_direct())?;
        if opened.direct == self.is_direct() {
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
        &self.files.own
    }

    /// Where in the file a frame's bytes are, with those that were compressed with them; none where it takes no room.
    #[cfg(test)]
    pub(crate) fn place_of(&self, frame: DevicePfn) -> std::ops::Range<u64> {
        match self.table().get(frame).0 {
            Content::Part(unit, _) if unit.is_raw() => unit.offset()..unit.offset() + BLOCK_BYTES as u64,
            Content::Part(unit, _) => unit.offset()..unit.offset() + u64::from(unit.len),
            Content::Same | Content::Empty => 0..0,
        }
    }

    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the file can be transferred from and to the caller's memory as it is.
    pub(crate) fn is_usable(&self, bytes: &[u8]) -> bool {
        !self.files.own.direct || bytes.as_ptr().addr().is_multiple_of(BLOCK_BYTES)
    }
}

impl AsFd for FileDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.files.own.fd.as_fd()
    }
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
            capacity_pages: self.nr_frames,
            preferred_run_pages: 32,
            store_page_ns: 2_000,
            fetch_page_ns: 6_000,
            keeps_copies: true,
        }
    }

    fn usage(&self) -> Usage {
        self.table().usage()
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        self.table().alloc(frames)
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        self.store_run(&run)
    }

    fn fetch(&self, run: Fetch<'_>) -> Transfer {
        self.fetch_run(run)
    }

    fn free(&self, frames: &[DevicePfn]) {
        let mut table = self.table();
        let left = frames.iter().fold(0, |left, pfn| left | table.free(*pfn));
        drop(table);
        if left != 0 {
            self.give_up(left);
        }
    }

    fn holds(&self, frame: DevicePfn, bytes: &[u8]) -> bool {
        let (content, tag) = self.table().get(frame);
        match content {
            Content::Empty => false,
            Content::Same => same_filled(bytes) == Some(tag),
            Content::Part(..) => self.fingerprint.of(bytes) == tag,
        }
    }

    fn patience(&self) -> Option<Duration> {
        self.config.patience
    }

    fn flush(&self) -> Result<(), DeviceError> {
        rustix::fs::fdatasync(&self.files.own.fd).map_err(|_| DeviceError::Io)
    }
}
