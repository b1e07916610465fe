//! One thread of the worker: its memory, its choices, and the operations that it chooses from.

use std::sync::RwLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use super::arena::Arena;
use super::buffer::Buffer;
use super::chance::Chance;
use super::common::{self, Common};
use super::finding::Finding;
use super::fork::{self, Children};
use super::heap::{self, Heap};
use super::{access, life, mappings, remap};

/// The most threads that a worker has.
pub(crate) const MAX_THREADS: usize = 8;

/// What the threads do, for who watches them.
static PROGRESS: [Progress; MAX_THREADS] = [const { Progress::new() }; MAX_THREADS];

/// What a thread does.
#[derive(Debug)]
pub(crate) struct Progress {
    nr_done: AtomicU64,
    operation: AtomicU32,
}

impl Progress {
    const fn new() -> Self {
        Self { nr_done: AtomicU64::new(0), operation: AtomicU32::new(0) }
    }

    /// How many operations a thread has done, and what it does now.
    pub(crate) fn of(thread: usize) -> (u64, &'static str) {
        let this = &PROGRESS[thread];
        let operation = this.operation.load(Ordering::Relaxed) as usize;
        (
            this.nr_done.load(Ordering::Relaxed),
            OPERATIONS.get(operation).map_or("done", |operation| operation.1),
        )
    }
}

type Operation = (usize, &'static str, fn(&mut Thread<'_>) -> Result<(), Finding>);

/// How often each comes, relative to the others. Those of a child are all but the last.
const OPERATIONS: [Operation; 22] = [
    (60, "write", access::write),
    (60, "read", access::read),
    (14, "kernel writes", access::kernel_writes),
    (14, "kernel reads", access::kernel_reads),
    (4, "probe", access::probe),
    (6, "mmap", mappings::map),
    (5, "munmap", mappings::unmap),
    (2, "misaligned", mappings::misaligned),
    (12, "discard", mappings::discard),
    (8, "mprotect", mappings::protect),
    (4, "mlock", mappings::lock),
    (6, "hint", mappings::hint),
    (5, "populate", mappings::populate),
    (3, "madvise at fork", mappings::at_fork),
    (4, "guard", mappings::guard),
    (8, "mremap", remap::relocate),
    (3, "mremap and back", remap::wander),
    (4, "mremap to size", remap::resize),
    (12, "heap", heap::heap),
    (1, "stack", heap::stack),
    (20, "common", common::common),
    (1, "fork", fork::fork),
];

/// A thread with all that is its.
#[derive(Debug)]
pub(crate) struct Thread<'a> {
    pub(crate) number: usize,
    pub(crate) arena: Arena,
    pub(crate) chance: Chance,
    pub(crate) buffer: Buffer,
    pub(crate) heap: Heap,
    pub(crate) children: Children,
    pub(crate) common: &'a RwLock<Common>,
    /// Whether mremap may refuse what is not one mapping to the kernel.
    pub(crate) in_pieces: bool,
    /// How many forks lie between this and the worker.
    pub(crate) depth: usize,
}

impl Thread<'_> {
    /// One operation.
    pub(super) fn step(&mut self) -> Result<(), Finding> {
        let all = if self.depth == 0 { &OPERATIONS[..] } else { &OPERATIONS[..OPERATIONS.len() - 2] };
        let mut pick = self.chance.below(all.iter().map(|operation| operation.0).sum());
        let chosen = all.iter().position(|operation| {
            let is_it = pick < operation.0;
            pick = pick.wrapping_sub(operation.0);
            is_it
        });
        let chosen = chosen.unwrap_or(0);
        let progress = &PROGRESS[self.number];
        progress.operation.store(u32::try_from(chosen).unwrap_or(0), Ordering::Relaxed);
        let result = all[chosen].2(self);
        // What was lost in passing.
        self.arena.settle();
        progress.nr_done.fetch_add(1, Ordering::Relaxed);
        life::sign();
        result.map_err(|Finding(what)| Finding(format!("{} (operation {})", what, all[chosen].1)))
    }

    /// So many operations, and a look at everything.
    pub(super) fn steps(&mut self, nr_steps: usize) -> Result<(), Finding> {
        (0..nr_steps).try_for_each(|_| self.step())?;
        self.check_all("in the end")
    }

    /// Operations until the time has come, and a look at everything.
    pub(super) fn work(&mut self, until: Instant) -> Result<(), Finding> {
        while Instant::now() < until {
            self.step()?;
        }
        self.children.wait_for_all()?;
        self.check_all("in the end")?;
        PROGRESS[self.number].operation.store(u32::MAX, Ordering::Relaxed);
        Ok(())
    }

    /// Looks at everything.
    pub(super) fn check_all(&mut self, when: &str) -> Result<(), Finding> {
        self.heap.check()?;
        self.arena.check(0, self.arena.nr_pages(), when)
    }
}
