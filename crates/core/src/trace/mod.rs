//! What happens to pages, one event after the other, for whoever wants to look at it later.
//!
//! The engine tells its kernel door of each event ([`Kernel::record`](crate::kernel::Kernel::record)), if that wants to know.
//! An [`Event`] is packed with its time and its process into a [`Record`] of two words; a [`Ring`] carries records from any
//! number of threads and processes to one that writes them down.
//!
//! A touch of a page that is there is no event: the engine does not see it.

mod ring;

pub use ring::{PLACES, Ring};

use crate::addr::Vpn;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum What {
    /// A process begins, or has executed another program: nothing is known of it any more.
    Began = 1,
    /// A touch of a hole: pages were filled with zeroes.
    FirstTouch = 2,
    /// A touch of a page that waited in staging: pages came back.
    SecondChance = 3,
    /// A touch of a page on a device: pages were fetched.
    Fetch = 4,
    /// A touch of a page that somebody was fetching.
    Waited = 5,
    /// A touch of a page that was being stored: a copy came back.
    Copied = 6,
    /// Pages were fetched ahead of need.
    Ahead = 7,
    /// Pages left the program for staging; the detail says why.
    Evict = 8,
    /// Pages were stored to a device.
    Store = 9,
    /// A page left for a device that had it still.
    Unchanged = 10,
    /// Pages that came home keep their frames on the device, or some of them do.
    Kept = 11,
    /// The program gave pages up.
    GaveUp = 12,
    /// The program moved pages away from here,
    MovedFrom = 13,
    /// and they are here now: the ones that its last `MovedFrom` says.
    MovedTo = 14,
    /// So many events were lost in front of this (in the place of pages; there is no page).
    Lost = 15,
}

impl What {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Began,
        Self::FirstTouch,
        Self::SecondChance,
        Self::Fetch,
        Self::Waited,
        Self::Copied,
        Self::Ahead,
        Self::Evict,
        Self::Store,
        Self::Unchanged,
        Self::Kept,
        Self::GaveUp,
        Self::MovedFrom,
        Self::MovedTo,
        Self::Lost,
    ];

    /// The one with this number.
    pub fn of_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number.checked_sub(1)?)).copied()
    }

    /// Whether the program touched the event's page.
    pub const fn is_touch(self) -> bool {
        matches!(self, Self::FirstTouch | Self::SecondChance | Self::Fetch | Self::Waited | Self::Copied)
    }
}

/// Why pages left: the detail of [`What::Evict`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Why {
    /// Little memory was free.
    Low = 0,
    /// A fault found none.
    Fault = 1,
    /// The program or the user of the library said so.
    Order = 2,
}

/// Set in the detail of a touch that continued a stream.
pub const IN_STREAM: u8 = 0x80;

/// The most pages of an event.
pub const MAX_PAGES: u32 = (1 << NR_BITS) - 1;

const PROCESS_BITS: u32 = 10;
const BEFORE_BITS: u32 = 10;
const WHAT_BITS: u32 = 6;
const NR_BITS: u32 = 20;
const DETAIL_BITS: u32 = 8;
const TIME_SHIFT: u32 = PROCESS_BITS + BEFORE_BITS + WHAT_BITS;
const PAGE_SHIFT: u32 = NR_BITS + DETAIL_BITS;

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub what: What,
    /// The page that was touched, or the first of those that it happened to.
    pub page: Vpn,
    /// How many it happened to, at most [`MAX_PAGES`].
    pub nr_pages: u32,
    /// How many of those are in front of `page`, at most 1023.
    pub before: u16,
    /// A tier's number, with [`IN_STREAM`] for a touch; or a [`Why`].
    pub detail: u8,
}

/// An event with its time and its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Microseconds since the beginning; what is longer than three days stays there.
    pub time_us: u64,
    /// A number for the process, at most 1023. One that has ended may have had the same.
    pub process: u16,
    /// The event.
    pub event: Event,
}

impl Record {
    /// As two words.
    pub fn pack(&self) -> [u64; 2] {
        let event = &self.event;
        let time = self.time_us.min((1 << (64 - TIME_SHIFT)) - 1);
        let field = |value: u16, bits: u32| u64::from(value) & ((1 << bits) - 1);
        [
            time << TIME_SHIFT
                | field(self.process, PROCESS_BITS) << (BEFORE_BITS + WHAT_BITS)
                | field(event.before, BEFORE_BITS) << WHAT_BITS
                | u64::from(event.what as u8),
            event.page.0 << PAGE_SHIFT
                | u64::from(event.nr_pages.min(MAX_PAGES)) << DETAIL_BITS
                | u64::from(event.detail),
        ]
    }

    /// From two words. `None`: they are no record.
    pub fn unpack(words: [u64; 2]) -> Option<Self> {
        let part = |word: u64, shift: u32, bits: u32| (word >> shift) & ((1 << bits) - 1);
        let [first, second] = words;
        let what = What::of_number(u8::try_from(part(first, 0, WHAT_BITS)).ok()?)?;
        let event = Event {
            what,
            page: Vpn(second >> PAGE_SHIFT),
            nr_pages: u32::try_from(part(second, DETAIL_BITS, NR_BITS)).ok()?,
            before: u16::try_from(part(first, WHAT_BITS, BEFORE_BITS)).ok()?,
            detail: u8::try_from(part(second, 0, DETAIL_BITS)).ok()?,
        };
        let process = u16::try_from(part(first, BEFORE_BITS + WHAT_BITS, PROCESS_BITS)).ok()?;
        Some(Self { time_us: first >> TIME_SHIFT, process, event })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_unpacked_as_they_were_packed() {
        for (number, what) in (1..).zip(What::ALL) {
            assert_eq!(what as u8, number);
            let event =
                Event { what, page: Vpn((1 << 36) - 1), nr_pages: MAX_PAGES, before: 1023, detail: 255 };
            let most = Record { time_us: (1 << 38) - 1, process: 1023, event };
            assert_eq!(Record::unpack(most.pack()), Some(most));
            let event = Event { what, page: Vpn(5), nr_pages: 3, before: 1, detail: 0 };
            let some = Record { time_us: 7, process: 2, event };
            assert_eq!(Record::unpack(some.pack()), Some(some));
        }
        assert_eq!(Record::unpack([0, 0]), None);
        assert_eq!(Record::unpack([63, 0]), None);
    }
}
