//! What policies are for, seen in the engine.

use hmm_core::Config;
use hmm_core::policy::Name;
use hmm_model::{Arena, Op, Pattern, Span};

use crate::device::DeviceSetup;
use crate::setup::{Noise, Setup};
use crate::world::World;

const BLOCK: u32 = 512;

const fn blocks(first: u32, nr_blocks: u32) -> Span {
    Span::new(first * BLOCK, nr_blocks * BLOCK)
}

/// Memory for ten blocks.
fn world(policy: Name) -> World {
    world_with_windows(policy, Setup::small(2, Noise::NONE).config.max_window)
}

fn world_with_windows(policy: Name, max_window: u32) -> World {
    let small = Setup::small(2, Noise::NONE);
    let device =
        DeviceSetup { capacity_pages: 40_000, keeps_copies: true, is_coherent: false, may_hang: false };
    let config = Config { nr_bays: 4, low_pages: 64, high_pages: 128, policy, max_window, ..small.config };
    World::new(Setup {
        arena: Arena { nr_pages: 40 * BLOCK },
        budget_pages: u64::from(10 * BLOCK),
        config,
        devices: vec![device],
        ..small
    })
}

fn count(world: &World, counter: &str) -> u64 {
    world.report().counters.iter().find(|(name, _)| *name == counter).map_or(0, |(_, count)| *count)
}

/// Faults that a device serves when three hot blocks are read behind a scan of twenty others.
fn faults_after_a_scan(policy: Name) -> u64 {
    let world = world(policy);
    let hot = Op::scan(blocks(0, 3));
    world.op(&Op::Map { span: blocks(0, 40) });
    world.op(&Op::Fill { span: blocks(0, 40), pattern: Pattern::Noise, stamp: 7 });
    // It becomes hot: read again and again, while some others are read.
    for number in 0..6 {
        world.op(&hot);
        world.op(&Op::scan(blocks(5 + 2 * number, 2)));
    }
    world.op(&hot);
    world.op(&Op::scan(blocks(20, 20)));
    let before = count(&world, "pgmajfault");
    world.op(&hot);
    count(&world, "pgmajfault") - before
}

#[test]
fn a_hot_set_survives_a_scan_under_twice() {
    let [clock, twice] = [Name::Clock, Name::Twice].map(faults_after_a_scan);
    assert!(twice == 0 && clock >= 10, "{clock} faults under clock, {twice} under twice");
}

/// Faults that a device serves when the program reads every so many pages of two blocks that are away, while others fetch ahead.
fn faults_of_a_stream(stride: i16) -> u64 {
    let world = world(Name::Clock);
    world.op(&Op::Map { span: blocks(0, 40) });
    world.op(&Op::Fill { span: blocks(0, 40), pattern: Pattern::Noise, stamp: 7 });
    for page in blocks(0, 2).pages_by(stride) {
        world.op(&Op::Read { page, word: 0 });
        world.op(&Op::ReadAhead { steps: 8 });
    }
    count(&world, "pgmajfault")
}

#[test]
fn what_a_stream_comes_to_is_fetched_ahead_whichever_way_it_goes() {
    for stride in [1, -1, 13, -13] {
        let nr_faults = faults_of_a_stream(stride);
        assert!(nr_faults < 20, "{nr_faults} faults by {stride}");
    }
    assert_eq!(faults_of_a_stream(400), 3, "three touches are the first that say where it goes");
}

/// A block that a stream came through, away again.
fn world_with_a_past() -> World {
    let world = world_with_windows(Name::Clock, BLOCK);
    world.op(&Op::Map { span: blocks(0, 40) });
    world.op(&Op::Fill { span: blocks(0, 40), pattern: Pattern::Noise, stamp: 7 });
    for page in 0..BLOCK {
        world.op(&Op::Read { page, word: 0 });
        world.op(&Op::ReadAhead { steps: 8 });
    }
    world.op(&Op::scan(blocks(20, 20)));
    // What was planned is done, and there is memory for a block.
    world.op(&Op::ReadAhead { steps: 64 });
    world.op(&Op::Reclaim { steps: 16 });
    world
}

fn fetched(world: &World) -> u64 {
    count(world, "pgfetch") + count(world, "pgprefetch")
}

#[test]
fn a_block_that_was_gone_through_comes_as_soon_as_there_is_a_stream_again() {
    let world = world_with_a_past();
    let pages = fetched(&world);
    world.op(&Op::Read { page: 0, word: 0 });
    world.op(&Op::ReadAhead { steps: 64 });
    assert_eq!(fetched(&world) - pages, 1, "a touch brings its page");
    world.op(&Op::Read { page: 1, word: 0 });
    world.op(&Op::ReadAhead { steps: 64 });
    let came = fetched(&world) - pages;
    assert!((256..=u64::from(BLOCK)).contains(&came), "{came} pages came: the block, and no more");
}

#[test]
fn touches_alone_bring_their_pages_wherever_streams_were() {
    let world = world_with_a_past();
    let pages = fetched(&world);
    for page in [400, 300, 100, 200, 201] {
        world.op(&Op::Read { page, word: 0 });
        world.op(&Op::ReadAhead { steps: 64 });
    }
    // The last two may be a stream, of which nobody knows that it goes on.
    let pages = fetched(&world) - pages;
    assert!(pages <= 5 + 3 + 4, "{pages}");
}
