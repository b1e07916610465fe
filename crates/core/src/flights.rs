//! Calls of devices that may not return: a disk or a server that has stopped answering.
//!
//! A device that waits for something else says for how long that is to be borne ([`Device::patience`]). Each transfer to or
//! from it is a *flight*, which [`Engine::watch`] looks at now and then:
//!
//! ```text
//!     begin --> under way --> slow --> overdue --> (the call returns after all)
//!                   |          |          |
//!                   +-- land --+          +-- what it was to bring is given up: the page that a fault asked for is poison,
//!                       in time               the others are on the device as before; nobody waits for them any more
//! ```
//!
//! - A thread that makes such a call may be gone for long. So at most three are under way for each device, and the
//!   runtime has one thread more than that for all of them: pages that do not need the device are always served.
//! - What reclaim stores stays in staging meanwhile: whoever touches it gets a copy, and nothing is lost. While a device is slow
//!   reclaim passes it by.
//! - When a call returns that was overdue, what it brought is dropped. The buffer was its own until then, its frames were
//!   not.
//!
//! Other devices' calls (compression, copies in memory) return by themselves, and cost nothing here.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hmm_device::{Device, DeviceError, DevicePfn};

use crate::addr::{PageRange, Vpn};
use crate::engine::Engine;
use crate::kernel::Kernel;
use crate::registry::MAX_DEVICES;
use crate::state::{Frame, PageState, Ticket};
use crate::table::States;

/// Calls of a device with limited patience that are under way at most, those of faults, read-ahead and reclaim together.
pub(crate) const DEVICE_FLIGHTS: usize = 3;
/// A device is slow when a call has taken so long: a disk that spins up does not, one that is lost on the way does.
const SLOW: Duration = Duration::from_secs(1);

/// Who waits for a call: all that has to be known to do without it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Awaited {
    /// Who touches the pages that are fetched.
    Pages {
        /// That of the fetch.
        ticket: Ticket,
        /// The pages.
        range: PageRange,
        /// The frame of the first page, if a fault has asked for that.
        asked_for: Option<DevicePfn>,
    },
    /// A fault at this page, for which memory is made free by storing others.
    Fault(Vpn),
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    number: u64,
    device: u8,
    /// When it was first seen under way: the call itself does not look at a clock.
    since: Option<Instant>,
    is_slow: bool,
    is_overdue: bool,
    awaited: Option<Awaited>,
}

/// Why a call must not be made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grounded {
    /// As many are under way as may be. They end, or become overdue.
    Busy,
    /// As many are under way as may be, and all are overdue: the device does not answer.
    Hopeless,
}

/// All calls of such devices.
#[derive(Debug)]
pub(crate) struct Flights {
    /// By the device's number, in nanoseconds; 0 where calls return by themselves.
    patience: [AtomicU64; MAX_DEVICES],
    flights: Mutex<Vec<Flight>>,
    numbers: AtomicU64,
    /// How many there are, asked without the lock.
    len: AtomicU32,
    /// A bit for each device with a call that takes long, and for each with one that takes too long.
    slow: AtomicU32,
    overdue: AtomicU32,
}

/// The right to make one call. It ends with [`land`](Self::land), or when it is dropped.
#[derive(Debug)]
#[must_use = "the call is under way until it lands"]
pub(crate) struct Pass<'f> {
    flights: &'f Flights,
    /// `None`: the device's calls return by themselves.
    number: Option<u64>,
}

impl Flights {
    pub(crate) fn new() -> Self {
        Self {
            patience: [const { AtomicU64::new(0) }; MAX_DEVICES],
            flights: Mutex::new(Vec::with_capacity(MAX_DEVICES * DEVICE_FLIGHTS)),
            numbers: AtomicU64::new(0),
            len: AtomicU32::new(0),
            slow: AtomicU32::new(0),
            overdue: AtomicU32::new(0),
        }
    }

    /// A device has come under that number.
    pub(crate) fn expect_patience(&self, device: u8, with: &dyn Device) {
        let patience = with.patience().map_or(0, |patience| patience.as_nanos().clamp(1, u64::MAX.into()));
        let patience = u64::try_from(patience).unwrap_or(u64::MAX);
        self.patience[usize::from(device)].store(patience, Ordering::Relaxed);
    }

    fn patience(&self, device: u8) -> Option<Duration> {
        let nanos = self.patience.get(usize::from(device))?.load(Ordering::Relaxed);
        (nanos > 0).then(|| Duration::from_nanos(nanos))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Flight>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks whether a call of the device may be made.
    pub(crate) fn begin(&self, device: u8) -> Result<Pass<'_>, Grounded> {
        if self.patience(device).is_none() {
            return Ok(Pass { flights: self, number: None });
        }
        let mut flights = self.lock();
        let of_device = || flights.iter().filter(|flight| flight.device == device);
        if of_device().count() >= DEVICE_FLIGHTS {
            let is_hopeless = of_device().all(|flight| flight.is_overdue);
            return Err(if is_hopeless { Grounded::Hopeless } else { Grounded::Busy });
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (is_slow, is_overdue) = (false, false);
        flights.push(Flight { number, device, since: None, is_slow, is_overdue, awaited: None });
        self.changed(&flights);
        Ok(Pass { flights: self, number: Some(number) })
    }

    /// The same, of who can do without: not while one takes long.
    pub(crate) fn begin_if_fast(&self, device: u8) -> Result<Pass<'_>, Grounded> {
        if self.overdue.load(Ordering::Relaxed) >> device & 1 == 1 {
            // Whether it ever answers nobody knows: what has another place to go goes there.
            return Err(Grounded::Hopeless);
        }
        if self.slow.load(Ordering::Relaxed) >> device & 1 == 1 {
            return Err(Grounded::Busy);
        }
        self.begin(device)
    }

    /// For a call that a driver makes of its own device: how long it waits is its own affair.
    pub(crate) fn of_driver(&self) -> Pass<'_> {
        Pass { flights: self, number: None }
    }

    /// Whether a device takes long, and may answer yet.
    fn any_slow(&self) -> bool {
        self.slow.load(Ordering::Relaxed) & !self.overdue.load(Ordering::Relaxed) != 0
    }

    /// Looks at all calls; gives one that has just become overdue.
    fn next_overdue(&self, now: Instant) -> Option<(u8, Option<Awaited>)> {
        let mut flights = self.lock();
        let mut found = None;
        for flight in flights.iter_mut() {
            let age = now.saturating_duration_since(*flight.since.get_or_insert(now));
            flight.is_slow = age >= SLOW;
            let is_late = self.patience(flight.device).is_some_and(|patience| age >= patience);
            if found.is_none() && is_late && !flight.is_overdue {
                flight.is_overdue = true;
                found = Some((flight.device, flight.awaited));
            }
        }
        self.changed(&flights);
        found
    }

    /// Takes a flight out. Says whether it was in time.
    fn end(&self, number: u64) -> bool {
        let mut flights = self.lock();
        let Some(at) = flights.iter().position(|flight| flight.number == number) else { return false };
        let flight = flights.swap_remove(at);
        self.changed(&flights);
        !flight.is_overdue
    }

    /// Brings what is asked without the lock up to date.
    fn changed(&self, flights: &[Flight]) {
        let devices = |is: fn(&Flight) -> bool| {
            flights.iter().filter(|flight| is(flight)).fold(0, |devices, flight| devices | 1 << flight.device)
        };
        self.len.store(u32::try_from(flights.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
        self.slow.store(devices(|flight| flight.is_slow), Ordering::Relaxed);
        self.overdue.store(devices(|flight| flight.is_overdue), Ordering::Relaxed);
    }
}

impl Pass<'_> {
    /// Somebody waits for the call.
    pub(crate) fn is_awaited(&self, awaited: Awaited) {
        let Some(number) = self.number else { return };
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.iter_mut().find(|flight| flight.number == number) {
            flight.awaited = Some(awaited);
        }
    }

    /// Whether the call may not return.
    pub(crate) const fn may_be_overdue(&self) -> bool {
        self.number.is_some()
    }

    /// Whether the call takes too long: it must not be made once more.
    pub(crate) fn is_overdue(&self) -> bool {
        let is_ours = |flight: &Flight| Some(flight.number) == self.number;
        self.may_be_overdue() && self.flights.lock().iter().any(|flight| is_ours(flight) && flight.is_overdue)
    }

    /// The call has returned. False: too late, what it was to bring was given up.
    #[must_use = "what comes too late must not be used"]
    pub(crate) fn land(mut self) -> bool {
        self.number.take().is_none_or(|number| self.flights.end(number))
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number.take() {
            self.flights.end(number);
        }
    }
}

impl<K: Kernel> Engine<K> {
    /// How many calls of devices may be under way that do not return by themselves. The runtime needs a thread more than that
    /// which serves faults, and calls [`watch`](Self::watch) if this is not 0.
    pub fn max_flights(&self) -> usize {
        let is_limited = |device: &&std::sync::Arc<dyn Device>| device.patience().is_some();
        self.devices().iter().filter(is_limited).count() * DEVICE_FLIGHTS
    }

    /// Gives up what devices were to bring and have not in the time that they have for it. To be called now and then, a few
    /// times in a second, by a thread that is not in a device's call itself; the caller holds nothing of the engine.
    pub fn watch(&self, now: Instant) {
        while self.flights.len.load(Ordering::Relaxed) > 0
            && let Some((device, awaited)) = self.flights.next_overdue(now)
        {
            self.tell_failure(device, DeviceError::TimedOut);
            if let Some(awaited) = awaited {
                self.give_up(awaited);
            }
        }
    }

    /// Whether a device that could take or give pages has not answered for a while, and still may: waiting can help.
    pub fn awaits_device(&self) -> bool {
        self.flights.any_slow()
    }

    /// Nobody waits for the call any more.
    fn give_up(&self, awaited: Awaited) {
        match awaited {
            Awaited::Fault(page) => self.kernel.wake(PageRange::new(page, 1)),
            Awaited::Pages { ticket, range, asked_for } => {
                let gate = self.gate();
                self.give_up_pages(ticket, range, asked_for);
                self.kernel.wake(range);
                self.end_moved(ticket);
                drop(gate);
            }
        }
    }

    fn give_up_pages(&self, ours: Ticket, range: PageRange, asked_for: Option<DevicePfn>) {
        let mut states = self.table.block(range.start.block()).lock();
        for page in range.iter() {
            if let PageState::Fetching { ticket, frame } = states.get(page.index())
                && ticket == ours
                && page == range.start
                && asked_for == Some(frame.pfn)
            {
                // The kernel is told when the page is touched again, which is at once.
                self.lose(&mut states, page, frame);
            } else {
                self.end_state(&mut states, ours, page);
            }
        }
    }

    /// The page's bytes are lost with the frame.
    pub(crate) fn lose(&self, states: &mut States, page: Vpn, frame: Frame) {
        states.set(page.index(), PageState::Poisoned);
        self.forget_frame(frame);
        self.stats().pgpoison.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use hmm_device::Ram;
    use hmm_device::decorate::Faulty;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Device 1 has patience, the others return by themselves.
    fn flights() -> Flights {
        let flights = Flights::new();
        flights.expect_patience(0, &Ram::new(1));
        flights.expect_patience(1, &Faulty::new(Ram::new(1), []).with_patience(PATIENCE));
        flights
    }

    #[test]
    fn calls_that_return_by_themselves_are_not_counted() {
        let flights = flights();
        let passes: Vec<_> = (0..100).map(|_| flights.begin(0).expect("any number")).collect();
        assert_eq!(flights.len.load(Ordering::Relaxed), 0);
        assert!(passes.into_iter().all(Pass::land));
    }

    #[test]
    fn no_more_are_under_way_than_may_be() {
        let (flights, begin) = (flights(), Instant::now());
        let mut passes: Vec<_> = (0..DEVICE_FLIGHTS).map(|_| flights.begin(1).expect("so many")).collect();
        assert_eq!(flights.begin(1).expect_err("one more"), Grounded::Busy);
        assert!(
            flights.next_overdue(begin).is_none() && flights.next_overdue(begin + PATIENCE / 2).is_none()
        );
        assert!(flights.any_slow(), "waiting may help");
        let overdue = (0..=DEVICE_FLIGHTS).map_while(|_| flights.next_overdue(begin + PATIENCE)).count();
        assert_eq!(overdue, DEVICE_FLIGHTS, "each once");
        assert!(!flights.any_slow(), "it does not");
        assert_eq!(flights.begin(1).expect_err("nobody answers"), Grounded::Hopeless);
        assert!(!passes.pop().expect("is one").land(), "too late");
        assert_eq!(flights.begin_if_fast(1).expect_err("others are overdue"), Grounded::Hopeless);
        drop(flights.begin(1).expect("who has to may try"));
    }

    #[test]
    fn a_device_that_has_answered_is_as_fast_as_what_is_under_way() {
        let (flights, begin) = (flights(), Instant::now());
        let late = flights.begin(1).expect("the first");
        assert!(flights.next_overdue(begin).is_none());
        let other = flights.begin(1).expect("the second");
        assert!(flights.next_overdue(begin + PATIENCE).is_some());
        assert_eq!(flights.begin_if_fast(1).expect_err("is overdue"), Grounded::Hopeless);
        assert!(!late.land());
        assert!(
            flights.begin_if_fast(1).is_ok_and(Pass::land),
            "at once, and not when it is looked at again"
        );
        assert!(flights.next_overdue(begin + PATIENCE + SLOW).is_none());
        assert_eq!(flights.begin_if_fast(1).expect_err("is slow"), Grounded::Busy);
        assert!(other.land());
    }
}
