//! Makes a device fail on purpose, the same way each time.
//!
//! A plan is a list of [`Rule`]s: for which calls, when, what. The first rule that matches a call decides. Calls are
//! counted from 1, for each verb and for all verbs together, in the order in which they arrive; with one calling
//! thread a plan therefore replays exactly. [`Device::free`] is counted but never fails, unless it panics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::Verb;
use crate::rng::mix;
use crate::{Caps, Device, DeviceError, DevicePfn, Fetch, LARGE_PAGES, PAGE_SIZE, Store, Transfer, Usage};

/// Which of the counted calls a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Only this one.
    Nth(u64),
    /// This one and all that follow.
    From(u64),
    /// Every so-manieth: this one, its double, and so on. Never, when 0.
    Every(u64),
    /// By chance, one in so many on average, always the same ones for a seed. Never, when 0.
    OneIn(u64, u64),
}

impl When {
    fn matches(self, call: u64) -> bool {
        match self {
            Self::Nth(nth) => call == nth,
            Self::From(first) => call >= first,
            Self::Every(period) => period != 0 && call.is_multiple_of(period),
            Self::OneIn(period, seed) => period != 0 && mix(seed ^ mix(call)).is_multiple_of(period),
        }
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call stops after `done` pages (or frames, for [`Verb::Alloc`]), which are done. A run that is not longer
    /// succeeds. [`Verb::Holds`] says no. A lost device still hands out frames, which cannot be stored to.
    Stop {
        /// Pages that are still done.
        done: usize,
        /// What the next page is said to have failed with.
        why: DeviceError,
    },
    /// A store or fetch takes so long before it is begun. The other verbs are not affected.
    Stick(Duration),
    /// A store or fetch changes one byte of every page, and says nothing: a device without checksums, gone bad.
    /// The other verbs are not affected. For a device *with* checksums, stop with [`DeviceError::Corrupt`].
    Garble,
    /// The call panics, whatever it is.
    Panic,
}

impl Fault {
    /// The whole call fails.
    pub const fn fail(why: DeviceError) -> Self {
        Self::Stop { done: 0, why }
    }
}

/// One line of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The verb whose calls are counted and affected; `None` counts and affects all verbs.
    pub verb: Option<Verb>,
    /// Which of those calls.
    pub when: When,
    /// What happens to them.
    pub fault: Fault,
}

impl Rule {
    /// The device is lost from the `call`th call on, whatever that is.
    pub const fn lost_from(call: u64) -> Self {
        Self { verb: None, when: When::From(call), fault: Fault::fail(DeviceError::Lost) }
    }
}

/// Any device that fails as planned.
#[derive(Debug)]
pub struct Faulty<D> {
    inner: D,
    plan: Mutex<Vec<Rule>>,
    calls: [AtomicU64; Verb::ALL.len()],
    all_calls: AtomicU64,
    injected: AtomicU64,
    patience: Option<Duration>,
}

impl<D> Faulty<D> {
    /// A device that does as `inner` does, except where a rule says otherwise.
    pub fn new(inner: D, plan: impl Into<Vec<Rule>>) -> Self {
        Self {
            inner,
            plan: Mutex::new(plan.into()),
            calls: std::array::from_fn(|_| AtomicU64::new(0)),
            all_calls: AtomicU64::new(0),
            injected: AtomicU64::new(0),
            patience: None,
        }
    }

    /// Has the device say that a transfer may take so long.
    #[must_use]
    pub const fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// The device inside.
    pub const fn inner(&self) -> &D {
        &self.inner
    }

    /// Replaces the plan. Counting goes on.
    pub fn set_plan(&self, plan: impl Into<Vec<Rule>>) {
        *self.plan.lock().unwrap_or_else(PoisonError::into_inner) = plan.into();
    }

    /// Calls of a verb so far: what the next [`When::Nth`] has to exceed.
    pub fn calls(&self, verb: Verb) -> u64 {
        self.calls[verb as usize].load(Ordering::Relaxed)
    }

    /// Calls of all verbs so far.
    pub fn all_calls(&self) -> u64 {
        self.all_calls.load(Ordering::Relaxed)
    }

    /// Calls that went otherwise than without the plan.
    pub fn injected(&self) -> u64 {
        self.injected.load(Ordering::Relaxed)
    }

    /// Counts a call for so many pages, and returns what shall happen to it.
    fn next(&self, verb: Verb, nr_pages: usize) -> Option<Fault> {
        let call = self.calls[verb as usize].fetch_add(1, Ordering::Relaxed) + 1;
        let any_call = self.all_calls.fetch_add(1, Ordering::Relaxed) + 1;
        let plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let rule = plan.iter().find(|rule| match rule.verb {
            Some(affected) => affected == verb && rule.when.matches(call),
            None => rule.when.matches(any_call),
        })?;
        if matches!(rule.fault, Fault::Stop { done, .. } if done >= nr_pages) {
            return None;
        }
        self.injected.fetch_add(1, Ordering::Relaxed);
        Some(rule.fault)
    }
}

/// What a run that was cut to `done` pages says, after the device's own answer to those.
fn cut(outcome: Transfer, why: DeviceError) -> Transfer {
    match outcome.stop {
        None => Transfer::stopped(outcome.done, why),
        Some(_) => outcome,
    }
}

/// What [`Fault::Panic`] does.
fn panics() -> ! {
    panic!("a device panics, as planned");
}

/// Changes a byte of every page, at a place that differs from page to page.
fn garble(bytes: &mut [u8]) {
    for (index, page) in bytes.chunks_exact_mut(PAGE_SIZE).enumerate() {
        page[(index * 1031 + 17) % PAGE_SIZE] ^= 0x10;
    }
}

impl<D: Device> Device for Faulty<D> {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        let wanted = match self.next(Verb::Alloc, frames.len()) {
            // Fewer frames would mean that it is full, which is another thing; storing to them tells.
            Some(Fault::Stop { why: DeviceError::Lost, .. } | Fault::Garble | Fault::Stick(_)) | None => {
                frames.len()
            }
            Some(Fault::Stop { done, .. }) => done,
            Some(Fault::Panic) => panics(),
        };
        self.inner.alloc(&mut frames[..wanted])
    }

    fn alloc_large(&self) -> Option<DevicePfn> {
        match self.next(Verb::Alloc, LARGE_PAGES) {
            Some(Fault::Stop { why: DeviceError::Lost, .. } | Fault::Garble | Fault::Stick(_)) | None => {
                self.inner.alloc_large()
            }
            Some(Fault::Stop { .. }) => None,
            Some(Fault::Panic) => panics(),
        }
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        let Store { frames, bytes, access } = run;
        match self.next(Verb::Store, frames.len()) {
            Some(Fault::Stop { done, why }) => {
                let (frames, bytes) = (&frames[..done], &bytes[..done * PAGE_SIZE]);
                cut(self.inner.store(Store { frames, bytes, access }), why)
            }
            Some(Fault::Stick(time)) => {
                std::thread::sleep(time);
                self.inner.store(Store { frames, bytes, access })
            }
            Some(Fault::Garble) => {
                let mut wrong = bytes.to_vec();
                garble(&mut wrong);
                self.inner.store(Store { frames, bytes: &wrong, access })
            }
            Some(Fault::Panic) => panics(),
            None => self.inner.store(Store { frames, bytes, access }),
        }
    }

    fn fetch(&self, run: Fetch<'_>) -> Transfer {
        let Fetch { frames, bytes } = run;
        match self.next(Verb::Fetch, frames.len()) {
            Some(Fault::Stop { done, why }) => {
                let (frames, bytes) = (&frames[..done], &mut bytes[..done * PAGE_SIZE]);
                cut(self.inner.fetch(Fetch { frames, bytes }), why)
            }
            Some(Fault::Stick(time)) => {
                std::thread::sleep(time);
                self.inner.fetch(Fetch { frames, bytes })
            }
            Some(Fault::Garble) => {
                let outcome = self.inner.fetch(Fetch { frames, bytes });
                garble(&mut bytes[..outcome.done * PAGE_SIZE]);
                outcome
            }
            Some(Fault::Panic) => panics(),
            None => self.inner.fetch(Fetch { frames, bytes }),
        }
    }

    fn free(&self, frames: &[DevicePfn]) {
        if self.next(Verb::Free, usize::MAX) == Some(Fault::Panic) {
            panics();
        }
        self.inner.free(frames);
    }

    fn is_worth_keeping(&self, frame: DevicePfn) -> bool {
        self.inner.is_worth_keeping(frame)
    }

    fn holds(&self, frame: DevicePfn, bytes: &[u8]) -> bool {
        match self.next(Verb::Holds, usize::MAX) {
            Some(Fault::Stop { .. }) => false,
            Some(Fault::Panic) => panics(),
            Some(Fault::Garble | Fault::Stick(_)) | None => self.inner.holds(frame, bytes),
        }
    }

    fn patience(&self) -> Option<Duration> {
        self.patience.or_else(|| self.inner.patience())
    }

    fn memory(&self) -> Option<std::ops::Range<u64>> {
        self.inner.memory()
    }

    fn flush(&self) -> Result<(), DeviceError> {
        match self.next(Verb::Flush, usize::MAX) {
            Some(Fault::Stop { why, .. }) => Err(why),
            Some(Fault::Panic) => panics(),
            Some(Fault::Garble | Fault::Stick(_)) | None => self.inner.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Access;
    use crate::{Ram, conformance};

    fn rule(verb: Verb, when: When, fault: Fault) -> Rule {
        Rule { verb: Some(verb), when, fault }
    }

    fn device(plan: &[Rule]) -> (Faulty<Ram>, [DevicePfn; 4]) {
        let device = Faulty::new(Ram::new(8), []);
        let mut frames = [DevicePfn(0); 4];
        assert_eq!(device.alloc(&mut frames), 4);
        device.set_plan(plan);
        (device, frames)
    }

    fn store(device: &impl Device, frames: &[DevicePfn]) -> Transfer {
        let bytes = vec![9; frames.len() * PAGE_SIZE];
        device.store(Store { frames, bytes: &bytes, access: Access::Random })
    }

    fn fetch(device: &impl Device, frames: &[DevicePfn]) -> (Transfer, Vec<u8>) {
        let mut bytes = vec![0; frames.len() * PAGE_SIZE];
        (device.fetch(Fetch { frames, bytes: &mut bytes }), bytes)
    }

    #[test]
    fn conforms_without_a_plan() {
        conformance::check(|| Faulty::new(Ram::new(700), []));
    }

    #[test]
    fn the_nth_store_fails_and_the_next_succeeds() {
        let (device, frames) = device(&[rule(Verb::Store, When::Nth(2), Fault::fail(DeviceError::Io))]);
        assert_eq!(store(&device, &frames[..1]), Transfer::complete(1));
        assert_eq!(store(&device, &frames[1..2]), Transfer::stopped(0, DeviceError::Io));
        assert_eq!(store(&device, &frames[1..2]), Transfer::complete(1));
        assert_eq!((device.injected(), device.calls(Verb::Store)), (1, 3));
    }

    #[test]
    fn a_stop_part_way_does_the_first_pages() {
        let fault = Fault::Stop { done: 2, why: DeviceError::OutOfMemory };
        let (device, frames) = device(&[rule(Verb::Store, When::Every(2), fault)]);
        assert_eq!(store(&device, &[]), Transfer::complete(0));
        assert_eq!(store(&device, &frames), Transfer::stopped(2, DeviceError::OutOfMemory));
        assert_eq!(fetch(&device, &frames).0, Transfer::stopped(2, DeviceError::Unsupported));
        assert_eq!(store(&device, &frames[2..]), Transfer::complete(2));
        device.set_plan([rule(
            Verb::Alloc,
            When::From(1),
            Fault::Stop { done: 1, why: DeviceError::OutOfMemory },
        )]);
        assert_eq!(device.alloc(&mut [DevicePfn(0); 4]), 1);
    }

    #[test]
    fn a_lost_device_stays_lost() {
        let (device, frames) = device(&[]);
        device.set_plan([Rule::lost_from(device.all_calls() + 2)]);
        assert_eq!(store(&device, &frames[..1]), Transfer::complete(1));
        for _ in 0..2 {
            assert_eq!(fetch(&device, &frames[..1]).0, Transfer::stopped(0, DeviceError::Lost));
            assert_eq!(store(&device, &frames[1..2]), Transfer::stopped(0, DeviceError::Lost));
            let mut more = frames;
            assert_eq!(device.alloc(&mut more), 4, "it is lost, not full");
            device.free(&more);
            assert_eq!(device.flush(), Err(DeviceError::Lost));
            assert!(!device.holds(frames[0], &[9; PAGE_SIZE]));
        }
        device.free(&frames);
    }

    #[test]
    fn garbled_bytes_are_wrong_on_either_way() {
        let (device, frames) = device(&[rule(Verb::Store, When::Nth(1), Fault::Garble)]);
        assert_eq!(store(&device, &frames), Transfer::complete(4));
        let differs = |bytes: &[u8]| {
            bytes
                .chunks_exact(PAGE_SIZE)
                .map(|page| page.iter().filter(|byte| **byte != 9).count())
                .collect::<Vec<_>>()
        };
        assert_eq!(differs(&fetch(&device, &frames).1), [1, 1, 1, 1], "a byte of each page");
        device.set_plan([rule(Verb::Fetch, When::From(1), Fault::Garble)]);
        assert_eq!(differs(&fetch(&device, &frames).1), [0, 0, 0, 0], "the second wrong undoes the first");
    }

    #[test]
    fn chance_is_seeded() {
        let hits =
            |seed| (1..=6000).filter(|call| When::OneIn(10, seed).matches(*call)).collect::<Vec<u64>>();
        assert_eq!(hits(1), hits(1));
        assert_ne!(hits(1), hits(2));
        assert!((450..750).contains(&hits(3).len()), "{}", hits(3).len());
    }
}
