//! What no policy can be below: the fewest pages that come from a device for the touches of a trace.
//!
//! When memory is full, what is touched again last of all leaves (L. A. Belady, "A study of replacement algorithms for a
//! virtual-storage computer", IBM Systems Journal 5(2), 1966). Nobody can know that while a program runs, and everybody can
//! when it is over.

use std::collections::{BTreeMap, BTreeSet};

use hmm_core::addr::{PageRange, Vpn};
use hmm_core::trace::{Event, Record, What};
use serde::Serialize;

use crate::file::Trace;
use crate::memory::filled;

/// What has to move at least, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Least {
    /// Pages that come from a device: with fewer the trace's touches cannot be served.
    pub fetched: u64,
    /// Pages that leave, when so few come. Of those that are not touched again, those that are given up soonest stay.
    pub evicted: u64,
}

/// The fewest fetches with memory of so many pages, of one page at the least.
pub fn least(trace: &Trace, ram_pages: u64) -> Least {
    let steps = steps(trace);
    let next = next_uses(&steps);
    let mut memory = Memory { room: ram_pages.max(1), ..Memory::default() };
    for (step, next) in steps.into_iter().zip(next) {
        match step {
            Step::Touch { page, was_there } => memory.touch(page, was_there, next),
            Step::GaveUp { page } => memory.give_up(page),
        }
    }
    memory.least
}

/// A page's number for as long as it has its content, wherever it is moved.
type Id = u32;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A touch. `was_there` says of a page that nobody had heard of that it was there before, so that it comes from a device.
    Touch { page: Id, was_there: bool },
    /// Its content is not wanted any more.
    GaveUp { page: Id },
}

/// When a page is used next. The greatest leaves first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum NextUse {
    Touched(usize),
    GivenUp(usize),
    Never,
}

/// For each step, when its page is used after it.
fn next_uses(steps: &[Step]) -> Vec<NextUse> {
    let mut next_of = BTreeMap::new();
    let mut next = vec![NextUse::Never; steps.len()];
    for (number, step) in steps.iter().enumerate().rev() {
        let (page, this) = match *step {
            Step::Touch { page, .. } => (page, NextUse::Touched(number)),
            Step::GaveUp { page } => (page, NextUse::GivenUp(number)),
        };
        next[number] = next_of.insert(page, this).unwrap_or(NextUse::Never);
    }
    next
}

#[derive(Debug, Default)]
struct Memory {
    room: u64,
    /// Pages in memory, and by when they are used next.
    pages: BTreeMap<Id, NextUse>,
    by_next: BTreeSet<(NextUse, Id)>,
    /// Pages that were in memory at some time.
    seen: BTreeSet<Id>,
    least: Least,
}

impl Memory {
    fn touch(&mut self, page: Id, was_there: bool, next: NextUse) {
        if let Some(before) = self.pages.insert(page, next) {
            self.by_next.remove(&(before, page));
        } else {
            let is_new = self.seen.insert(page);
            self.least.fetched += u64::from(!is_new || was_there);
            if self.by_next.len() as u64 == self.room
                && let Some((_, last)) = self.by_next.pop_last()
            {
                self.pages.remove(&last);
                self.least.evicted += 1;
            }
        }
        self.by_next.insert((next, page));
    }

    fn give_up(&mut self, page: Id) {
        if let Some(before) = self.pages.remove(&page) {
            self.by_next.remove(&(before, page));
        }
    }
}

/// The trace's touches, by pages instead of addresses.
fn steps(trace: &Trace) -> Vec<Step> {
    let mut names = Names::default();
    trace.records.iter().for_each(|record| names.note(record));
    names.steps
}

/// Which page is where in each process.
#[derive(Debug, Default)]
struct Names {
    ids: BTreeMap<(u16, u64), Id>,
    nr_ids: Id,
    moved_from: BTreeMap<u16, PageRange>,
    steps: Vec<Step>,
}

impl Names {
    fn note(&mut self, record: &Record) {
        let Record { process: of, event: Event { what, page, nr_pages, .. }, .. } = *record;
        let range = PageRange::new(page, u64::from(nr_pages));
        match what {
            What::Began => self.give_up(of, PageRange { start: Vpn(0), end: Vpn(u64::MAX) }),
            What::FirstTouch => {
                self.touch(of, page, false);
                // The others are there without being asked for, if there is room for them until they are.
                for page in filled(&record.event).iter() {
                    self.id(of, page);
                }
            }
            What::SecondChance | What::Fetch | What::Waited | What::Copied => self.touch(of, page, true),
            What::GaveUp => self.give_up(of, range),
            What::MovedFrom => drop(self.moved_from.insert(of, range)),
            What::MovedTo => self.moved(of, page),
            What::Ahead | What::Evict | What::Store | What::Unchanged | What::Kept | What::Lost => {}
        }
    }

    /// The page's number, and whether it is a new one.
    fn id(&mut self, of: u16, page: Vpn) -> (Id, bool) {
        let before = self.nr_ids;
        let id = *self.ids.entry((of, page.0)).or_insert_with(|| {
            self.nr_ids += 1;
            before
        });
        (id, self.nr_ids > before)
    }

    fn touch(&mut self, of: u16, page: Vpn, has_content: bool) {
        let (page, is_new) = self.id(of, page);
        self.steps.push(Step::Touch { page, was_there: is_new && has_content });
    }

    /// Takes the names of the range away.
    fn take(&mut self, of: u16, range: PageRange) -> Vec<(u64, Id)> {
        let pages: Vec<_> = match range.is_empty() {
            true => Vec::new(),
            false => {
                self.ids.range((of, range.start.0)..(of, range.end.0)).map(|(at, id)| (at.1, *id)).collect()
            }
        };
        for (page, _) in &pages {
            self.ids.remove(&(of, *page));
        }
        pages
    }

    fn give_up(&mut self, of: u16, range: PageRange) {
        let given_up = self.take(of, range).into_iter().map(|(_, page)| Step::GaveUp { page });
        self.steps.extend(given_up);
    }

    fn moved(&mut self, of: u16, to: Vpn) {
        let Some(from) = self.moved_from.remove(&of) else { return };
        // Aside first: the ranges may overlap.
        for (page, id) in self.take(of, from) {
            let at = to.add(page - from.start.0);
            if let Some(page) = self.ids.insert((of, at.0), id) {
                self.steps.push(Step::GaveUp { page });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::Header;
    use hmm_core::policy::Name;

    fn record(what: What, page: u64, nr_pages: u32) -> Record {
        let event = Event { what, page: Vpn(page), nr_pages, before: 0, detail: 0 };
        Record { time_us: 0, process: 1, event }
    }

    fn least_of(records: Vec<Record>, room: u64) -> Least {
        let header = Header { ram_pages: 1, policy: Name::Fifo };
        least(&Trace { header, records, nr_lost: 0 }, room)
    }

    /// Touches of a few pages, each for the first time first.
    fn touches(pages: &[u64]) -> Vec<Record> {
        let is_new = |number: usize| !pages[..number].contains(&pages[number]);
        let what = |number| if is_new(number) { What::FirstTouch } else { What::Fetch };
        pages.iter().enumerate().map(|(number, page)| record(what(number), *page, 1)).collect()
    }

    /// The fewest fetches over everything that could leave at each touch.
    fn tried(resident: &[u64], pages: &[u64], number: usize, room: usize) -> u64 {
        let Some(page) = pages.get(number) else { return 0 };
        if resident.contains(page) {
            return tried(resident, pages, number + 1, room);
        }
        let with = |rest: Vec<u64>| tried(&[rest, vec![*page]].concat(), pages, number + 1, room);
        let rest = match resident.len() < room {
            true => with(resident.to_vec()),
            false => {
                let without = |out: &u64| resident.iter().copied().filter(|page| page != out).collect();
                resident.iter().map(|out| with(without(out))).min().unwrap_or(0)
            }
        };
        rest + u64::from(pages[..number].contains(page))
    }

    #[test]
    fn nothing_that_could_leave_instead_would_be_better() {
        let mut seed = 7_u64;
        for round in 0..200 {
            let pages: Vec<u64> = std::iter::repeat_with(|| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 33) % 6
            })
            .take(12)
            .collect();
            let room = round % 3 + 2;
            let found = least_of(touches(&pages), room as u64);
            assert_eq!(found.fetched, tried(&[], &pages, 0, room), "{pages:?} in {room}");
        }
    }

    #[test]
    fn what_is_given_up_makes_room_and_what_is_moved_is_the_same() {
        assert_eq!(least_of(touches(&[1, 2, 3, 1, 2]), 2), Least { fetched: 1, evicted: 2 });
        let mut records = touches(&[1, 2]);
        records.push(record(What::GaveUp, 2, 1));
        records.extend([record(What::FirstTouch, 3, 1), record(What::Fetch, 1, 1)]);
        assert_eq!(least_of(records.clone(), 2), Least::default());
        records.extend([record(What::MovedFrom, 1, 1), record(What::MovedTo, 9, 0)]);
        records.extend([record(What::Fetch, 9, 1), record(What::FirstTouch, 1, 1)]);
        assert_eq!(least_of(records.clone(), 2), Least { fetched: 0, evicted: 1 });
        records.extend([record(What::Began, 0, 0), record(What::FirstTouch, 9, 1)]);
        assert_eq!(least_of(records, 2), Least { fetched: 0, evicted: 1 });
    }

    #[test]
    fn what_was_there_before_comes_from_a_device_and_what_was_filled_along_does_not() {
        assert_eq!(least_of(vec![record(What::Fetch, 5, 1)], 4), Least { fetched: 1, evicted: 0 });
        let along =
            vec![record(What::FirstTouch, 5, 16), record(What::Fetch, 9, 1), record(What::Fetch, 21, 1)];
        assert_eq!(least_of(along, 4), Least { fetched: 1, evicted: 0 });
    }
}
