//! The library: memory that is asked for, in this process.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use hmm_core::addr::{PAGE_SIZE, PageRange, Vpn};
use hmm_core::ledger::Ledger;
use hmm_core::policy::Name;
use hmm_core::stats::Stats;
use hmm_core::{Config, Engine};
use hmm_device::Device;
use hmm_device::decorate::Contained;
use hmm_uapi::mapping::{Advice, Mapping};
use hmm_uapi::uffd::{Access, Features};
use rustix::io::Errno;

use crate::adopt::register;
use crate::calibrate::home_by;
use crate::callers;
use crate::control::OnFull;
use crate::heap::Heap;
use crate::in_thread::{self, Faults, InThreadError};
use crate::mm::{Books, Files, Mm, range_of};
use crate::open::{OpenFilesError, open_files};
use crate::pin::Pins;
use crate::runtime::{Policy, Runtime};

/// The smallest budget: below it staging would take most of it.
const MIN_RAM_BYTES: u64 = 16 << 20;
/// More pages than an address space has.
const UNBOUNDED_PAGES: u64 = 1 << 40;
/// Times that pages are asked to come home when the space ends, and the pause in between: a second.
const HOME_ROUNDS: usize = 1000;
const HOME_PAUSE: Duration = Duration::from_millis(1);

/// Why there is no address space.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The budget is too small to work with.
    #[error("a budget of {given} bytes is too small: give at least {MIN_RAM_BYTES}")]
    Budget {
        /// What was asked for.
        given: u64,
    },
    /// Pages that leave need a place to go to.
    #[error("no device was given: pages that leave RAM need a home")]
    NoDevice,
    /// The kernel does not let us.
    #[error(transparent)]
    Kernel(#[from] OpenFilesError),
    /// A system call failed.
    #[error("cannot set managed memory up: {0}")]
    Setup(Errno),
    /// Faults cannot be served by the threads that have them.
    #[error(transparent)]
    InThread(#[from] InThreadError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// How an address space is to be.
#[derive(Debug)]
pub struct Builder {
    ram_bytes: Option<u64>,
    devices: Vec<Arc<dyn Device>>,
    access: Option<Access>,
    on_full: OnFull,
    policy: Name,
    faults: Faults,
}

impl Builder {
    /// Bytes of managed memory that may be resident, staging included. At least 16 MiB.
    pub fn ram(mut self, bytes: u64) -> Self {
        self.ram_bytes = Some(bytes);
        self
    }

    /// Adds a device. Pages go to the first one that is added; when that is nearly full, what has been there longest moves on to
    /// the next. One that panics is lost ([`Contained`]).
    pub fn device(mut self, device: Arc<dyn Device>) -> Self {
        self.devices.push(Arc::new(Contained::new(device)));
        self
    }

    /// Which userfaultfd to use; by default the full one where it can be had, else the one of user mode only. With that
    /// one a system call that is given a pointer to a page that is away fails with `EFAULT`.
    pub fn access(mut self, access: Access) -> Self {
        self.access = Some(access);
        self
    }

    /// What to do when no device takes another page: [`OnFull::Grow`] beyond the budget (the default; counted in
    /// [`Snapshot::overcharged`]), or abort the process.
    pub fn on_full(mut self, on_full: OnFull) -> Self {
        self.on_full = on_full;
        self
    }

    /// Who decides what leaves, what comes ahead, and where it goes; by default [`Name::Round`]. Changes no result, only what
    /// it costs.
    pub fn policy(mut self, policy: Name) -> Self {
        self.policy = policy;
        self
    }

    /// Who serves faults: threads of hmm's (the default), or the threads that have them, see [`Faults::InThread`]. These need a
    /// userfaultfd of user mode only, whatever [`access`](Self::access) says.
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// See [`BuildError`]; nothing is left behind.
    pub fn build(self) -> Result<AddressSpace, BuildError> {
        let _inside = callers::enter();
        let config = self.config()?;
        let (files, access) = self.files()?;
        let (budget_pages, mut config) = config;
        config.home_by = home_by(access);
        config.policy = self.policy;
        let books = Box::new(OwnBooks { ledger: Ledger::new(budget_pages), stats: Stats::default() });
        let mm = Mm::new(files, config.nr_bays, books).map_err(BuildError::Setup)?;
        let engine = Engine::new(mm, self.devices, config);
        let policy = Box::new(LibraryPolicy { on_full: self.on_full });
        let mut runtime = Runtime::new(engine, policy).map_err(BuildError::Setup)?;
        runtime.faults = self.faults;
        let runtime = Arc::new(runtime);
        if self.faults == Faults::InThread {
            in_thread::add(&runtime)?;
        }
        let threads =
            start(&runtime).inspect_err(|_| in_thread::remove(&runtime)).map_err(BuildError::Thread)?;
        Ok(AddressSpace { inner: Arc::new(Inner { runtime, threads, access, pins: Pins::default() }) })
    }
}

impl Builder {
    /// A userfaultfd, if possible one that tells of forks. While libc forks it holds the locks of `malloc`, so our threads
    /// can only be told if they do without that.
    fn files(&self) -> Result<(Files, Access), OpenFilesError> {
        if self.faults == Faults::InThread {
            let files = open_files(Access::UserModeOnly, Features::SIGBUS)?;
            return Ok((files, Access::UserModeOnly));
        }
        let forks = if Heap::is_installed() { Features::EVENT_FORK } else { Features::empty() };
        let open = |access| {
            let files = open_files(access, forks).or_else(|_| open_files(access, Features::empty()))?;
            Ok((files, access))
        };
        match self.access {
            Some(access) => open(access),
            None => open(Access::Full).or_else(|_: OpenFilesError| open(Access::UserModeOnly)),
        }
    }

    /// Pages that may be resident, and what follows from that. Without a budget and without devices nothing is ever
    /// evicted: the address space is there for the drivers that mirror it, and is left as it is where they do nothing.
    fn config(&self) -> Result<(u64, Config), BuildError> {
        match self.ram_bytes {
            None if self.devices.is_empty() => Ok((UNBOUNDED_PAGES, Config::for_mirror(UNBOUNDED_PAGES))),
            Some(bytes) if bytes >= MIN_RAM_BYTES && self.devices.is_empty() => Err(BuildError::NoDevice),
            Some(bytes) if bytes >= MIN_RAM_BYTES => {
                let budget_pages = bytes / PAGE_SIZE as u64;
                Ok((budget_pages, Config::for_budget(budget_pages)))
            }
            small => Err(BuildError::Budget { given: small.unwrap_or(0) }),
        }
    }
}

fn start(runtime: &Arc<Runtime>) -> std::io::Result<Vec<JoinHandle<()>>> {
    let spawn = |name: &str, work: fn(&Runtime)| {
        let shared = Arc::clone(runtime);
        std::thread::Builder::new().name(name.into()).spawn(move || {
            callers::stay();
            let _never_less = OrAbort;
            work(&shared);
        })
    };
    let handlers = (0..runtime.nr_handlers()).map(|_| {
        spawn("hmm-handler", |runtime| {
            // It fails before it has served anything, and the other handler takes all.
            let _ = runtime.serve();
        })
    });
    let threads: std::io::Result<Vec<_>> =
        handlers.chain(std::iter::once(spawn("hmm-reclaim", Runtime::reclaim))).collect();
    match &threads {
        Err(_) => runtime.stop(),
        // What a thread does before its work needs libc's locks, which whoever forks holds: let nobody fork before.
        Ok(threads) => {
            while runtime.nr_running() < threads.len() && !threads.iter().any(JoinHandle::is_finished) {
                std::thread::yield_now();
            }
        }
    }
    threads
}

/// What panics while this lives, a driver's callback perhaps, ends the process, after Rust has printed it: whoever waits for a thread
/// that serves faults would hang.
struct OrAbort;

impl Drop for OrAbort {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

#[derive(Debug)]
struct OwnBooks {
    ledger: Ledger,
    stats: Stats,
}

impl Books for OwnBooks {
    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn stats(&self) -> &Stats {
        &self.stats
    }
}

#[derive(Debug)]
struct LibraryPolicy {
    on_full: OnFull,
}

impl Policy for LibraryPolicy {
    fn on_full(&self) -> OnFull {
        self.on_full
    }

    fn end(&self) {
        std::process::abort();
    }
}

#[derive(Debug)]
struct Inner {
    runtime: Arc<Runtime>,
    threads: Vec<JoinHandle<()>>,
    access: Access,
    pins: Pins,
}

impl Inner {
    /// Has all memory that is away come home. Gives up in the end: it is better to lose a page than never to end.
    fn bring_home(&self) {
        let all = PageRange { start: Vpn(0), end: Vpn(u64::MAX >> 12) };
        for _ in 0..HOME_ROUNDS {
            if self.runtime.engine().bring_all_home(all) == 0 {
                return;
            }
            std::thread::sleep(HOME_PAUSE);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _inside = callers::enter();
        // Every region holds a reference to this, so what is managed now is memory that drivers asked for. It outlives us.
        self.bring_home();
        self.runtime.stop();
        for thread in self.threads.drain(..) {
            // A handler that panicked has ended the process already.
            let _ = thread.join();
        }
        // What the reclaimer took meanwhile. Nobody else is left to take anything.
        self.bring_home();
        in_thread::remove(&self.runtime);
    }
}

/// Managed memory of this process, its budget and its devices. Clones are the same space; it ends with the last clone
/// and the last [`Region`].
#[derive(Clone, Debug)]
pub struct AddressSpace {
    inner: Arc<Inner>,
}

impl AddressSpace {
    /// Says how a space is to be. Without [`ram`](Builder::ram) and [`device`](Builder::device) it bounds nothing and
    /// evicts nothing: it is for drivers, which mirror any memory of the process.
    pub fn builder() -> Builder {
        Builder {
            ram_bytes: None,
            devices: Vec::new(),
            access: None,
            on_full: OnFull::Grow,
            policy: Name::default(),
            faults: Faults::default(),
        }
    }

    /// The runtime, for what is common to the library and the agent.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.inner.runtime
    }

    /// What is pinned.
    pub(crate) fn pins(&self) -> &Pins {
        &self.inner.pins
    }

    /// Who serves its faults.
    pub fn faults(&self) -> Faults {
        self.inner.runtime.faults
    }

    /// Which userfaultfd it uses.
    pub fn access(&self) -> Access {
        self.inner.access
    }

    /// Allocates `len` bytes, zeroed, of which as many are resident as the budget allows. Rounded up to pages.
    ///
    /// # Errors
    /// `EINVAL` for no bytes; else what mapping or registering memory says.
    pub fn alloc(&self, len: usize) -> Result<Region, Errno> {
        let _inside = callers::enter();
        let len = len.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::NOMEM)?;
        let mapping = Mapping::anonymous(len)?;
        // A child of a fork has no threads that could bring its pages home: rather no memory than wrong bytes.
        mapping.advise(0, len, Advice::DontFork)?;
        let range = mapping.range();
        let pages = PageRange::of_bytes(range.start, range.end);
        if self.faults() == Faults::InThread {
            self.inner.runtime.engine().prepare(pages);
        }
        register(self.inner.runtime.engine(), pages)?;
        Ok(Region { mapping, space: self.clone() })
    }

    /// Takes pages of the region out of RAM, as far as they can be: they come back when they are touched. For tests and
    /// for programs that know what they will not need. Returns how many left for staging; they go on from there as
    /// memory is needed.
    pub fn evict(&self, region: &Region) -> usize {
        let _inside = callers::enter();
        let range = region.mapping.range();
        self.inner.runtime.engine().evict_range(PageRange::of_bytes(range.start, range.end))
    }

    /// What has happened so far.
    pub fn stats(&self) -> Snapshot {
        let _inside = callers::enter();
        let engine = self.inner.runtime.engine();
        engine.refresh_gauges();
        Snapshot::of(engine)
    }
}

/// Counters at one moment. Pages, unless the name says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Pages that may be resident.
    pub budget: u64,
    /// Pages that are, staging included.
    pub resident: u64,
    /// The most that ever were.
    pub peak_resident: u64,
    /// Pages whose home is a device.
    pub away: u64,
    /// Faults read from the kernel.
    pub faults: u64,
    /// Pages that devices delivered because of a fault.
    pub fetched: u64,
    /// Pages that devices delivered ahead of need.
    pub prefetched: u64,
    /// Pages that devices took.
    pub stored: u64,
    /// Pages that left unchanged, and needed no store.
    pub clean: u64,
    /// Pages that moved from a device that was nearly full to one behind it.
    pub demoted: u64,
    /// Pages that came back from staging.
    pub second_chances: u64,
    /// Pages that are lost.
    pub poisoned: u64,
    /// Pages beyond the budget that had to be granted, in all; of some of them the budget may be rid again.
    pub overcharged: u64,
    /// Bytes that the devices' memory takes.
    pub device_bytes: u64,
    /// Bytes of tables.
    pub metadata_bytes: u64,
    /// Median time from reading a fault to its resolution, in nanoseconds.
    pub latency_p50_ns: u64,
    /// 99th percentile of the same.
    pub latency_p99_ns: u64,
}

impl Snapshot {
    fn of(engine: &Engine<Mm>) -> Self {
        use hmm_core::kernel::Kernel;
        let (ledger, stats) = (engine.kernel().ledger(), engine.kernel().stats());
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            budget: ledger.budget(),
            resident: ledger.charged(),
            peak_resident: ledger.peak(),
            away: get(&stats.away),
            faults: get(&stats.pgfault),
            fetched: get(&stats.pgfetch),
            prefetched: get(&stats.pgprefetch),
            stored: get(&stats.pgstore),
            clean: get(&stats.pgclean),
            demoted: get(&stats.pgdemote),
            second_chances: get(&stats.refault),
            poisoned: get(&stats.pgpoison),
            overcharged: get(&stats.overcharged),
            device_bytes: stats.usage().used_bytes,
            metadata_bytes: get(&stats.metadata_bytes),
            latency_p50_ns: stats.latency.quantile(0.5),
            latency_p99_ns: stats.latency.quantile(0.99),
        }
    }
}

/// Types that any bytes are a value of, so that zeroed memory can be seen as them.
///
/// # Safety
/// Every bit pattern is a valid value, and the type has no padding.
pub unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($plain:ty),+) => {
        $(
            // SAFETY: a number without padding, of which every bit pattern is a value.
            unsafe impl Plain for $plain {}
        )+
    };
}
plain!(u8, i8, u16, i16, u32, i32, u64, i64, u128, i128, usize, isize, f32, f64);

/// Managed memory: ordinary memory to whoever reads and writes it, wherever its bytes are.
#[derive(Debug)]
pub struct Region {
    mapping: Mapping,
    space: AddressSpace,
}

impl Region {
    /// The first byte.
    pub const fn as_ptr(&self) -> *mut u8 {
        self.mapping.as_ptr()
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Never: a region has at least a page.
    pub const fn is_empty(&self) -> bool {
        self.mapping.is_empty()
    }

    /// The memory as values; bytes at the end that do not make one are left out.
    pub fn as_slice<T: Plain>(&self) -> &[T] {
        // SAFETY:
        // 1. the mapping is readable, page aligned, and lives as long as `self`.
        // 2. any bytes are values of `T`; where they are is not seen by who reads them (I1-I3).
        // 3. only `&mut self` gives write access.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), self.len() / size_of::<T>()) }
    }

    /// The memory as values; bytes at the end that do not make one are left out.
    pub fn as_mut_slice<T: Plain>(&mut self) -> &mut [T] {
        // SAFETY: as for `as_slice`, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr().cast(), self.len() / size_of::<T>()) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let _inside = callers::enter();
        let range = self.mapping.range();
        let pages = PageRange::of_bytes(range.start, range.end);
        let engine = self.space.inner.runtime.engine();
        // Under the guard nobody acts on the pages; unregistered, unmapping sends no event that somebody had to read.
        let events = engine.events();
        let _ = engine.kernel().uffd().unregister(range_of(pages));
        events.unmapped(pages);
        engine.kernel().extents().remove(pages);
    }
}
