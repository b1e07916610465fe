//! Pages that the device and the CPU take from each other.
//!
//! A page that a fault brings to the device for the third time within 500 us, and that the device did not give up by
//! itself in between, bounces: for 150 ms it stays in system memory, where both sides access it. The figures are those of
//! NVIDIA's driver. Time is given, not read, so that this can be tested.
//!
//! Pages are remembered in a table of fixed size. A page that takes another's place is at worst a bounce that is not seen.

use std::time::Duration;

use hmm_core::addr::{PageRange, Vpn};

/// Bounces that are too many.
pub(crate) const MAX_BOUNCES: u8 = 3;
/// Time in which they have to happen.
pub(crate) const LAPSE: Duration = Duration::from_micros(500);
/// How long the page stays in system memory then.
const STAY: Duration = Duration::from_millis(150);
const NR_SLOTS: usize = 4096;

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    page: u64,
    /// When the page came the first time.
    since: Duration,
    bounces: u8,
    /// Until when it stays in system memory.
    stays_until: Duration,
}

/// What is remembered of pages. Times are since any fixed moment.
#[derive(Debug)]
pub(crate) struct Thrash {
    slots: Box<[Slot]>,
}

impl Thrash {
    pub(crate) fn new() -> Self {
        Self { slots: vec![Slot::default(); NR_SLOTS].into() }
    }

    /// A fault is about to bring a page. Whether it has to stay in system memory instead.
    pub(crate) fn comes(&mut self, page: Vpn, now: Duration) -> bool {
        let slot = &mut self.slots[index_of(page)];
        if slot.page != page.0 || now.saturating_sub(slot.since) > LAPSE && slot.stays_until <= now {
            *slot = Slot { page: page.0, since: now, bounces: 0, stays_until: Duration::ZERO };
        }
        if slot.stays_until > now {
            return true;
        }
        slot.bounces += 1;
        if slot.bounces > MAX_BOUNCES {
            slot.stays_until = now + STAY;
            return true;
        }
        false
    }

    /// Whether a page has to stay in system memory.
    pub(crate) fn stays(&self, page: Vpn, now: Duration) -> bool {
        let slot = &self.slots[index_of(page)];
        slot.page == page.0 && slot.stays_until > now
    }

    /// The device gave pages up by itself: that they come back is no bounce.
    pub(crate) fn evicted(&mut self, range: PageRange) {
        for page in range.iter() {
            let slot = &mut self.slots[index_of(page)];
            if slot.page == page.0 {
                *slot = Slot::default();
            }
        }
    }
}

fn index_of(page: Vpn) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "an index in the table")]
    let index = (page.0 % NR_SLOTS as u64) as usize;
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: Vpn = Vpn(77);

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    #[test]
    fn three_bounces_in_time_make_a_page_stay_for_a_while() {
        let mut thrash = Thrash::new();
        assert!(!thrash.comes(PAGE, us(0)));
        assert!(!thrash.comes(PAGE, us(100)));
        assert!(!thrash.comes(PAGE, us(200)));
        assert!(thrash.comes(PAGE, us(300)), "the third time it comes back");
        assert!(thrash.stays(PAGE, us(150_299)));
        assert!(!thrash.stays(PAGE, us(150_301)));
        assert!(!thrash.comes(PAGE, us(150_301)), "it may come again");
    }

    #[test]
    fn slow_bounces_are_none() {
        let mut thrash = Thrash::new();
        assert!((0..100).all(|nr| !thrash.comes(PAGE, us(nr * 250))));
    }

    #[test]
    fn a_page_that_was_evicted_did_not_bounce() {
        let mut thrash = Thrash::new();
        for nr in 0..100 {
            assert!(!thrash.comes(PAGE, us(nr)));
            thrash.evicted(PageRange::new(PAGE, 1));
        }
    }
}
