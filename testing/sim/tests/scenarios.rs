//! Programs that do one particular thing, at one particular time.

#![cfg(test)]

use hmm_core::Config;
use hmm_model::{Arena, Op, Pattern, Span};
use hmm_sim::{DeviceSetup, DeviceVerb, Meanwhile, Noise, Report, Setup, run, seeds};

const ARENA: Arena = Arena { nr_pages: 600 };
const ALL: Op = Op::Map { span: ARENA.all() };
/// What the tests do their things to.
const DATA: Span = Span::new(0, 16);

/// Room for everything.
fn wide(seed: u64) -> Setup {
    Setup { arena: ARENA, budget_pages: 1300, ..Setup::small(seed, Noise::NONE) }
}

const fn fill(span: Span) -> Op {
    Op::Fill { span, pattern: Pattern::Noise, stamp: 7 }
}

const fn remap(from: u32, to: u32, len: u32) -> Op {
    Op::Remap { from, to, len, keep_source: true }
}

/// Resident pages with a hole behind them, which a first touch would fill together.
const RESIDENT: Span = Span::new(520, 3);
const HOLE: u32 = 523;

/// `DATA` is filled and goes to a device, and comes home when it is scanned; `RESIDENT` is resident.
/// While its first transfer home is under way, `ops` happen.
fn while_fetching(seed: u64, ops: &[Op]) {
    let program = [ALL, fill(DATA), Op::Reclaim { steps: 4 }, fill(Span::new(521, 7)), Op::scan(DATA)];
    let setup = wide(seed);
    let transfer = run_to_fetch(&setup, &program);
    run(&Setup { meanwhile: vec![Meanwhile { transfer, ops: ops.to_vec() }], ..setup }, &program);
}

/// The number of the first transfer that is a fetch of several pages, or of one if there is none.
fn run_to_fetch(setup: &Setup, program: &[Op]) -> usize {
    let Report { device_calls, .. } = run(setup, program);
    let transfers: Vec<_> = device_calls.iter().filter(|made| made.verb != DeviceVerb::Alloc).collect();
    let fetch =
        |least| transfers.iter().position(|made| made.verb == DeviceVerb::Fetch && made.nr_pages >= least);
    fetch(4).or_else(|| fetch(1)).expect("the data came from a device")
}

#[test]
fn a_huge_page_comes_home_into_a_mapping_that_was_split() {
    let block = Span::new(0, 512);
    for seed in seeds(16) {
        let mut program = vec![ALL, fill(block), Op::Reclaim { steps: 1 }];
        program.push(Op::Protect { span: Span::new(100, 10), writable: false });
        program.extend([511, 104, 50].map(|page| Op::Read { page, word: 0 }));
        run(&wide(seed), &program);
    }
}

#[test]
fn a_page_is_discarded_while_it_is_fetched() {
    for seed in seeds(4) {
        while_fetching(seed, &[Op::DontNeed { span: DATA }]);
        while_fetching(seed, &[Op::DontNeed { span: Span::new(1, 1) }]);
        while_fetching(seed, &[Op::DontNeed { span: DATA }, Op::Read { page: 1, word: 0 }]);
    }
}

#[test]
fn a_page_is_unmapped_while_it_is_fetched() {
    for seed in seeds(4) {
        while_fetching(seed, &[Op::Unmap { span: DATA }]);
        while_fetching(seed, &[Op::Unmap { span: DATA }, Op::Map { span: DATA }]);
        for stamp in 1..6 {
            while_fetching(seed, &[Op::Adopt { span: DATA, stamp }]);
        }
    }
}

#[test]
fn a_page_is_moved_while_it_is_fetched() {
    for seed in seeds(4) {
        // Elsewhere, and on.
        while_fetching(seed, &[remap(0, 300, 16)]);
        while_fetching(seed, &[remap(0, 300, 16), remap(300, 550, 16)]);
        while_fetching(seed, &[remap(0, 300, 16), Op::DontNeed { span: Span::new(300, 16) }]);
        // To the place of another page of the same transfer.
        for distance in 1..8 {
            while_fetching(seed, &[remap(1, 1 + distance, distance)]);
        }
    }
}

#[test]
fn a_page_is_moved_over_one_that_is_fetched() {
    for seed in seeds(4) {
        while_fetching(seed, &[remap(RESIDENT.first, 0, RESIDENT.len)]);
        while_fetching(seed, &[remap(RESIDENT.first, 4, 1)]);
    }
}

#[test]
fn pages_that_are_about_to_go_stay_where_they_are() {
    let discard = Op::DontNeed { span: RESIDENT };
    for seed in seeds(8) {
        // The event has been read, and the pages have not gone yet.
        while_fetching(seed, &[discard, Op::Reclaim { steps: 3 }]);
        while_fetching(seed, &[discard, Op::Read { page: HOLE, word: 0 }]);
    }
}

#[test]
fn pages_come_home_when_the_device_and_staging_are_full() {
    let data = Span::new(0, 1536);
    for seed in seeds(8) {
        let calm = Setup::small(seed, Noise::NONE);
        let setup = Setup {
            arena: Arena { nr_pages: 1600 },
            budget_pages: 1600,
            config: Config { nr_bays: 2, ..calm.config },
            devices: vec![DeviceSetup {
                capacity_pages: 40,
                keeps_copies: true,
                is_coherent: false,
                may_hang: false,
            }],
            ..calm
        };
        let map = Op::Map { span: setup.arena.all() };
        run(&setup, &[map, fill(data), Op::Reclaim { steps: 64 }, Op::scan(data)]);
    }
}
