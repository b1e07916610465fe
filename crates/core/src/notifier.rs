//! Interval notifiers: a driver that mirrors a range of the address space learns of every change to it before the change
//! is made, and knows afterwards whether what it read in between still holds (Linux: `mmu_interval_notifier`).
//!
//! ```text
//!     whoever changes a range                        a driver that fills its page table
//!     -----------------------                        ----------------------------------
//!     let change = notifiers.invalidate(..)          again: let seq = notifier.read_begin()
//!       every notifier on the range has dropped      read the range's pages
//!       its entries, under its table's lock          match notifier.install(seq, |table| ..)
//!     make the change                                  Err(Collided) => goto again
//!     drop(change)
//! ```
//!
//! One counter for the address space is odd while a range is being changed on which there is a notifier, and is counted
//! up when the last such change ends. A notifier keeps the value it last saw in its own counter, which is always odd:
//! equal to the address space's, a change is going on, and [`Notifier::read_begin`] waits for its end.
//!
//! What a driver moves itself it need not be told of ([`Watch::ignores`]). For what its faults have read meanwhile that is
//! a change like any other; only the driver's entries for what it has moved do not collide with it
//! ([`Notifier::install_own`]).
//!
//! Invalidations nest and run in parallel. All notifiers of a change run their first pass, in which a device's own
//! shootdown is begun; then those that asked for it run the second, in which its end is awaited: devices overlap.
//!
//! # Rules for drivers
//!
//! The table's lock is the innermost of all: while it is held nothing of the engine may be called, because callbacks take
//! it on threads that serve faults. Callbacks run on any thread, touch no managed memory (I6), and end in bounded time.
//! Linux has changes whose callbacks may not sleep (its OOM reaper); there are none here.

use crate::addr::PageRange;
use crate::sync::{Arc, AtomicU64, Condvar, Mutex, MutexGuard, Ordering, PoisonError};

/// Identity of a driver: its own changes can be told from others', and its device's frames are shown to it alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(pub u64);

/// Why a range changes (Linux: `enum mmu_notifier_event`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The mapping goes, or moves to another address: munmap, mremap.
    Unmap,
    /// Pages go or are replaced: discarded by the program, reclaimed, brought home, or no longer exclusive.
    Clear,
    /// The mapping's protection changes: mprotect.
    ProtectVma,
    /// Single pages become read-only: fork.
    ProtectPage,
    /// The address space ends, or stops being managed.
    Release,
    /// Pages migrate; the owner is the driver whose device they come from or go to.
    Migrate,
    /// A page becomes exclusive to a device; the owner is its driver.
    Exclusive,
}

/// A change of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The pages that it concerns.
    pub range: PageRange,
    /// Why.
    pub cause: Cause,
    /// On whose behalf, if it is a driver's.
    pub owner: Option<Owner>,
}

/// Whether a device's shootdown is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a pass that is not over has to be finished"]
pub enum Pass {
    /// The device uses none of the range's entries any more.
    Done,
    /// It will not when [`Watch::finish`] returns.
    Begun,
}

/// What a driver does when a range that it mirrors changes.
pub trait Watch: Send + Sync + 'static {
    /// The device's page table, or whatever else the lock protects.
    type Table: Send;

    /// Whether the change is the driver's own and handled by it already. Then it is not called: Linux's drivers filter their
    /// own migrations this way. What it has read before is stale all the same, see [`Notifier::install_own`].
    fn ignores(&self, _change: &Change) -> bool {
        false
    }

    /// Drops the range's entries. Called under the table's lock.
    fn invalidate(&self, table: &mut Self::Table, change: &Change) -> Pass;

    /// Waits until the device has let go of what [`invalidate`](Self::invalidate) began to take from it. Called without
    /// the lock, after every notifier's first pass.
    fn finish(&self, _change: &Change) {}
}

/// What a range was read under, see [`Notifier::read_begin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    others: u64,
    own: u64,
}

/// The range has changed since it was read: read it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the range has changed since it was read: begin again with `read_begin`")]
pub struct Collided;

/// A range that cannot be watched: it is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a notifier needs a range of at least one page")]
pub struct EmptyRange;

/// All notifiers of an address space.
#[derive(Debug, Default)]
pub struct Notifiers {
    inner: Mutex<Inner>,
    /// Signalled when the counter becomes even.
    idle: Condvar,
    /// Notifiers there are, to be read without the lock.
    nr_subs: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    /// Odd while a watched range is being changed.
    seq: u64,
    /// Changes under way, watched or not.
    active: usize,
    /// Few for a driver, so a search of all is cheaper than a tree.
    subs: Vec<Arc<dyn Sub>>,
}

impl Default for Inner {
    fn default() -> Self {
        Self { seq: 2, active: 0, subs: Vec::new() }
    }
}

/// A subscription without its types.
trait Sub: Send + Sync {
    fn range(&self) -> PageRange;
    fn start(&self, change: &Change, seq: u64) -> Pass;
    fn finish(&self, change: &Change);
}

impl std::fmt::Debug for dyn Sub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sub({:?})", self.range())
    }
}

struct Subscription<W: Watch> {
    range: PageRange,
    watch: W,
    table: Arc<Mutex<W::Table>>,
    /// The value of the address space's counter at the last change; written under the table's lock.
    seq: AtomicU64,
    /// The same of the last change that the driver ignores.
    own: AtomicU64,
}

impl<W: Watch> Subscription<W> {
    fn sequence(&self) -> Sequence {
        Sequence { others: self.seq.load(Ordering::Acquire), own: self.own.load(Ordering::Acquire) }
    }
}

impl<W: Watch> Sub for Subscription<W> {
    fn range(&self) -> PageRange {
        self.range
    }

    fn start(&self, change: &Change, seq: u64) -> Pass {
        let is_ignored = self.watch.ignores(change);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if is_ignored {
            self.own.store(seq, Ordering::Release);
            return Pass::Done;
        }
        self.seq.store(seq, Ordering::Release);
        self.watch.invalidate(&mut table, change)
    }

    fn finish(&self, change: &Change) {
        self.watch.finish(change);
    }
}

/// A range that a driver watches. Dropping it ends that: it waits until no callback of the driver's runs, so it must not
/// be dropped in one, nor under a lock that one takes.
pub struct Notifier<W: Watch> {
    all: Arc<Notifiers>,
    sub: Arc<Subscription<W>>,
}

impl<W: Watch> std::fmt::Debug for Notifier<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Notifier").field("range", &self.sub.range).finish_non_exhaustive()
    }
}

/// A change under way: while this lives, whoever reads the range of a notifier that overlaps will have to read it again.
#[derive(Debug)]
#[must_use = "the change ends when this is dropped"]
pub struct Changing<'n> {
    all: &'n Notifiers,
}

impl Notifiers {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has every notifier on the range drop its entries, and keeps them from being made again until the result is
    /// dropped. The caller holds no lock that a driver's callback could take, and no block.
    pub fn invalidate(&self, change: Change) -> Changing<'_> {
        let (subs, seq) = self.begin(&change);
        if !subs.is_empty() {
            let mut begun = Vec::new();
            for sub in &subs {
                match sub.start(&change, seq) {
                    Pass::Done => {}
                    Pass::Begun => begun.push(sub),
                }
            }
            begun.iter().for_each(|sub| sub.finish(&change));
        }
        Changing { all: self }
    }

    /// Counts the change, and finds whom it concerns. The list is not allocated when nobody is.
    fn begin(&self, change: &Change) -> (Vec<Arc<dyn Sub>>, u64) {
        let mut inner = self.lock();
        inner.active += 1;
        let overlaps = |sub: &&Arc<dyn Sub>| !sub.range().intersect(change.range).is_empty();
        let subs: Vec<_> = inner.subs.iter().filter(overlaps).cloned().collect();
        if !subs.is_empty() {
            inner.seq |= 1;
        }
        (subs, inner.seq)
    }

    fn end(&self) {
        let mut inner = self.lock();
        inner.active -= 1;
        if inner.active == 0 && inner.seq & 1 == 1 {
            inner.seq += 1;
            self.idle.notify_all();
        }
    }

    /// Waits while the counter has one of these values and a change is going on.
    fn wait_for_end(&self, seqs: &[u64]) {
        let mut inner = self.lock();
        while inner.seq & 1 == 1 && seqs.contains(&inner.seq) {
            inner = self.idle.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether anybody watches anything. Takes no lock.
    pub fn is_watched(&self) -> bool {
        self.nr_subs.load(Ordering::Acquire) > 0
    }

    /// In the child of a fork, which has no driver's threads, and whose memory no device mirrors: forgets all notifiers and
    /// changes. Callers know that no other thread of the parent was in a call here.
    pub fn forget_all(&self) {
        let mut inner = self.lock();
        let subs = std::mem::take(&mut *inner).subs;
        self.nr_subs.store(0, Ordering::Release);
        drop(inner);
        // Their tables' locks may be held for ever by threads that are not here.
        let _never_dropped = std::mem::ManuallyDrop::new(subs);
    }

    /// Whether nobody watches anything.
    pub fn is_empty(&self) -> bool {
        self.lock().subs.is_empty()
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.all.end();
    }
}

impl<W: Watch> Notifier<W> {
    /// Watches `range`. Notifiers of one driver may share a table and its lock.
    ///
    /// # Errors
    /// [`EmptyRange`].
    pub fn new(
        all: &Arc<Notifiers>,
        range: PageRange,
        table: Arc<Mutex<W::Table>>,
        watch: W,
    ) -> Result<Self, EmptyRange> {
        if range.is_empty() {
            return Err(EmptyRange);
        }
        let mut inner = all.lock();
        // Whatever is being changed was begun without this notifier: reading has to wait for its end.
        let seq = if inner.active > 0 {
            inner.seq |= 1;
            inner.seq
        } else {
            inner.seq - 1
        };
        let sub = Arc::new(Subscription {
            range,
            watch,
            table,
            seq: AtomicU64::new(seq),
            own: AtomicU64::new(seq),
        });
        inner.subs.push(Arc::clone(&sub) as Arc<dyn Sub>);
        all.nr_subs.store(inner.subs.len() as u64, Ordering::Release);
        drop(inner);
        Ok(Self { all: Arc::clone(all), sub })
    }

    /// The range.
    pub fn range(&self) -> PageRange {
        self.sub.range
    }

    /// What was given to [`new`](Self::new).
    pub fn watch(&self) -> &W {
        &self.sub.watch
    }

    /// The table, locked. See the module's rules: call nothing of the engine while holding it.
    pub fn table(&self) -> MutexGuard<'_, W::Table> {
        self.sub.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no change of the range is going on, as far as this notifier has heard of it. What is read of the range
    /// from here on can be [`install`](Self::install)ed with the result.
    pub fn read_begin(&self) -> Sequence {
        let seq = self.sub.sequence();
        self.all.wait_for_end(&[seq.others, seq.own]);
        seq
    }

    /// Whether the range has changed since. `true` is certain; `false` only says that it pays to go on.
    pub fn check_retry(&self, seq: Sequence) -> bool {
        self.sub.sequence() != seq
    }

    /// Gives access to the table if nothing of the range has changed since `seq` (I5): what was read of it is still true,
    /// and any change from now on will take from the table what is put there.
    ///
    /// # Errors
    /// [`Collided`]: read the range again.
    pub fn install<R>(&self, seq: Sequence, fill: impl FnOnce(&mut W::Table) -> R) -> Result<R, Collided> {
        let mut table = self.table();
        if self.sub.sequence() != seq {
            return Err(Collided);
        }
        Ok(fill(&mut table))
    }

    /// The same for where the driver itself has taken pages since `seq`, by changes that it [ignores](Watch::ignores): those
    /// do not collide. Nothing that was read under `seq` may be entered so. The pages are the driver's own until then: a
    /// migration that is not finalized holds them, or they are exclusive.
    ///
    /// # Errors
    /// [`Collided`]: somebody else has changed the range meanwhile. The next fault finds out where the pages are.
    pub fn install_own<R>(
        &self,
        seq: Sequence,
        fill: impl FnOnce(&mut W::Table) -> R,
    ) -> Result<R, Collided> {
        let mut table = self.table();
        if self.sub.seq.load(Ordering::Acquire) != seq.others {
            return Err(Collided);
        }
        Ok(fill(&mut table))
    }
}

impl<W: Watch> Drop for Notifier<W> {
    fn drop(&mut self) {
        let mut inner = self.all.lock();
        inner.subs.retain(|sub| !std::ptr::addr_eq(Arc::as_ptr(sub), Arc::as_ptr(&self.sub)));
        self.all.nr_subs.store(inner.subs.len() as u64, Ordering::Release);
        let seq = inner.seq;
        drop(inner);
        // A change that is going on may be calling this notifier.
        self.all.wait_for_end(&[seq]);
    }
}

#[cfg(any(loom, shuttle))]
#[cfg(test)]
mod interleavings;
#[cfg(not(any(loom, shuttle)))]
#[cfg(test)]
mod tests;
