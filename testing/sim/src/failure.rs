//! Failures to order: the call that shall fail, and how.

use hmm_core::kernel::Stop;
use hmm_device::DeviceError;
use hmm_model::Entropy;

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
    /// `map_frames`
    MapFrames,
    /// `unmap_frames`
    UnmapFrames,
    /// `unprotect`
    Unprotect,
}

impl Verb {
    /// All ways in which Linux can fail this call, whatever the state of the pages is. What follows from their state
    /// ([`Stop::Exists`], [`Stop::Absent`]) is not among them: the simulated kernel never lies.
    pub const fn stops(self) -> &'static [Stop] {
        match self {
            Self::MoveOut | Self::MoveHome | Self::MapFrames | Self::UnmapFrames => {
                &[Stop::Changing, Stop::Busy, Stop::Unsuited, Stop::NoMemory, Stop::Gone]
            }
            Self::CopyHome | Self::ZeroHome | Self::Poison | Self::Unprotect => {
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
            Self::Store => {
                &[DeviceError::OutOfMemory, DeviceError::Io, DeviceError::Unsupported, DeviceError::Lost]
            }
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

/// A kind of call that can fail.
pub(crate) trait Call: Copy {
    type Why: Copy;

    /// The ways in which it can fail and the world goes on.
    fn setbacks(self) -> Vec<Self::Why>;
}

impl Call for Verb {
    type Why = Stop;

    fn setbacks(self) -> Vec<Stop> {
        self.stops().iter().copied().filter(|stop| *stop != Stop::Gone).collect()
    }
}

impl Call for DeviceVerb {
    type Why = DeviceError;

    fn setbacks(self) -> Vec<DeviceError> {
        self.errors().iter().copied().filter(|error| *error != DeviceError::Lost).collect()
    }
}

/// What has to fail, and what was called so far.
#[derive(Debug)]
pub(crate) struct Plan<V: Call> {
    failures: Vec<Failure<V::Why>>,
    /// Once in so many calls one fails by chance; 0 is never.
    rarity: u32,
    made: Vec<Made<V>>,
}

impl<V: Call> Plan<V> {
    /// These calls fail, and one in `rarity`.
    pub(crate) const fn new(failures: Vec<Failure<V::Why>>, rarity: u32) -> Self {
        Self { failures, rarity, made: Vec::new() }
    }

    /// Notes a call and says how it fails, if it does: why, and behind how many pages.
    pub(crate) fn make(
        &mut self,
        verb: V,
        nr_pages: usize,
        entropy: &mut impl Entropy,
    ) -> Option<(V::Why, usize)> {
        let call = self.made.len();
        self.made.push(Made { verb, nr_pages });
        let planned = self
            .failures
            .iter()
            .find(|failure| failure.call == call)
            .map(|failure| (failure.why, failure.done));
        let (why, done) = planned.or_else(|| {
            let fails = self.rarity > 0 && entropy.one_in(self.rarity);
            fails.then(|| by_chance(verb, nr_pages, entropy))
        })?;
        Some((why, done.min(nr_pages.saturating_sub(1))))
    }

    /// The next calls fail, in front of their first page.
    #[cfg(test)]
    pub(crate) fn fail_next(&mut self, nr_calls: usize, why: V::Why) {
        let next = self.made.len();
        self.failures.extend((next..next + nr_calls).map(|call| Failure { call, why, done: 0 }));
    }

    /// The call with that number fails, behind so many pages.
    #[cfg(test)]
    pub(crate) fn fail(&mut self, call: usize, why: V::Why, done: usize) {
        self.failures.push(Failure { call, why, done });
    }

    /// All calls so far, in order.
    pub(crate) fn made(&self) -> &[Made<V>] {
        &self.made
    }
}

fn by_chance<V: Call>(verb: V, nr_pages: usize, entropy: &mut impl Entropy) -> (V::Why, usize) {
    let setbacks = verb.setbacks();
    let pick = entropy.below(u32::try_from(setbacks.len()).unwrap_or(1));
    (setbacks[pick as usize], entropy.below(u32::try_from(nr_pages).unwrap_or(1)) as usize)
}
