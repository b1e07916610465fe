//! Records on their way from whoever makes them to the one that writes them down.
//!
//! Many put records in, from several processes that share the memory; one takes them out. Nobody waits: who finds no
//! room counts its record as lost. Who dies between taking a place and filling it leaves it unfilled: the reader notices
//! that it does not get on, and [`skip`](Ring::skip)s it.
//!
//! Plain atomics in a fixed layout, all zero in the beginning.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::Record;

/// Places of the ring that a run has: a tenth of a second of the most that was seen.
pub const PLACES: usize = 1 << 15;

#[derive(Debug, Default)]
#[repr(C)]
struct Place {
    /// The number of the record in it, from 1; written last.
    number: AtomicU64,
    words: [AtomicU64; 2],
}

/// See the module. `N` is a power of two.
#[derive(Debug)]
#[repr(C)]
pub struct Ring<const N: usize> {
    is_on: AtomicU32,
    /// Places taken so far.
    nr_put: AtomicU64,
    /// Places read so far.
    nr_taken: AtomicU64,
    nr_lost: AtomicU64,
    places: [Place; N],
}

impl<const N: usize> Ring<N> {
    /// An empty one, that is off.
    pub fn new() -> Self {
        Self {
            is_on: AtomicU32::new(0),
            nr_put: AtomicU64::new(0),
            nr_taken: AtomicU64::new(0),
            nr_lost: AtomicU64::new(0),
            places: std::array::from_fn(|_| Place::default()),
        }
    }

    /// Whether records are wanted.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed) != 0
    }

    /// Says whether they are.
    pub fn turn(&self, on: bool) {
        self.is_on.store(u32::from(on), Ordering::Relaxed);
    }

    /// Puts a record in, or counts it as lost.
    pub fn put(&self, record: &Record) {
        let mut number = self.nr_put.load(Ordering::Relaxed);
        loop {
            // Pairs with `take`: what was there has been read.
            if number.wrapping_sub(self.nr_taken.load(Ordering::Acquire)) >= N as u64 {
                self.nr_lost.fetch_add(1, Ordering::Relaxed);
                return;
            }
            let next = number.wrapping_add(1);
            match self.nr_put.compare_exchange_weak(number, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => number = now,
            }
        }
        let place = self.place(number);
        for (to, word) in place.words.iter().zip(record.pack()) {
            to.store(word, Ordering::Relaxed);
        }
        place.number.store(number.wrapping_add(1), Ordering::Release);
    }

    /// The oldest record, as its words. `None`: there is none, or it is not complete. To be called by one thread only.
    pub fn take(&self) -> Option<[u64; 2]> {
        let number = self.nr_taken.load(Ordering::Relaxed);
        let place = self.place(number);
        if place.number.load(Ordering::Acquire) != number.wrapping_add(1) {
            return None;
        }
        let words = [&place.words[0], &place.words[1]].map(|word| word.load(Ordering::Relaxed));
        self.nr_taken.store(number.wrapping_add(1), Ordering::Release);
        Some(words)
    }

    /// Whether a place is taken that [`take`](Self::take) did not give.
    pub fn is_behind(&self) -> bool {
        self.nr_put.load(Ordering::Relaxed) != self.nr_taken.load(Ordering::Relaxed)
    }

    /// Gives up the oldest record, which does not come: it is lost. To be called by the same thread as [`take`](Self::take).
    pub fn skip(&self) {
        if self.is_behind() {
            let number = self.nr_taken.load(Ordering::Relaxed);
            self.nr_taken.store(number.wrapping_add(1), Ordering::Release);
            self.nr_lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records lost so far.
    pub fn nr_lost(&self) -> u64 {
        self.nr_lost.load(Ordering::Relaxed)
    }

    #[expect(clippy::cast_possible_truncation, reason = "less than N")]
    fn place(&self, number: u64) -> &Place {
        &self.places[(number % N as u64) as usize]
    }
}

impl<const N: usize> Default for Ring<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Event, What};
    use super::*;
    use crate::addr::Vpn;

    fn record(page: u64, process: u16) -> Record {
        let event = Event { what: What::Fetch, page: Vpn(page), nr_pages: 1, before: 0, detail: 0 };
        Record { time_us: 0, process, event }
    }

    fn take(ring: &Ring<8>) -> Option<u64> {
        ring.take().map(|words| Record::unpack(words).unwrap().event.page.0)
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let ring = Ring::<8>::new();
        (0..11).for_each(|page| ring.put(&record(page, 0)));
        assert_eq!(ring.nr_lost(), 3);
        assert_eq!(
            (0..9).map(|_| take(&ring)).collect::<Vec<_>>(),
            [(0..8).map(Some).collect(), vec![None]].concat()
        );
        ring.put(&record(20, 0));
        assert_eq!((take(&ring), take(&ring), ring.is_behind()), (Some(20), None, false));
    }

    #[test]
    fn a_place_that_is_never_filled_is_skipped() {
        let ring = Ring::<8>::new();
        // Its process was killed at this point.
        ring.nr_put.fetch_add(1, Ordering::Relaxed);
        (1..11).for_each(|page| ring.put(&record(page, 0)));
        assert_eq!((take(&ring), ring.is_behind(), ring.nr_lost()), (None, true, 3));
        ring.skip();
        assert_eq!((1..8).map_while(|_| take(&ring)).collect::<Vec<_>>(), (1..8).collect::<Vec<_>>());
        ring.skip();
        assert_eq!(ring.nr_lost(), 4, "there was nothing to skip");
    }

    #[test]
    fn each_thread_s_records_come_in_order_and_none_twice() {
        const EACH: u64 = 20_000;
        let ring = Ring::<64>::new();
        let mut seen = [0_u64; 3];
        let mut nr_taken = 0;
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..3)
                .map(|process| {
                    let ring = &ring;
                    scope.spawn(move || {
                        (1..=EACH / 2).for_each(|page| ring.put(&record(page, process)));
                        // Whenever the reader gets to run: from then on there is room for more than the ring holds.
                        while ring.nr_taken.load(Ordering::Relaxed) == 0 {
                            std::thread::yield_now();
                        }
                        (EACH / 2 + 1..=EACH).for_each(|page| ring.put(&record(page, process)));
                    })
                })
                .collect();
            let mut last_round = false;
            loop {
                while let Some(words) = ring.take() {
                    let record = Record::unpack(words).unwrap();
                    let last = &mut seen[usize::from(record.process)];
                    assert!(record.event.page.0 > *last);
                    *last = record.event.page.0;
                    nr_taken += 1;
                }
                if last_round {
                    break;
                }
                last_round = writers.iter().all(std::thread::ScopedJoinHandle::is_finished);
            }
        });
        assert_eq!(nr_taken + ring.nr_lost(), 3 * EACH);
        assert!(nr_taken > 64);
    }
}
