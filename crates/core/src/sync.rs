//! Locks and atomics of the parts whose interleavings are explored: the standard library's, or those of a model checker
//! when one is built in (`--cfg loom` for all interleavings of small cases, `--cfg shuttle` for many of larger ones).

pub(crate) use std::sync::Arc;
pub(crate) use std::sync::PoisonError;

#[cfg(loom)]
pub(crate) use loom::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};
#[cfg(shuttle)]
pub(crate) use shuttle::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};
