//! Reading the kernel's messages, and applying the events among them.
//!
//! Both under the engine's event guard: reading an event lets the program go on. A move whose place is not free yet is
//! held until it is ([`Moves`]).

use std::sync::atomic::Ordering;
use std::time::Duration;

use hmm_core::Events;
use hmm_core::addr::{PageRange, Vpn};
use hmm_core::kernel::Kernel;
use hmm_core::notifier::Cause;
use hmm_uapi::AddrRange;
use hmm_uapi::uffd::{Event, EventBuffer, MAX_EVENTS, Userfaultfd};

use crate::mm::Mm;
use crate::moves::{Move, Moves};
use crate::runtime::{RETRY_PAUSE_NS, Runtime, Touch, pause};

/// The longest that a move is held. It comes to that only if a thread that has unmapped something does not get to run.
const LATE: Duration = Duration::from_secs(2);

impl Runtime {
    /// Reads messages, applies the events among them, and returns the number of faults.
    pub(crate) fn read(
        &self,
        buffer: &mut EventBuffer,
        faults: &mut [Touch; MAX_EVENTS],
        forked: &mut dyn FnMut(Userfaultfd),
    ) -> usize {
        let mm = self.engine().kernel();
        let events = self.engine().events();
        let mut nr_faults = 0;
        let mut has_forked = false;
        let mut moves = Moves::default();
        let mut since = None;
        loop {
            if let Ok(messages) = mm.uffd().read_events(buffer) {
                for message in messages {
                    match message {
                        Event::Fault { addr, access, tid } if nr_faults < MAX_EVENTS => {
                            faults[nr_faults] = Touch { page: Vpn::of_addr(addr), access, tid };
                            nr_faults += 1;
                        }
                        Event::Fault { addr, .. } => mm.put_off(PageRange::new(Vpn::of_addr(addr), 1)),
                        Event::Fork { uffd } => {
                            has_forked = true;
                            forked(uffd);
                        }
                        event @ (Event::Remove(_) | Event::Unmap(_) | Event::Remap { .. }) => {
                            self.apply(&events, &event, &mut moves);
                        }
                    }
                }
            }
            if moves.is_empty() {
                break;
            }
            // A move whose place is not free yet: the event that says so comes as soon as its thread gets to run.
            let now = self.clock.now();
            if now.duration_since(*since.get_or_insert(now)) > LATE {
                while let Some(early) = moves.next() {
                    self.apply_move(&events, early);
                }
                break;
            }
            pause(RETRY_PAUSE_NS);
        }
        drop(events);
        if has_forked {
            // Every page that may be written to is shared now, and a write makes a copy.
            mm.extents().unshared().forked();
            drop(self.announce_all(Cause::ProtectPage));
        }
        mm.stats().pgfault.fetch_add(nr_faults as u64, Ordering::Relaxed);
        nr_faults
    }

    /// Applies an event, and the moves that could not be applied before it.
    fn apply(&self, events: &Events<'_, Mm>, event: &Event, moves: &mut Moves) {
        let extents = self.engine().kernel().extents();
        match event {
            Event::Fault { .. } | Event::Fork { .. } => {}
            Event::Remove(range) => events.removed(pages_of(*range)),
            Event::Unmap(range) if moves.has_left(pages_of(*range)) => {}
            Event::Unmap(range) => self.unmap(events, pages_of(*range)),
            Event::Remap { from, to, len } => {
                let from = pages_of(AddrRange::new(*from, *len));
                if let Err(early) = moves.push(Move::new(from, Vpn::of_addr(*to))) {
                    self.apply_move(events, early);
                }
            }
        }
        while let Some(ready) = moves.next_ready(extents) {
            self.apply_move(events, ready);
        }
    }

    fn apply_move(&self, events: &Events<'_, Mm>, ready: Move) {
        events.remapped(ready.from, ready.to);
        self.engine().kernel().extents().moved(ready.from, ready.to);
        if ready.has_left {
            self.unmap(events, ready.from);
        }
    }

    fn unmap(&self, events: &Events<'_, Mm>, range: PageRange) {
        events.unmapped(range);
        self.engine().kernel().extents().remove(range);
    }
}

pub(crate) const fn pages_of(range: AddrRange) -> PageRange {
    PageRange { start: Vpn::of_addr(range.start), end: Vpn::of_addr(range.end) }
}
