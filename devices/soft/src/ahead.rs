//! Work ahead of the units: the block that a stream comes to next is brought, and room made for it, while the units compute.
//!
//! A thread does so, as long as a kernel runs. It only migrates: the stream's next fault enters the block, which takes little,
//! and says what comes next. So a stream is never more than a block ahead of what it uses.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use hmm::heap::Inside;

use crate::buffer::Fault;
use crate::device::Shared;
use crate::service::bring_ahead;

/// Streams that are worked for; others find their pages as they fault.
const MAX_JOBS: usize = 16;

#[derive(Debug, Default)]
struct Inner {
    /// Where streams come to next.
    next: VecDeque<Fault>,
    is_over: bool,
}

/// What is to be done.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Ahead {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream comes to a page of another block next.
    pub(crate) fn expect(&self, next: Fault) {
        let mut inner = self.lock();
        if inner.next.len() < MAX_JOBS && !inner.next.contains(&next) {
            inner.next.push_back(next);
            self.changed.notify_one();
        }
    }

    /// A kernel begins; it ends when the result is dropped, and [`run`](Self::run) returns.
    pub(crate) fn until_dropped(&self) -> Kernel<'_> {
        *self.lock() = Inner::default();
        Kernel(self)
    }

    /// Works until the kernel has ended. The thread's stack is never managed.
    pub(crate) fn run(&self, device: &Shared) {
        let _inside = Inside::enter();
        let mut inner = self.lock();
        while !inner.is_over {
            match inner.next.pop_front() {
                Some(next) => {
                    drop(inner);
                    bring_ahead(device, next);
                    inner = self.lock();
                }
                None => inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// A kernel runs.
#[derive(Debug)]
#[must_use = "the kernel ends when this is dropped"]
pub(crate) struct Kernel<'a>(&'a Ahead);

impl Drop for Kernel<'_> {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.changed.notify_one();
    }
}
