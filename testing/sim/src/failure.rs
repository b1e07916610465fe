//! Failures to order: the call that shall fail, and how.

use hmm_core::kernel::Stop;
use hmm_device::DeviceError;

/// The calls of the kernel door that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `move_out`
    MoveOut,
    /// `move_home`
    MoveHome,
    /// `copy_home`
    CopyHome,
    /// `zero_home`
    ZeroHome,
    /// `poison`
    Poison,
}

impl Verb {
    /// All ways in which Linux can fail this call, whatever the state of the pages is. What follows from their state
    /// ([`Stop::Exists`], [`Stop::Absent`]) is not among them: the simulated kernel never lies.
    pub const fn stops(self) -> &'static [Stop] {
        match self {
            Self::MoveOut | Self::MoveHome => {
                &[Stop::Changing, Stop::Busy, Stop::Unsuited, Stop::NoMemory, Stop::Gone]
            }
            Self::CopyHome | Self::ZeroHome | Self::Poison => {
                &[Stop::Changing, Stop::Unsuited, Stop::NoMemory, Stop::Gone]
            }
        }
    }
}

/// The calls of a device that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceVerb {
    /// `alloc`
    Alloc,
    /// `store`
    Store,
    /// `fetch`
    Fetch,
}

impl DeviceVerb {
    /// All ways in which this call can fail.
    pub const fn errors(self) -> &'static [DeviceError] {
        match self {
            Self::Alloc => &[DeviceError::OutOfMemory],
            Self::Store => &[DeviceError::OutOfMemory, DeviceError::Io, DeviceError::Unsupported, DeviceError::Lost],
            Self::Fetch => &[DeviceError::Io, DeviceError::Corrupt, DeviceError::Lost],
        }
    }
}

/// A call that was made, as the one to fail next time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made<V> {
    /// Which call.
    pub verb: V,
    /// Pages that it was about.
    pub nr_pages: usize,
}

/// The failure of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure<W> {
    /// Counted from the first call of the run, from 0.
    pub call: usize,
    /// How it fails.
    pub why: W,
    /// Pages that are done before.
    pub done: usize,
}

/// What has to fail, and what was called so far.
#[derive(Clone, Debug)]
pub(crate) struct Plan<V, W> {
    failures: Vec<Failure<W>>,
    made: Vec<Made<V>>,
}

impl<V: Copy, W: Copy> Plan<V, W> {
    /// A plan by which these calls fail.
    pub(crate) const fn new(failures: Vec<Failure<W>>) -> Self {
        Self { failures, made: Vec::new() }
    }

    /// Notes a call and says how it fails, if it does: why, and behind how many pages.
    pub(crate) fn make(&mut self, verb: V, nr_pages: usize) -> Option<(W, usize)> {
        let call = self.made.len();
        self.made.push(Made { verb, nr_pages });
        let failure = self.failures.iter().find(|failure| failure.call == call)?;
        Some((failure.why, failure.done.min(nr_pages.saturating_sub(1))))
    }

    /// All calls so far, in order.
    pub(crate) fn made(&self) -> &[Made<V>] {
        &self.made
    }
}

/// Failures of the kernel.
pub(crate) type KernelPlan = Plan<Verb, Stop>;
/// Failures of devices.
pub(crate) type DevicePlan = Plan<DeviceVerb, DeviceError>;
