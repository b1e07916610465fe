//! The fault buffer: units put faults in, and whoever of them finds nobody at it serves a batch.
//!
//! A unit that has faults waits until they were served, and then tries its access again (the *replay*): if the page is gone
//! again by then, it has another fault. There is no thread of its own that serves faults: waking one costs more than
//! most faults. The unit that serves does so for all.
//!
//! Neither lock here is taken by a notifier's callback or by a thread that serves the program's faults, so one may fault on
//! managed memory while one holds them.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use hmm_core::addr::Vpn;

/// Faults that are served together.
pub(crate) const BATCH: usize = 256;

/// An access that found no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fault {
    pub(crate) page: Vpn,
    pub(crate) write: bool,
}

#[derive(Debug, Default)]
struct Inner {
    queue: std::collections::VecDeque<Fault>,
    /// Faults ever put in.
    posted: u64,
    /// Faults ever served; they are served in order.
    served: u64,
    /// Whether somebody serves a batch.
    busy: bool,
}

/// The buffer.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    inner: Mutex<Inner>,
    replay: Condvar,
}

impl Buffer {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts faults in, and returns when all of them were served: by another unit, or by `serve`, which is given batches.
    pub(crate) fn fault(&self, faults: &[Fault], serve: &mut dyn FnMut(Vec<Fault>)) {
        let mut inner = self.lock();
        inner.queue.extend(faults);
        inner.posted += faults.len() as u64;
        let last = inner.posted;
        while inner.served < last {
            if inner.busy {
                inner = self.replay.wait(inner).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            inner.busy = true;
            let nr = inner.queue.len().min(BATCH);
            let batch: Vec<_> = inner.queue.drain(..nr).collect();
            drop(inner);
            serve(batch);
            inner = self.lock();
            inner.busy = false;
            inner.served += nr as u64;
            self.replay.notify_all();
        }
    }
}

/// Sorts a batch, and drops faults for a page that has another: one that writes stands for one that reads.
pub(crate) fn drop_duplicates(batch: &mut Vec<Fault>) {
    batch.sort_unstable();
    batch.dedup_by(|next, kept| {
        let same = next.page == kept.page;
        kept.write |= same && next.write;
        same
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn fault(page: u64, write: bool) -> Fault {
        Fault { page: Vpn(page), write }
    }

    #[test]
    fn a_write_stands_for_a_read() {
        let mut batch =
            vec![fault(2, false), fault(1, true), fault(2, true), fault(1, true), fault(3, false)];
        drop_duplicates(&mut batch);
        assert_eq!(batch, [fault(1, true), fault(2, true), fault(3, false)]);
    }

    #[test]
    fn batches_are_bounded_and_every_fault_is_served_once() {
        let buffer = Buffer::default();
        let faults: Vec<_> = (0..BATCH as u64 * 2 + 5).map(|page| fault(page, false)).collect();
        let mut served = Vec::new();
        let mut sizes = Vec::new();
        buffer.fault(&faults, &mut |batch| {
            sizes.push(batch.len());
            served.extend(batch);
        });
        assert_eq!(sizes, [BATCH, BATCH, 5]);
        assert_eq!(served, faults);
    }

    #[test]
    fn one_serves_for_all_and_one_at_a_time() {
        let (buffer, served, inside) = (Buffer::default(), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for unit in 0..8 {
                let (buffer, served, inside) = (&buffer, &served, &inside);
                scope.spawn(move || {
                    for page in 0..100 {
                        buffer.fault(&[fault(unit * 100 + page, false)], &mut |batch| {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            served.fetch_add(batch.len(), Ordering::SeqCst);
                            std::thread::yield_now();
                            assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                        });
                    }
                });
            }
        });
        assert_eq!(served.load(Ordering::SeqCst), 800);
    }
}
