//! Locks and atomics of the parts whose interleavings are explored by a model checker: the standard library's, or the
//! checker's when it is built in.

pub(crate) use std::sync::Arc;
pub(crate) use std::sync::PoisonError;

#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};
