//! The atomics of frames' entries: the standard library's, or those of a model checker when one is built in
//! (`--cfg loom` for all interleavings of small cases, `--cfg shuttle` for many of larger ones).

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(shuttle)]
pub(crate) use shuttle::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
