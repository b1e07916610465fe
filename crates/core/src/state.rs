//! The state of a page in one 64-bit word.
//!
//! ```text
//! bits  0..4   kind        bits  8..9   has a frame     bits 12..32  slot or ticket
//! bits  4..8   device      bits  9..10  pinned          bits 32..64  frame number on the device
//!                          bits 10..11  shared
//! ```
//!
//! The all-zero word is [`PageState::None`], so that fresh tables need no initialisation.

use hmm_device::DevicePfn;

use crate::addr::Slot;

/// A frame and the device it is on (an index into the engine's list of devices).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Which device.
    pub device: u8,
    /// Which frame there.
    pub pfn: DevicePfn,
}

/// Names one fetch in flight, so that whoever completes it can tell its own pages from later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u32);

impl Ticket {
    const MASK: u32 = (1 << 20) - 1;

    /// The ticket number `counter`, which may wrap.
    pub const fn new(counter: u32) -> Self {
        Self(counter & Self::MASK)
    }
}

/// Where the bytes of a page are (I1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// Never touched, or given back: a hole that reads as zeroes.
    None,
    /// Mapped in the program. A frame is a copy that may be out of date: only the device can say
    /// ([`hmm_device::Device::holds`]).
    System {
        /// A copy on a device, perhaps stale.
        copy: Option<Frame>,
    },
    /// On the way home; the frame still holds the bytes.
    Fetching {
        /// The fetch.
        ticket: Ticket,
        /// The frame it reads.
        frame: Frame,
    },
    /// The program gave the page up while it was being fetched: whoever fetches frees the frame.
    Dropped {
        /// The fetch.
        ticket: Ticket,
        /// The frame it reads.
        frame: Frame,
    },
    /// Out of the program, in staging: its second chance.
    Staged {
        /// Where.
        slot: Slot,
        /// A copy on a device, perhaps stale.
        copy: Option<Frame>,
    },
    /// In staging, being read by a store. Who stores owns the slot.
    Storing {
        /// Where.
        slot: Slot,
    },
    /// On a device, nowhere else.
    Device {
        /// Where.
        frame: Frame,
    },
    /// In a frame of a coherent device, whose memory the program has mapped: the CPU accesses it without a fault.
    Coherent {
        /// Which.
        frame: Frame,
        /// Since a fork somebody else may map it, too: whoever writes to it gets a copy.
        shared: bool,
    },
    /// Out of the program, in memory that one device alone may access, until the CPU touches it.
    Exclusive {
        /// Where.
        slot: Slot,
    },
    /// Lost: whoever touches it gets SIGBUS.
    Poisoned,
}

/// A [`PageState`] as it is kept, with the page's pin.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Word(u64);

const KIND_MASK: u64 = 0xf;
const NONE: u64 = 0;
const SYSTEM: u64 = 1;
const FETCHING: u64 = 2;
const DROPPED: u64 = 3;
const STAGED: u64 = 4;
const STORING: u64 = 5;
const DEVICE: u64 = 6;
const POISONED: u64 = 7;
const EXCLUSIVE: u64 = 8;
const COHERENT: u64 = 9;
const HAS_FRAME: u64 = 1 << 8;
const PINNED: u64 = 1 << 9;
const SHARED: u64 = 1 << 10;
const PLACE_SHIFT: u32 = 12;
const PLACE_MASK: u64 = (1 << 20) - 1;

impl Word {
    #[inline]
    pub(crate) fn new(state: PageState) -> Self {
        Self(match state {
            PageState::None => NONE,
            PageState::System { copy } => SYSTEM | frame_bits(copy),
            PageState::Fetching { ticket, frame } => {
                FETCHING | place_bits(ticket.0) | frame_bits(Some(frame))
            }
            PageState::Dropped { ticket, frame } => DROPPED | place_bits(ticket.0) | frame_bits(Some(frame)),
            PageState::Staged { slot, copy } => STAGED | place_bits(slot.0) | frame_bits(copy),
            PageState::Storing { slot } => STORING | place_bits(slot.0),
            PageState::Device { frame } => DEVICE | frame_bits(Some(frame)),
            PageState::Coherent { frame, shared } => {
                COHERENT | frame_bits(Some(frame)) | if shared { SHARED } else { 0 }
            }
            PageState::Exclusive { slot } => EXCLUSIVE | place_bits(slot.0),
            PageState::Poisoned => POISONED,
        })
    }

    #[inline]
    pub(crate) fn state(self) -> PageState {
        let slot = Slot(self.place());
        let ticket = Ticket(self.place());
        match self.0 & KIND_MASK {
            SYSTEM => PageState::System { copy: self.frame_if_any() },
            FETCHING => PageState::Fetching { ticket, frame: self.frame() },
            DROPPED => PageState::Dropped { ticket, frame: self.frame() },
            STAGED => PageState::Staged { slot, copy: self.frame_if_any() },
            STORING => PageState::Storing { slot },
            DEVICE => PageState::Device { frame: self.frame() },
            COHERENT => PageState::Coherent { frame: self.frame(), shared: self.0 & SHARED != 0 },
            POISONED => PageState::Poisoned,
            EXCLUSIVE => PageState::Exclusive { slot },
            _ => PageState::None,
        }
    }

    pub(crate) const fn is_system(self) -> bool {
        self.0 & KIND_MASK == SYSTEM
    }

    pub(crate) const fn is_none(self) -> bool {
        self.0 & KIND_MASK == NONE
    }

    pub(crate) const fn is_pinned(self) -> bool {
        self.0 & PINNED != 0
    }

    /// The same state, pinned or not.
    pub(crate) const fn pinned(self, pinned: bool) -> Self {
        Self(if pinned { self.0 | PINNED } else { self.0 & !PINNED })
    }

    const fn place(self) -> u32 {
        ((self.0 >> PLACE_SHIFT) & PLACE_MASK) as u32
    }

    const fn frame(self) -> Frame {
        Frame { device: ((self.0 >> 4) & 0xf) as u8, pfn: DevicePfn((self.0 >> 32) as u32) }
    }

    #[inline]
    fn frame_if_any(self) -> Option<Frame> {
        (self.0 & HAS_FRAME != 0).then(|| self.frame())
    }
}

#[inline]
fn place_bits(place: u32) -> u64 {
    debug_assert!(u64::from(place) <= PLACE_MASK, "slots and tickets have twenty bits");
    u64::from(place) << PLACE_SHIFT
}

#[inline]
fn frame_bits(frame: Option<Frame>) -> u64 {
    let Some(frame) = frame else { return 0 };
    debug_assert!(frame.device < 16, "at most sixteen devices");
    HAS_FRAME | u64::from(frame.device) << 4 | u64::from(frame.pfn.0) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_survives_its_word() {
        let frame = Frame { device: 15, pfn: DevicePfn(u32::MAX) };
        let ticket = Ticket::new(u32::MAX);
        let slot = Slot((1 << 20) - 1);
        for state in [
            PageState::None,
            PageState::System { copy: None },
            PageState::System { copy: Some(frame) },
            PageState::Fetching { ticket, frame },
            PageState::Dropped { ticket, frame },
            PageState::Staged { slot, copy: None },
            PageState::Staged { slot, copy: Some(frame) },
            PageState::Storing { slot },
            PageState::Device { frame },
            PageState::Coherent { frame, shared: false },
            PageState::Coherent { frame, shared: true },
            PageState::Exclusive { slot },
            PageState::Poisoned,
        ] {
            assert_eq!(Word::new(state).state(), state);
            assert_eq!(Word::new(state).pinned(true).state(), state);
            assert!(Word::new(state).pinned(true).is_pinned());
        }
        assert_eq!(Word::default().state(), PageState::None);
    }
}
