//! What everybody is doing, and how much was done: nothing that is not counted has been tested.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

macro_rules! kinds {
    ($($kind:ident),+ $(,)?) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug)]
        pub(crate) enum Kind {
            $($kind),+
        }

        impl Kind {
            const ALL: &[Self] = &[$(Self::$kind),+];
        }
    };
}

kinds![
    Read,
    Write,
    Add,
    InFrame,
    InExclusive,
    InSystem,
    DeviceFault,
    ToDevice,
    ToSystem,
    Evicted,
    Taken,
    GivenUp,
    ByFrames,
    Discarded,
    Replaced,
    Relocated,
    Protected,
    Forked,
    Audited,
    AuditedCoherent,
];

/// What a thread is doing.
#[derive(Debug)]
struct Doing {
    name: &'static str,
    what: &'static str,
    region: usize,
    page: usize,
    since: Instant,
}

thread_local! {
    static ME: Cell<usize> = const { Cell::new(usize::MAX) };
    static NAME: Cell<&'static str> = const { Cell::new("") };
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Report {
    counts: [AtomicU64; Kind::ALL.len()],
    /// A place for each thread: they must not wait for each other here.
    threads: [Mutex<Option<Doing>>; 16],
    nr_threads: AtomicUsize,
}

impl Report {
    /// The calling thread takes part.
    pub(crate) fn enlist(&self, name: &'static str) {
        ME.set(self.nr_threads.fetch_add(1, Ordering::Relaxed));
        NAME.set(name);
    }

    /// The calling thread begins something.
    pub(crate) fn now(&self, what: &'static str, region: usize, page: usize) {
        if let Some(doing) = self.threads.get(ME.get()) {
            let now = Doing { name: NAME.get(), what, region, page, since: Instant::now() };
            *doing.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        }
    }

    pub(crate) fn count(&self, kind: Kind) {
        self.add(kind, 1);
    }

    pub(crate) fn add(&self, kind: Kind, nr: usize) {
        self.counts[kind as usize].fetch_add(nr as u64, Ordering::Relaxed);
    }

    /// Who does what, for how long.
    pub(crate) fn text(&self) -> String {
        let mut text = self.counts_text();
        for doing in &self.threads {
            if let Some(Doing { name, what, region, page, since }) =
                &*doing.lock().unwrap_or_else(PoisonError::into_inner)
            {
                let since: Duration = since.elapsed();
                text.push_str(&format!("\n{name}: {what} region {region} page {page} for {since:?}"));
            }
        }
        text
    }

    fn counts_text(&self) -> String {
        let count = |kind: &Kind| format!("{kind:?} {}", self.get(*kind));
        Kind::ALL.iter().map(count).collect::<Vec<_>>().join(", ")
    }

    fn get(&self, kind: Kind) -> u64 {
        self.counts[kind as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn print(&self) {
        eprintln!("{}", self.counts_text());
    }

    /// What has not happened yet, unless it was left out.
    pub(crate) fn missing(&self) -> Option<Kind> {
        if std::env::var_os("HMM_FIRE_LEAVE_OUT").is_some() {
            return None;
        }
        Kind::ALL.iter().copied().find(|kind| self.get(*kind) == 0)
    }

    pub(crate) fn expect_all(&self) {
        let missing = self.missing();
        assert!(missing.is_none(), "{missing:?} has not happened once: {}", self.counts_text());
    }
}
