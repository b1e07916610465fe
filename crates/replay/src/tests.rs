use hmm_core::addr::{BLOCK_PAGES, Vpn};
use hmm_core::policy::Name;
use hmm_core::trace::{Event, Record, What};

use crate::file::{Header, ReadError, Trace, Writer};
use crate::{Counts, least, recorded, replay};

const BLOCK: u64 = BLOCK_PAGES as u64;
/// Sixteen blocks, 32 MiB.
const RAM: u64 = 16 * BLOCK;
const HEADER: Header = Header { ram_pages: RAM, policy: Name::Fifo };

fn event(what: What, page: u64, nr_pages: u32) -> Record {
    let event = Event { what, page: Vpn(page), nr_pages, before: 0, detail: 0 };
    Record { time_us: page % 1000, process: 3, event }
}

fn trace(records: Vec<Record>) -> Trace {
    Trace { header: HEADER, records, nr_lost: 0 }
}

/// Touches of pages in order; those of a page that was never touched are first touches.
fn touches(pages: impl IntoIterator<Item = u64>) -> Trace {
    let mut known = std::collections::BTreeSet::new();
    let what = |is_new| if is_new { What::FirstTouch } else { What::Fetch };
    trace(pages.into_iter().map(|page| event(what(known.insert(page)), page, 1)).collect())
}

fn blocks(range: std::ops::Range<u64>) -> impl Iterator<Item = u64> {
    range.flat_map(|block| block * BLOCK..(block + 1) * BLOCK)
}

fn written(trace: &Trace) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), trace.header).unwrap();
    trace.records.iter().for_each(|record| writer.record(record.pack()).unwrap());
    writer.end().unwrap()
}

fn some_trace() -> Trace {
    let number = |number: u64| u8::try_from(number % 14 + 1).ok().and_then(What::of_number).unwrap();
    trace((0..500).map(|page| event(number(page), page * 37, 3)).collect())
}

#[test]
fn a_trace_is_read_as_it_was_written() {
    let trace = some_trace();
    assert_eq!(Trace::read(written(&trace).as_slice()).unwrap(), trace);
    let empty = Trace { records: Vec::new(), ..trace };
    assert_eq!(Trace::read(written(&empty).as_slice()).unwrap(), empty);
}

#[test]
fn lost_events_have_their_place() {
    let mut writer = Writer::new(Vec::new(), HEADER).unwrap();
    writer.record(event(What::Fetch, 1, 1).pack()).unwrap();
    writer.lost(2_000_000).unwrap();
    // Nobody knows what this was.
    writer.record([0, 0]).unwrap();
    let trace = Trace::read(writer.end().unwrap().as_slice()).unwrap();
    let lost: Vec<_> =
        trace.records.iter().map(|record| (record.event.what, record.event.nr_pages)).collect();
    assert_eq!(lost, [(What::Fetch, 1), (What::Lost, (1 << 20) - 1), (What::Lost, 951_425), (What::Lost, 1)]);
    assert_eq!(trace.nr_lost, 2_000_001);
    assert_eq!(recorded(&trace).touches, 1);
}

/// Wherever it is cut.
#[test]
fn a_trace_without_its_end_says_so() {
    let bytes = written(&some_trace());
    for len in 0..bytes.len() {
        let error = Trace::read(&bytes[..len]).unwrap_err();
        if len < 8 {
            assert!(matches!(error, ReadError::Foreign), "{len}: {error}");
            continue;
        }
        let ReadError::CutOff { nr_records } = error else { panic!("{len}: {error}") };
        assert_eq!(nr_records, (len.saturating_sub(32) / 16).min(500) as u64, "{len}");
    }
    let text = Trace::read(&bytes[..100]).unwrap_err().to_string();
    assert!(text.starts_with("it is cut off behind 4 records: the run was killed"), "{text}");
}

/// Whatever bit is another.
#[test]
fn a_damaged_trace_says_so() {
    let bytes = written(&trace(some_trace().records[..20].to_vec()));
    for bit in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Trace::read(bytes.as_slice()).is_err(), "bit {bit}");
    }
    let with = |at: usize, byte| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        Trace::read(bytes.as_slice()).unwrap_err().to_string()
    };
    assert_eq!(with(0, b'x'), "it is no trace of hmm's: write one with `hmm trace`");
    assert_eq!(with(8, 9), "its format has version 9, and this hmm reads version 1: record it again");
    assert_eq!(with(40, 17), "it is damaged: its checksum is another; record it again");
    assert_eq!(with(24, 7), "it is damaged: it names no policy; record it again");
    let mut longer = bytes.clone();
    longer.push(0);
    let error = Trace::read(longer.as_slice()).unwrap_err().to_string();
    assert_eq!(error, "it is damaged: there is something behind its end; record it again");
}

#[test]
fn what_fits_is_touched_for_the_first_time_only() {
    let trace = touches(blocks(0..8).chain(blocks(0..8)));
    for policy in Name::ALL {
        let counts = replay(&trace, policy, RAM);
        assert_eq!((counts.touches, counts.second_chances, counts.device_faults), (16 * BLOCK, 0, 0));
        assert_eq!((counts.evicted, counts.fetched, counts.came_back_soon), (0, 0, 0));
        let alone = policy == Name::Fifo;
        assert_eq!(counts.first_touches == 8 * BLOCK, alone, "{policy}: {counts:?}");
    }
}

#[test]
fn a_stream_is_fetched_ahead_and_all_of_it_is_useful() {
    let trace = touches(blocks(0..64).chain(blocks(0..64)));
    let [round, clock, fifo, twice] = Name::ALL.map(|policy| replay(&trace, policy, RAM));
    assert_eq!((fifo.read_ahead, fifo.device_faults), (0, 64 * BLOCK));
    for counts in [clock, twice, round] {
        assert!(counts.device_faults < 64 * BLOCK / 8, "{counts:?}");
        assert_eq!(counts.useful + counts.useless, counts.read_ahead);
        assert!(counts.useful > 50 * BLOCK && counts.useless < BLOCK, "{counts:?}");
    }
}

#[test]
fn what_is_read_ahead_in_vain_is_useless() {
    // Streams of eight pages in different blocks, whose continuation nobody touches.
    let first = blocks(0..64);
    let short = (0..64).flat_map(|block| (0..8).map(move |page| block * BLOCK + page));
    let counts = replay(&touches(first.chain(short)), Name::Clock, RAM);
    assert_eq!(counts.useful + counts.useless, counts.read_ahead);
    assert!(counts.useless > 64 * 8, "{counts:?}");
}

#[test]
fn no_policy_is_below_the_least() {
    let passes = [0..64, 0..64, 20..40, 20..40, 0..64];
    let loops = touches(passes.into_iter().flat_map(blocks));
    let all = least(&loops, RAM);
    for policy in Name::ALL {
        let counts = replay(&loops, policy, RAM);
        assert!(
            all.fetched <= counts.fetched && all.evicted <= counts.evicted,
            "{policy}: {all:?} {counts:?}"
        );
    }
    // Twice through everything, as much as there is room for stays.
    let twice = touches(blocks(0..64).chain(blocks(0..64)));
    assert_eq!(least(&twice, RAM).fetched, 48 * BLOCK);
}

/// The hot set is touched now and then; the scan touches each page once.
#[test]
fn a_hot_set_survives_a_scan_under_twice() {
    let warm = |from: u64| blocks(0..6).chain(blocks(from..from + 5));
    let pages = || blocks(0..100).chain((0..8).flat_map(|round| warm(10 + 5 * round)));
    let before = touches(pages().chain(blocks(0..6)).chain(blocks(50..100)));
    let behind = touches(pages().chain(blocks(0..6)).chain(blocks(50..100)).chain(blocks(0..6)));
    let fetched = |policy| replay(&behind, policy, RAM).fetched - replay(&before, policy, RAM).fetched;
    let [clock, fifo, twice] = [Name::Clock, Name::Fifo, Name::Twice].map(fetched);
    assert!(clock > 5 * BLOCK && fifo == 6 * BLOCK && twice == 0, "{clock} {fifo} {twice}");
}

#[test]
fn pages_that_left_shortly_before_they_are_touched_are_counted() {
    // A loop over a little more than fits: every page that comes back had left a moment before.
    let trace = touches((0..3).flat_map(|_| blocks(0..20)));
    let counts = replay(&trace, Name::Fifo, RAM);
    assert_eq!(counts.came_back_soon, counts.device_faults + counts.second_chances);
    assert!(counts.came_back_soon > 30 * BLOCK);
    // And over very much more: none has.
    let trace = touches((0..3).flat_map(|_| blocks(0..60)));
    let counts = replay(&trace, Name::Fifo, RAM);
    assert_eq!((counts.came_back_soon, counts.device_faults), (0, 2 * 60 * BLOCK));
}

#[test]
fn what_is_given_up_or_moved_is_so_in_the_model() {
    let mut records = touches(blocks(0..4)).records;
    records.push(event(What::GaveUp, BLOCK, 512));
    records.push(event(What::MovedFrom, 2 * BLOCK, 512));
    records.push(event(What::MovedTo, 9 * BLOCK, 512));
    records.extend([0, BLOCK, 2 * BLOCK, 9 * BLOCK].map(|page| event(What::FirstTouch, page, 1)));
    let counts = replay(&trace(records.clone()), Name::Fifo, RAM);
    assert_eq!(counts.first_touches, 4 * BLOCK + 2, "what was given up, and where the moved pages were");
    assert_eq!(counts.faults, counts.first_touches);
    records.push(event(What::Began, 0, 0));
    records.push(event(What::FirstTouch, 0, 1));
    assert_eq!(replay(&trace(records), Name::Fifo, RAM).first_touches, 4 * BLOCK + 3, "another process");
}

/// Whatever is in a file that is whole, replaying it ends.
#[test]
fn any_records_can_be_replayed() {
    let mut seed = 1_u64;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed >> 20
    };
    let records: Vec<_> = (0..20_000)
        .map(|_| {
            let what = What::of_number(u8::try_from(next() % 15 + 1).unwrap()).unwrap();
            let page = if next() % 50 == 0 { next() % (1 << 36) } else { next() % 30_000 };
            let event = Event {
                what,
                page: Vpn(page),
                nr_pages: u32::try_from(next() % 700).unwrap(),
                before: u16::try_from(next() % 512).unwrap(),
                detail: 0,
            };
            Record { time_us: 0, process: u16::try_from(next() % 3).unwrap(), event }
        })
        .collect();
    let trace = trace(records);
    for ram_pages in [0, 1, 600, RAM] {
        let all = least(&trace, ram_pages);
        assert_eq!(least(&trace, ram_pages), all, "the same again");
        assert!(all.fetched <= recorded(&trace).touches, "{all:?}");
    }
    for policy in Name::ALL {
        for ram_pages in [0, 1, 600, RAM] {
            let counts = replay(&trace, policy, ram_pages);
            assert_eq!(counts.useful + counts.useless, counts.read_ahead, "{policy} {counts:?}");
            assert!(counts.faults <= counts.touches && counts.touches == recorded(&trace).touches);
            assert_eq!(replay(&trace, policy, ram_pages), counts, "the same again");
        }
    }
}

#[test]
fn an_empty_trace_has_nothing_to_count() {
    assert_eq!(replay(&trace(Vec::new()), Name::Clock, RAM), Counts::default());
    assert_eq!(recorded(&trace(Vec::new())), crate::Recorded::default());
}

/// Most of what is touched is in a few blocks, which change now and then: nothing that a scan could push out. With a quarter
/// for what came once, instead of a tenth, it cost twice as much.
#[test]
fn twice_costs_little_where_there_is_no_scan() {
    let mut seed = 1_u64;
    let mut next = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let mut pages: Vec<u64> = blocks(0..24).collect();
    pages.extend((0..300_000).map(|number| {
        let among = if next(8) == 0 { 24 } else { 12 };
        let block = (number / 30_000 + next(among)) % 24;
        block * BLOCK + next(BLOCK)
    }));
    let trace = touches(pages);
    let [clock, twice] = [Name::Clock, Name::Twice].map(|policy| replay(&trace, policy, RAM).device_faults);
    assert!(twice * 100 < clock * 140 && clock > 10_000, "{clock} under clock, {twice} under twice");
}
