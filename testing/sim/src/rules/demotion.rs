//! Pages move down from a tier that is nearly full, and nobody notices.

use hmm_core::state::PageState;
use hmm_device::DeviceError;
use hmm_model::{Op, Pattern, Span};

use crate::device::DeviceSetup;
use crate::machine::Machine;
use crate::setup::{Meanwhile, Setup};
use crate::world::World;
use crate::{check, runtime};

/// What goes to the first tier first, and what goes there last, in another block. Together they fill it.
const COLD: Span = Span::new(0, 60);
const HOT: Span = Span::new(512, 40);
const FULL: u32 = COLD.len + HOT.len;
/// What is moved down at once: down to nine tenths.
const BATCH: u32 = FULL / 10;
/// Where there is nothing else.
const ELSEWHERE: Span = Span::new(600, 60);

const fn fill(span: Span) -> Op {
    Op::Fill { span, pattern: Pattern::Noise, stamp: 7 }
}

fn setup() -> Setup {
    let calm = Setup { budget_pages: 1300, ..Setup::calm(1) };
    let roomy = calm.devices[0];
    let devices = vec![DeviceSetup { capacity_pages: FULL, ..roomy }, roomy];
    Setup { devices, ..calm }
}

/// The first tier of two is full: first of what is cold, and then of what is hot.
fn full_world(setup: Setup) -> World {
    let world = World::new(setup);
    for span in [COLD, HOT] {
        world.op(&Op::Map { span });
        world.op(&fill(span));
        store(&world, span);
    }
    world
}

/// Takes what is resident to a tier.
fn store(world: &World, span: Span) {
    assert!(world.engine().evict_range(Machine::range(span)) > 0);
    for _ in 0..20 {
        let _ = world.engine().reclaim();
    }
    assert_eq!(nr_on(world, 0, span) + nr_on(world, 1, span), span.len);
}

fn nr_on(world: &World, tier: u8, span: Span) -> u32 {
    let is_there = |page: &u32| matches!(world.engine().state(Machine::vpn(*page)), PageState::Device { frame } if frame.device == tier);
    u32::try_from(span.pages().filter(is_there).count()).expect("few")
}

fn verify(world: &World) {
    runtime::settle(&world.shared(), world.engine());
    check::all(&world.shared(), world.engine());
    check::bytes(&world.shared(), world.engine());
    for span in [COLD, HOT] {
        span.pages().for_each(|page| world.op(&Op::scan(Span::new(page, 1))));
    }
    check::all(&world.shared(), world.engine());
}

/// Runs a batch in a world in which something happens in the middle of its first transfer, the fetch, or of its second, the
/// store. Returns whether pages moved.
fn demote_while(phase: usize, ops: &[Op]) -> (World, bool) {
    let transfer = full_world(setup()).shared().lock().nr_transfers + phase;
    let meanwhile = vec![Meanwhile { transfer, ops: ops.to_vec() }];
    let world = full_world(Setup { meanwhile, ..setup() });
    let any_moved = world.engine().demote();
    (world, any_moved)
}

#[test]
fn what_has_been_there_longest_moves_down_and_no_more_than_must() {
    let world = full_world(setup());
    assert_eq!((nr_on(&world, 0, COLD), nr_on(&world, 0, HOT)), (COLD.len, HOT.len));
    assert!(world.engine().demote());
    assert_eq!((nr_on(&world, 1, COLD), nr_on(&world, 1, HOT)), (BATCH, 0));
    while world.engine().demote() {}
    assert_eq!((nr_on(&world, 1, COLD), nr_on(&world, 1, HOT)), (BATCH + 1, 0), "under the mark");
    let stats = &world.shared().stats;
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((count(&stats.demoted[0]), count(&stats.demoted[1])), (u64::from(BATCH) + 1, 0));
    assert_eq!(count(&stats.pgdemote), u64::from(BATCH) + 1);
    verify(&world);
}

#[test]
fn a_block_of_which_pages_came_home_has_another_chance() {
    let world = full_world(setup());
    world.op(&Op::Read { page: COLD.first, word: 0 });
    store(&world, COLD);
    while world.engine().demote() {}
    assert_eq!((nr_on(&world, 1, COLD), nr_on(&world, 1, HOT)), (0, BATCH + 1));
    verify(&world);
}

#[test]
fn nothing_moves_where_there_is_room_or_nowhere_to_go() {
    let roomy = setup().devices[1];
    let world = full_world(Setup { devices: vec![roomy, roomy], ..setup() });
    assert!(!world.engine().demote(), "it is not full");
    let tight = setup().devices[0];
    let world = full_world(Setup { devices: vec![tight], ..setup() });
    assert!(!world.engine().demote(), "there is no other");
    let world =
        full_world(Setup { devices: vec![tight, DeviceSetup { capacity_pages: 0, ..tight }], ..setup() });
    assert!(!world.engine().demote(), "the other has no room");
    assert_eq!(nr_on(&world, 0, COLD), COLD.len);
    verify(&world);
}

#[test]
fn nothing_moves_while_all_stay() {
    let world = full_world(setup());
    world.engine().have_all_stay(true);
    assert!(!world.engine().demote());
    world.engine().have_all_stay(false);
    assert!(world.engine().demote());
    verify(&world);
}

#[test]
fn what_is_touched_meanwhile_comes_home() {
    for phase in [0, 1] {
        let (world, any_moved) = demote_while(phase, &[Op::Read { page: 3, word: 0 }]);
        assert!(any_moved);
        runtime::settle(&world.shared(), world.engine());
        assert!(matches!(world.engine().state(Machine::vpn(3)), PageState::System { .. }), "phase {phase}");
        assert_eq!(nr_on(&world, 1, COLD), BATCH - 1, "phase {phase}");
        verify(&world);
    }
}

#[test]
fn what_is_given_up_or_moved_meanwhile_is_not_lost() {
    let moves = [
        vec![Op::DontNeed { span: Span::new(2, 3) }],
        vec![Op::DontNeed { span: COLD }, fill(Span::new(0, 5))],
        vec![Op::Unmap { span: COLD }],
        vec![Op::Unmap { span: COLD }, Op::Map { span: COLD }, fill(Span::new(0, 20))],
        vec![Op::Remap { from: 0, to: ELSEWHERE.first, len: COLD.len, keep_source: true }],
        // To the place of another page of the batch, and over one.
        vec![Op::Remap { from: 1, to: 3, len: 1, keep_source: true }],
        vec![Op::Remap { from: 1, to: 4, len: 3, keep_source: true }],
        vec![Op::Remap { from: 520, to: 3, len: 2, keep_source: true }],
        vec![
            Op::Remap { from: 0, to: ELSEWHERE.first, len: COLD.len, keep_source: true },
            Op::DontNeed { span: Span::new(ELSEWHERE.first, 4) },
        ],
    ];
    for (phase, ops) in [0, 1].into_iter().flat_map(|phase| moves.iter().map(move |ops| (phase, ops))) {
        let (world, _) = demote_while(phase, ops);
        while world.engine().demote() {}
        verify(&world);
    }
}

#[test]
fn what_moved_to_another_block_moves_down_from_there() {
    let world = full_world(setup());
    world.op(&Op::Remap { from: 0, to: ELSEWHERE.first, len: COLD.len, keep_source: true });
    world.op(&Op::DontNeed { span: HOT });
    world.op(&fill(HOT));
    store(&world, HOT);
    assert!(world.engine().demote());
    assert_eq!(nr_on(&world, 1, Span::new(512, 188)), BATCH);
    verify(&world);
}

/// Once, in each way, behind no page and behind some.
#[test]
fn what_fails_stays_above() {
    let store = [DeviceError::OutOfMemory, DeviceError::Io, DeviceError::Unsupported, DeviceError::Lost];
    for why in store {
        let world = full_world(setup());
        let nr_made = world.shared().lock().device_plan.made().len();
        // The fetch goes, then frames are handed out, then the store fails.
        world.shared().lock().device_plan.fail(nr_made + 2, why, 4);
        assert!(world.engine().demote());
        assert_eq!((nr_on(&world, 0, COLD), nr_on(&world, 1, COLD)), (COLD.len - 4, 4), "{why:?}");
        let setup_of = |number: usize| world.shared().lock().devices[number].is_lost();
        assert_eq!((setup_of(0), setup_of(1)), (false, why == DeviceError::Lost));
        if why != DeviceError::Lost {
            verify(&world);
        }
    }
    for (why, nr_tries) in [(DeviceError::Io, 3), (DeviceError::Corrupt, 1)] {
        let world = full_world(setup());
        let nr_made = world.shared().lock().device_plan.made().len();
        (0..nr_tries).for_each(|more| world.shared().lock().device_plan.fail(nr_made + more, why, 0));
        assert!(!world.engine().demote(), "it cannot be read: {why:?}");
        assert_eq!(nr_on(&world, 0, COLD), COLD.len);
        // Others can.
        let moved = (0..100).any(|_| world.engine().demote());
        assert!(moved && nr_on(&world, 1, HOT) > 0 && nr_on(&world, 1, COLD) == 0, "{why:?}");
        verify(&world);
    }
}

#[test]
fn no_memory_is_charged_beyond_the_budget() {
    let world = full_world(setup());
    let (shared, stock) = (world.shared(), world.engine().nr_stock());
    assert!(stock > 0 && shared.ledger.share(1).try_charge(shared.ledger.free()));
    let before = shared.ledger.charged();
    assert!(world.engine().demote(), "by memory without meaning");
    assert!(shared.ledger.charged() <= before);
    shared.ledger.share(1).clear();
    verify(&world);
}
