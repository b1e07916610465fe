//! Streams: threads that touch pages one after the other. Found from the faults alone.
//!
//! A stream knows how far it came and up to where its pages are planned to be brought: its next fault is expected anywhere
//! in between, because what fetches ahead may be slower than the program. A hit there makes its window larger; a fault that
//! belongs to no stream replaces the one that was idle longest. Windows are in pages.

use std::sync::{Mutex, PoisonError};

use crate::addr::Vpn;

/// Streams that are followed at the same time.
const NR_STREAMS: usize = 16;
/// How far behind what is planned a fault still belongs to the stream.
const SLACK_PAGES: u64 = 8;
/// Strays that are remembered. A fault of a stream makes as many of them forgotten as [`STRAYS_A_HIT`] says, because random
/// faults hit a stream by chance now and then.
const MAX_STRAYS: u32 = 64;
const STRAYS_A_HIT: u32 = 16;

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// Behind its last fault.
    from: u64,
    /// Behind what is planned.
    next: u64,
    window: u32,
    last_used: u64,
}

#[derive(Debug, Default)]
struct Inner {
    streams: [Stream; NR_STREAMS],
    clock: u64,
    strays: u32,
}

/// The streams of a program.
#[derive(Debug)]
pub struct Streams {
    inner: Mutex<Inner>,
    max_window: u32,
}

/// What the streams say of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Pages worth bringing, at least 1.
    pub window: usize,
    /// Whether the fault continued a stream.
    pub sequential: bool,
    id: usize,
}

impl Streams {
    /// None yet. A window has at most `max_window` pages.
    pub fn new(max_window: u32) -> Self {
        Self { inner: Mutex::default(), max_window: max_window.max(1) }
    }

    /// A fault at `page`. A new stream begins with a window of `initial` pages.
    pub fn fault(&self, page: Vpn, initial: u32) -> Hit {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clock += 1;
        let clock = inner.clock;
        let max_window = self.max_window;
        let hit = inner.streams.iter().position(|stream| {
            stream.window > 0 && stream.from <= page.0 && page.0 < stream.next + SLACK_PAGES
        });
        let (id, window) = match hit {
            Some(id) => (id, inner.streams[id].window.saturating_mul(4).clamp(max_window.min(4), max_window)),
            None => {
                let oldest = (0..NR_STREAMS).min_by_key(|id| inner.streams[*id].last_used).unwrap_or(0);
                (oldest, initial.min(max_window))
            }
        };
        inner.strays = match hit {
            Some(_) => inner.strays.saturating_sub(STRAYS_A_HIT),
            None => (inner.strays + 1).min(MAX_STRAYS),
        };
        let from = page.0 + 1;
        let next = hit.map_or(from, |id| inner.streams[id].next.max(from));
        inner.streams[id] = Stream { from, next, window, last_used: clock };
        Hit { window: window as usize, sequential: hit.is_some(), id }
    }

    /// Whether faults are strays now: most of the last belonged to no stream.
    pub fn is_stray(&self) -> bool {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.strays >= MAX_STRAYS / 2
    }

    /// Everything up to `next` was brought, or will be.
    pub fn expect(&self, hit: Hit, next: Vpn) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.streams[hit.id].next = next.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_window_is_a_limit_like_any_other() {
        for max_window in 0..4 {
            let streams = Streams::new(max_window);
            assert!(streams.fault(Vpn(7), 16).window >= 1);
            assert_eq!(streams.fault(Vpn(8), 16).window, max_window.max(1) as usize);
        }
    }

    #[test]
    fn strays_are_told_from_streams_and_from_chance() {
        let streams = Streams::new(16);
        let stray = |number: u64| streams.fault(Vpn(number * 1000), 1);
        (1..32).for_each(|number| assert!(!stray(number).sequential && !streams.is_stray()));
        (32..100).for_each(|number| assert!(!stray(number).sequential));
        assert!(streams.is_stray());
        assert!(streams.fault(Vpn(99_001), 1).sequential && streams.is_stray(), "once is chance");
        for page in 99_002..99_005 {
            assert!(streams.fault(Vpn(page), 1).sequential);
        }
        assert!(!streams.is_stray());
    }

    #[test]
    fn what_is_planned_belongs_to_the_stream() {
        let streams = Streams::new(64);
        let first = streams.fault(Vpn(1000), 1);
        streams.expect(first, Vpn(1200));
        let early = streams.fault(Vpn(1100), 1);
        assert!(early.sequential, "what fetches ahead has not come so far");
        assert!(streams.fault(Vpn(1200), 1).sequential, "the plan is still known");
        assert!(!streams.fault(Vpn(1050), 1).sequential, "there it has been");
    }

    #[test]
    fn a_stream_grows_and_random_faults_do_not() {
        let streams = Streams::new(512);
        let mut page = Vpn(1000);
        let mut windows = vec![];
        for _ in 0..6 {
            let hit = streams.fault(page, 1);
            windows.push(hit.window);
            page = page.add(hit.window as u64);
            streams.expect(hit, page);
        }
        assert_eq!(windows, [1, 4, 16, 64, 256, 512]);
        let far = streams.fault(Vpn(5_000_000), 1);
        assert_eq!((far.window, far.sequential), (1, false));
        assert!(streams.fault(page, 1).sequential, "the stream is still known");
    }
}
