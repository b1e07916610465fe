//! What a device does wrong on purpose, so that one can see what that does to a program: `lz4:lost-after=1000`,
//! `file:path=/var/tmp,io-errors=50,latency=200`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hmm_device::decorate::{Fault, Faulty, Rule, Throttle, Throttled, Verb, When};
use hmm_device::{Device, DeviceError};

/// Nobody waits for so long.
const FOR_EVER: Duration = Duration::from_secs(1 << 30);

/// What goes wrong. By default nothing does.
///
/// What happens by chance follows from the seed and from the order of the calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rehearsal {
    /// In each process, the device is lost after so many calls. What it held is gone then.
    pub lost_after: Option<u64>,
    /// One in so many transfers fails with an error that may pass: 0 for none.
    pub io_errors: u64,
    /// One in so many fetches finds that what was stored has changed: 0 for none. Those pages are lost.
    pub corrupt: u64,
    /// Microseconds that each transfer takes longer.
    pub latency_us: u64,
    /// In each process, no transfer returns any more after so many.
    pub stuck_after: Option<u64>,
    /// In each process, the driver panics after so many calls.
    pub panic_after: Option<u64>,
    /// Of what happens by chance.
    pub seed: u64,
}

impl Rehearsal {
    /// What can be asked for, for messages.
    pub(crate) const KNOWN: &'static str = "lost-after=CALLS, io-errors=ONE-IN, corrupt=ONE-IN, latency=MICROSECONDS, stuck-after=CALLS, panic-after=CALLS, seed=N for rehearsals";

    /// Asks `count` for the value of each option.
    ///
    /// # Errors
    /// What `count` says.
    pub(crate) fn read<E>(mut count: impl FnMut(&'static str) -> Result<Option<u64>, E>) -> Result<Self, E> {
        Ok(Self {
            lost_after: count("lost-after")?,
            io_errors: count("io-errors")?.unwrap_or(0),
            corrupt: count("corrupt")?.unwrap_or(0),
            latency_us: count("latency")?.unwrap_or(0),
            stuck_after: count("stuck-after")?,
            panic_after: count("panic-after")?,
            seed: count("seed")?.unwrap_or(0),
        })
    }

    /// Whether pages that the device holds may be lost.
    pub const fn may_lose(&self) -> bool {
        self.lost_after.is_some()
            || self.stuck_after.is_some()
            || self.panic_after.is_some()
            || self.io_errors > 0
            || self.corrupt > 0
    }

    /// The device that does as `device` does, but for what goes wrong. One that gets stuck has a
    /// [patience](Device::patience): its own, or the one that is given here.
    pub fn of(self, device: Arc<dyn Device>, patience: Option<Duration>) -> Arc<dyn Device> {
        let plan = self.plan();
        let patience = device.patience().or(patience.filter(|_| self.stuck_after.is_some()));
        let device: Arc<dyn Device> = match patience {
            _ if plan.is_empty() => device,
            None => Arc::new(Faulty::new(device, plan)),
            Some(patience) => Arc::new(Faulty::new(device, plan).with_patience(patience)),
        };
        if self.latency_us == 0 {
            return device;
        }
        let throttle = Throttle { latency: Duration::from_micros(self.latency_us), bytes_per_s: None };
        Arc::new(Throttled::new(device, throttle))
    }

    fn plan(&self) -> Vec<Rule> {
        // Each with a chance of its own: the first rule that matches decides.
        let by_chance = |verb, one_in, why| {
            let when = When::OneIn(one_in, self.seed << 1 | u64::from(why == DeviceError::Corrupt));
            (one_in > 0).then_some(Rule { verb: Some(verb), when, fault: Fault::fail(why) })
        };
        let lost = self.lost_after.map(|calls| Rule::lost_from(calls.saturating_add(1)));
        let after = |calls: u64| When::From(calls.saturating_add(1));
        let panics =
            self.panic_after.map(|calls| Rule { verb: None, when: after(calls), fault: Fault::Panic });
        let passing = [Verb::Store, Verb::Fetch].map(|verb| by_chance(verb, self.io_errors, DeviceError::Io));
        let corrupt = by_chance(Verb::Fetch, self.corrupt, DeviceError::Corrupt);
        let stuck = |verb| {
            Some(Rule { verb: Some(verb), when: after(self.stuck_after?), fault: Fault::Stick(FOR_EVER) })
        };
        let stuck = [Verb::Store, Verb::Fetch].map(stuck);
        lost.into_iter()
            .chain(panics)
            .chain(stuck.into_iter().flatten())
            .chain(passing.into_iter().flatten())
            .chain(corrupt)
            .collect()
    }
}

impl fmt::Display for Rehearsal {
    /// Each option behind a comma.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls = [("lost", self.lost_after), ("stuck", self.stuck_after), ("panic", self.panic_after)];
        for (what, calls) in calls {
            if let Some(calls) = calls {
                write!(f, ",{what}-after={calls}")?;
            }
        }
        let others = [
            ("io-errors", self.io_errors),
            ("corrupt", self.corrupt),
            ("latency", self.latency_us),
            ("seed", self.seed),
        ];
        others
            .iter()
            .filter(|(_, value)| *value > 0)
            .try_for_each(|(name, value)| write!(f, ",{name}={value}"))
    }
}

#[cfg(test)]
mod tests {
    use hmm_device::{Access, DevicePfn, Fetch, PAGE_SIZE, Ram, Store, Transfer};

    use super::*;

    /// How many of 3000 stores, and of as many fetches, do not succeed.
    fn failures(rehearsal: Rehearsal) -> [Vec<DeviceError>; 2] {
        let device = rehearsal.of(Arc::new(Ram::new(1)), None);
        let (mut frames, mut bytes) = ([DevicePfn(0)], vec![3; PAGE_SIZE]);
        let (mut stores, mut fetches) = (Vec::new(), Vec::new());
        for _ in 0..3000 {
            assert_eq!(device.alloc(&mut frames), 1);
            let stored = device.store(Store { frames: &frames, bytes: &bytes, access: Access::Random });
            stores.extend(stored.stop);
            if stored == Transfer::complete(1) {
                fetches.extend(device.fetch(Fetch { frames: &frames, bytes: &mut bytes }).stop);
            }
            device.free(&frames);
        }
        [stores, fetches]
    }

    #[test]
    fn nothing_goes_wrong_unless_it_is_asked_for() {
        assert_eq!(failures(Rehearsal::default()), [vec![], vec![]]);
        assert!(!Rehearsal { latency_us: 1, ..Rehearsal::default() }.may_lose());
    }

    #[test]
    fn what_is_asked_for_goes_wrong() {
        let rehearsal = Rehearsal { io_errors: 10, corrupt: 5, seed: 1, ..Rehearsal::default() };
        let [stores, fetches] = failures(rehearsal);
        assert!((200..400).contains(&stores.len()) && stores.iter().all(|why| *why == DeviceError::Io));
        let count = |error| fetches.iter().filter(|why| **why == error).count();
        assert!((200..400).contains(&count(DeviceError::Io)), "{}", count(DeviceError::Io));
        assert!((350..750).contains(&count(DeviceError::Corrupt)), "{}", count(DeviceError::Corrupt));
        assert_eq!(failures(rehearsal), [stores.clone(), fetches], "the same again");
        assert_ne!(failures(Rehearsal { seed: 2, ..rehearsal })[0], stores);
        let [stores, _] = failures(Rehearsal { lost_after: Some(40), ..Rehearsal::default() });
        assert!(stores.len() > 2900 && stores.iter().all(|why| *why == DeviceError::Lost));
    }

    #[test]
    fn a_slow_device_takes_its_time() {
        let start = std::time::Instant::now();
        assert_eq!(failures(Rehearsal { latency_us: 20, ..Rehearsal::default() }), [vec![], vec![]]);
        assert!(start.elapsed() >= Duration::from_millis(120), "6000 transfers");
    }
}
