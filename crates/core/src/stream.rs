//! Streams: threads that touch pages one after the other, up or down, or every so many pages. Found from the faults alone.
//!
//! A stream knows how far it came and up to where its pages are planned to be brought: its next fault is expected anywhere
//! in between, because what fetches ahead may be slower than the program. A hit there makes its window larger; a fault that
//! belongs to no stream replaces the one that was idle longest, and may be the beginning of one: what comes right behind it or in
//! front of it says which way it goes. Three that are equally far from each other are a stream with gaps. Windows are in pages.

use std::sync::{Mutex, PoisonError};

use crate::addr::{PageRange, Vpn};
use crate::stride::Stride;

/// Streams that are followed at the same time.
const NR_STREAMS: usize = 16;
/// Triggers of a stream that are remembered.
const NR_TRIGGERS: usize = 2;
/// A stream of so many pages is no chance. Up to here one is taken to go on for twice as long as it was seen; then, for as long.
const SHORT_RUN: u64 = 64;
/// Windows that are planned at a time, at most.
const WINDOWS_AHEAD: u64 = 2;
/// The fewest pages that are worth planning.
const FEWEST: u64 = 4;
/// How many steps behind what is planned a fault still belongs to the stream.
const SLACK: u64 = 8;
/// Pages between the touches of a stream with gaps, at most.
const MAX_GAP: u64 = 4096;
/// The most pages that are worth fetching ahead of a stream with gaps: each costs as much as one that is asked for.
const GAP_WINDOW: u32 = 32;
/// Strays that are remembered. A fault of a stream makes as many of them forgotten as [`STRAYS_A_HIT`] says, because random
/// faults hit a stream by chance now and then.
const MAX_STRAYS: u32 = 64;
const STRAYS_A_HIT: u32 = 16;

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// None: it has had one fault.
    stride: Stride,
    /// Its last fault.
    at: Vpn,
    /// The first page that was brought with that, while there is no stride.
    front: Vpn,
    /// Where it goes on behind what is planned.
    next: Vpn,
    /// Where a fault shows how far it is, at the latest: the first pages of what is planned, the nearest first.
    triggers: [Option<Vpn>; NR_TRIGGERS],
    /// 0: it is not in use.
    window: u32,
    /// Touches of it that are known of, whether they were faults or not.
    run: u64,
    last_used: u64,
}

impl Stream {
    const NONE: Self = Self {
        stride: Stride::NONE,
        at: Vpn(0),
        front: Vpn(0),
        next: Vpn(0),
        triggers: [None; NR_TRIGGERS],
        window: 0,
        run: 0,
        last_used: 0,
    };

    /// What is to be said of its last fault.
    fn hit(&self, id: usize, usual_run: u64) -> Hit {
        let expected = match usual_run.checked_sub(self.run) {
            Some(rest) if rest > 0 => rest.max(FEWEST),
            _ => {
                let beyond = self.run - usual_run;
                beyond.max(beyond.saturating_mul(2).clamp(FEWEST, SHORT_RUN))
            }
        };
        let ahead = if self.is_new() { 0 } else { expected.min(WINDOWS_AHEAD * u64::from(self.window)) };
        let ahead = usize::try_from(ahead).unwrap_or(usize::MAX);
        Hit { window: self.window as usize, ahead, stride: self.stride, id }
    }

    /// It has come to the page: what is not in front of that shows nothing any more.
    fn pass_triggers(&mut self, page: Vpn) {
        while let Some(trigger) = self.triggers[0] {
            if self.stride.steps(page, trigger).is_some_and(|steps| steps > 0) {
                return;
            }
            self.triggers.rotate_left(1);
            self.triggers[NR_TRIGGERS - 1] = None;
        }
    }

    const fn is_new(&self) -> bool {
        self.window > 0 && self.stride.nr_pages() == 0
    }

    /// The stride by which it comes to the page.
    fn comes_to(&self, page: Vpn) -> Option<Stride> {
        if self.window == 0 {
            return None;
        }
        if self.is_new() {
            let is_up = self.at < page && page.0 < self.next.0 + SLACK;
            let is_down = page < self.at && page.0 + SLACK >= self.front.0;
            return is_up.then_some(Stride::UP).or(is_down.then_some(Stride::DOWN));
        }
        // It does not come by a trigger without a fault there: what is behind that is another stream's.
        let seen_at = self.triggers[0].unwrap_or(self.next);
        let planned = self.stride.steps(self.at, seen_at).unwrap_or(1);
        let is_on_the_way = |steps: &u64| (1..planned + SLACK).contains(steps);
        self.stride.steps(self.at, page).filter(is_on_the_way).map(|_| self.stride)
    }
}

#[derive(Debug)]
struct Inner {
    streams: [Stream; NR_STREAMS],
    clock: u64,
    strays: u32,
    /// How far streams came that have ended of late, by the last touch that was seen; of those that were no chance.
    usual_run: u64,
}

impl Inner {
    /// The last fault, if it is served once more, because there was no memory.
    fn same_again(&self, page: Vpn) -> Option<Hit> {
        let is_last =
            |stream: &Stream| stream.window > 0 && stream.at == page && stream.last_used == self.clock;
        let id = self.streams.iter().position(is_last)?;
        Some(self.streams[id].hit(id, self.usual_run))
    }

    /// A stream has ended. One that was much longer or shorter than others is not taken for the rule at once.
    fn note_end(&mut self, stream: Stream) {
        if stream.run >= SHORT_RUN {
            let usual = self.usual_run.max(SHORT_RUN);
            self.usual_run = stream.run.clamp(usual / 4, usual.saturating_mul(4));
        }
    }

    /// The stream that the page belongs to, and its stride.
    fn find(&mut self, page: Vpn) -> Option<(usize, Stride)> {
        let known =
            self.streams.iter().enumerate().find_map(|(id, stream)| Some((id, stream.comes_to(page)?)));
        known.or_else(|| self.find_gaps(page))
    }

    /// A fault that is as far from this one as another is from that: the three are a stream, and need one place.
    fn find_gaps(&mut self, page: Vpn) -> Option<(usize, Stride)> {
        let is_new_at = |at: Vpn| move |stream: &Stream| stream.is_new() && stream.at == at;
        for id in 0..NR_STREAMS {
            let last = self.streams[id];
            let stride = Stride::between(last.at, page);
            if !last.is_new() || !(1..=MAX_GAP).contains(&stride.nr_pages()) {
                continue;
            }
            let before = Stride::between(page, last.at).on(last.at, 1);
            if let Some(first) = self.streams.iter().position(is_new_at(before)) {
                self.streams[first] = Stream::NONE;
                return Some((id, stride));
            }
        }
        None
    }
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
    /// Pages worth bringing, at least 1, as the stream goes.
    pub window: usize,
    /// Pages worth fetching ahead of it, no more than that: about as many as it has come through, because half of a stream
    /// is to be expected when it is seen.
    pub ahead: usize,
    /// How the stream goes that the fault continued.
    pub stride: Stride,
    id: usize,
}

impl Hit {
    /// Whether the fault continued a stream.
    pub const fn is_sequential(&self) -> bool {
        self.stride.nr_pages() > 0
    }
}

impl Streams {
    /// None yet. A window has at most `max_window` pages.
    pub fn new(max_window: u32) -> Self {
        let inner = Inner { streams: [Stream::NONE; NR_STREAMS], clock: 0, strays: 0, usual_run: 0 };
        Self { inner: Mutex::new(inner), max_window: max_window.max(1) }
    }

    /// A fault at `page`. A new stream begins with a window of `initial` pages.
    pub fn fault(&self, page: Vpn, initial: u32) -> Hit {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hit) = inner.same_again(page) {
            return hit;
        }
        inner.clock += 1;
        let clock = inner.clock;
        let Some((id, stride)) = inner.find(page) else {
            let oldest = (0..NR_STREAMS).min_by_key(|id| inner.streams[*id].last_used).unwrap_or(0);
            let window = initial.min(self.max_window);
            inner.strays = (inner.strays + 1).min(MAX_STRAYS);
            let (stride, next) = (Stride::NONE, page.add(1));
            let begun = Stream {
                stride,
                at: page,
                front: page,
                next,
                window,
                run: 1,
                last_used: clock,
                ..Stream::NONE
            };
            let ended = std::mem::replace(&mut inner.streams[oldest], begun);
            inner.note_end(ended);
            return begun.hit(oldest, inner.usual_run);
        };
        inner.strays = inner.strays.saturating_sub(STRAYS_A_HIT);
        let max_window = if stride.is_dense() { self.max_window } else { self.max_window.min(GAP_WINDOW) };
        let usual_run = inner.usual_run;
        let stream = &mut inner.streams[id];
        let window = stream.window.saturating_mul(4).clamp(max_window.min(4), max_window);
        // Behind a new stream's first fault is where it goes on if it goes up.
        let is_planned = stride.steps(page, stream.next).is_some_and(|steps| steps > 0);
        let next = if is_planned { stream.next } else { stride.on(page, 1) };
        let run = stream.run.saturating_add(stride.steps(stream.at, page).unwrap_or(1));
        *stream = Stream { stride, at: page, front: page, next, window, run, last_used: clock, ..*stream };
        stream.pass_triggers(page);
        stream.hit(id, usual_run)
    }

    /// The fault's stream is known to go on, for so many pages more at least: it has the largest window at once.
    pub fn goes_on(&self, hit: Hit, nr_pages: usize) -> Hit {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.streams[hit.id].window = self.max_window;
        Hit { window: self.max_window as usize, ahead: nr_pages, ..hit }
    }

    /// The trigger of what was planned from that page on is another one.
    pub fn trigger_moved(&self, from: Vpn, to: Vpn) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let triggers = inner.streams.iter_mut().flat_map(|stream| &mut stream.triggers);
        triggers.filter(|trigger| **trigger == Some(from)).for_each(|trigger| *trigger = Some(to));
    }

    /// Whether faults are strays now: most of the last belonged to no stream.
    pub fn is_stray(&self) -> bool {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.strays >= MAX_STRAYS / 2
    }

    /// The fault brought these pages, and everything in front of `next` was brought, or will be, as the stream goes.
    pub fn expect(&self, hit: Hit, brought: PageRange, next: Vpn) {
        self.expect_fault(hit, brought, next, None);
    }

    /// The same. Of what was planned now the first page, the `trigger`, shows by a fault when the stream comes there.
    pub fn expect_fault(&self, hit: Hit, brought: PageRange, next: Vpn, trigger: Option<Vpn>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = &mut inner.streams[hit.id];
        stream.front = brought.start;
        stream.next = next;
        // What it comes to first is what counts: if there are more than can be remembered, those that follow are left out.
        if let Some(free) = stream.triggers.iter_mut().find(|known| known.is_none()) {
            *free = trigger;
        }
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
        let stray = |number: u64| streams.fault(Vpn(number * number * 1000), 1);
        (1..32).for_each(|number| assert!(!stray(number).is_sequential() && !streams.is_stray()));
        (32..100).for_each(|number| assert!(!stray(number).is_sequential()));
        assert!(streams.is_stray());
        assert!(streams.fault(Vpn(9_801_001), 1).is_sequential() && streams.is_stray(), "once is chance");
        for page in 9_801_002..9_801_005 {
            assert!(streams.fault(Vpn(page), 1).is_sequential());
        }
        assert!(!streams.is_stray());
    }

    #[test]
    fn what_is_planned_belongs_to_the_stream() {
        let streams = Streams::new(64);
        let first = streams.fault(Vpn(1000), 1);
        streams.expect(first, PageRange::new(Vpn(1000), 1), Vpn(1200));
        let early = streams.fault(Vpn(1100), 1);
        assert!(early.is_sequential(), "what fetches ahead has not come so far");
        assert!(streams.fault(Vpn(1200), 1).is_sequential(), "the plan is still known");
        assert!(!streams.fault(Vpn(1050), 1).is_sequential(), "there it has been");
    }

    /// A stream that has come to page 1000 of what was planned: with triggers at 1100 and 1200, up to 1300.
    fn with_triggers() -> Streams {
        let streams = Streams::new(512);
        streams.fault(Vpn(999), 1);
        for (end, trigger) in [(1200, 1100), (1300, 1200), (1400, 1300)] {
            let hit = streams.fault(Vpn(1000), 1);
            streams.expect_fault(hit, PageRange::new(Vpn(1000), 1), Vpn(end), Some(Vpn(trigger)));
        }
        streams
    }

    #[test]
    fn a_stream_does_not_come_by_a_trigger_unseen() {
        for (page, is_of_it) in [(1050, true), (1100, true), (1107, true), (1108, false), (1250, false)] {
            assert_eq!(with_triggers().fault(Vpn(page), 1).is_sequential(), is_of_it, "{page}");
        }
        let streams = with_triggers();
        assert!(streams.fault(Vpn(1100), 1).is_sequential());
        assert!(streams.fault(Vpn(1150), 1).is_sequential(), "the next one counts now");
        assert!(!streams.fault(Vpn(1250), 1).is_sequential());
        assert!(streams.fault(Vpn(1200), 1).is_sequential());
        assert!(streams.fault(Vpn(1350), 1).is_sequential(), "what is not remembered is no limit");
        let streams = with_triggers();
        streams.trigger_moved(Vpn(1100), Vpn(1150));
        assert!(streams.fault(Vpn(1150), 1).is_sequential(), "what was in front of it was there");
    }

    #[test]
    fn a_fault_that_is_served_once_more_is_the_same() {
        let streams = Streams::new(512);
        let first = streams.fault(Vpn(1000), 1);
        assert_eq!(streams.fault(Vpn(1000), 1), first);
        let second = streams.fault(Vpn(1001), 1);
        assert!(second.is_sequential());
        assert_eq!(streams.fault(Vpn(1001), 1), second, "there was no memory");
        streams.fault(Vpn(5000), 1);
        assert!(!streams.fault(Vpn(1001), 1).is_sequential(), "it was here before");
    }

    /// Pages that are fetched ahead of a stream's touches, each of which is a fault.
    fn ahead(streams: &Streams, first: u64) -> impl Iterator<Item = usize> {
        (first..).map(|page| streams.fault(Vpn(page), 1).ahead)
    }

    #[test]
    fn no_more_is_fetched_ahead_than_was_seen_of_a_stream() {
        let streams = Streams::new(512);
        let seen: Vec<usize> = ahead(&streams, 1000).take(3000).collect();
        assert_eq!(seen[..4], [0, 4, 6, 8]);
        assert_eq!([31, 63, 127, 511, 2999].map(|page| seen[page]), [64, 64, 128, 512, 1024]);
    }

    #[test]
    fn a_stream_is_expected_to_end_where_others_ended() {
        let streams = Streams::new(512);
        let mut places = (1..).map(|number| number * 1_000_000);
        let mut walk = |nr_pages: usize| -> Vec<usize> {
            ahead(&streams, places.next().expect("there is no end")).take(nr_pages).collect()
        };
        // Each in the place of the first.
        (0..2 * NR_STREAMS).for_each(|_| _ = walk(512));
        let seen = walk(600);
        assert_eq!([100, 500, 508].map(|page| seen[page]), [411, 11, 4]);
        assert_eq!([520, 599].map(|page| seen[page]), [18, 88], "beyond that as of a new one");
        // Chance is no stream.
        (0..100).for_each(|_| _ = walk(5));
        assert_eq!(walk(101)[100], 411 + 88);
    }

    /// What the faults are found to be, each of which brings its page only.
    fn strides(faults: &[u64]) -> Vec<Stride> {
        let streams = Streams::new(64);
        let fault = |page: &u64| {
            let hit = streams.fault(Vpn(*page), 1);
            streams.expect(
                hit,
                PageRange::new(Vpn(*page), 1),
                hit.stride.behind(PageRange::new(Vpn(*page), 1)),
            );
            hit.stride
        };
        faults.iter().map(fault).collect()
    }

    #[test]
    fn a_stream_may_go_down_or_leave_gaps() {
        let (none, down) = (Stride::NONE, Stride::DOWN);
        assert_eq!(strides(&[1000, 999, 998, 990, 981]), [none, down, down, down, none], "with some slack");
        assert_eq!(strides(&[1000, 999, 1000]), [none, down, none], "it does not turn");
        let far = |from: u64, to: u64| Stride::between(Vpn(from), Vpn(to));
        let gaps = [none, none, far(0, 100), far(0, 100), none];
        assert_eq!(strides(&[1000, 1100, 1200, 1300, 1350]), gaps);
        assert_eq!(strides(&[9000, 8000, 7000]), [none, none, far(1000, 0)], "down as well");
        assert_eq!(strides(&[9000, 20_000, 31_000]), [none; 3], "that far is chance");
        // Two of them in turns.
        assert_eq!(strides(&[1000, 9000, 1100, 9500, 1200, 10_000])[4..], [far(0, 100), far(0, 500)]);
    }

    #[test]
    fn a_stream_that_goes_down_begins_in_front_of_what_came_with_its_first_fault() {
        for (page, stride) in
            [(983, Stride::DOWN), (971, Stride::NONE), (1000, Stride::UP), (1009, Stride::NONE)]
        {
            let streams = Streams::new(64);
            let hit = streams.fault(Vpn(990), 16);
            streams.expect(hit, PageRange::new(Vpn(984), 16), Vpn(1000));
            assert_eq!(streams.fault(Vpn(page), 16).stride, stride, "{page}");
        }
    }

    #[test]
    fn with_gaps_no_more_is_wanted_than_pays() {
        let streams = Streams::new(512);
        let windows: Vec<usize> = (0..8).map(|nr| streams.fault(Vpn(1000 + nr * 50), 1).window).collect();
        assert_eq!(windows, [1, 1, 4, 16, 32, 32, 32, 32]);
    }

    #[test]
    fn a_stream_grows_and_random_faults_do_not() {
        let streams = Streams::new(512);
        let mut page = Vpn(1000);
        let mut windows = vec![];
        for _ in 0..6 {
            let hit = streams.fault(page, 1);
            windows.push(hit.window);
            let brought = PageRange::new(page, hit.window as u64);
            page = brought.end;
            streams.expect(hit, brought, page);
        }
        assert_eq!(windows, [1, 4, 16, 64, 256, 512]);
        let far = streams.fault(Vpn(5_000_000), 1);
        assert_eq!((far.window, far.is_sequential()), (1, false));
        assert!(streams.fault(page, 1).is_sequential(), "the stream is still known");
    }
}
