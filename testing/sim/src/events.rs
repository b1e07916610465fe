//! The events of the program's userfaultfd, and the time for which its mappings are changing.

use std::collections::VecDeque;

use hmm_model::Span;

/// What the program did, as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// `UNMAP`, behind the deed.
    Unmapped(Span),
    /// `REMOVE`, in front of the deed: the pages go when the event has been read.
    Discarded(Span),
    /// `REMAP`, behind the deed.
    Remapped { from: Span, to: u32 },
}

/// Events that nobody has read, each with the thread that waits until it is.
#[derive(Debug, Default)]
pub(crate) struct Events {
    queue: VecDeque<(Event, u32)>,
    /// Events that are queued or will be: one deed may be reported by several, one after the other.
    changing: u32,
}

impl Events {
    /// Whether the resolving calls fail.
    pub(crate) const fn is_changing(&self) -> bool {
        self.changing > 0
    }

    /// The mappings change, and so many events will tell of it.
    pub(crate) fn begin(&mut self, nr_events: usize) {
        self.changing += u32::try_from(nr_events).expect("a deed has at most three events");
    }

    /// Queues an event of a change that has begun.
    pub(crate) fn send(&mut self, event: Event, thread: u32) {
        self.queue.push_back((event, thread));
    }

    /// Whether there is nothing to read.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether all that is changing are pages that will go.
    pub(crate) fn are_discards(&self) -> bool {
        let all_queued = self.queue.len() == self.changing as usize;
        all_queued && self.queue.iter().all(|(event, _)| matches!(event, Event::Discarded(_)))
    }

    /// Reads an event: its change is over, as far as the kernel is concerned.
    pub(crate) fn read(&mut self) -> Option<(Event, u32)> {
        let read = self.queue.pop_front()?;
        self.changing -= 1;
        Some(read)
    }
}
