//! Memory that pages left behind is lent to others, and given back to the system where lending does not help.

use hmm_core::Config;
use hmm_core::state::PageState;
use hmm_model::{Op, Pattern, Span};

use crate::machine::Machine;
use crate::setup::Setup;
use crate::world::World;
use crate::{check, runtime};

/// What has left, and whose memory is most of the budget.
const AWAY: Span = Span::new(0, 9);
/// Never touched, and read-only: a page cannot be moved there, but copied.
const HOLES: Span = Span::new(32, 9);

/// The copy needs memory of its own, and all that could be given back is lent to it.
#[test]
fn a_hole_that_is_read_only_gets_memory_that_is_stock() {
    let calm = Setup::calm(1);
    let config =
        Config { reuses_memory: true, first_touch_pages: 16, low_pages: 1, high_pages: 3, ..calm.config };
    let world = World::new(Setup { budget_pages: 12, config, ..calm });
    for span in [AWAY, HOLES] {
        world.op(&Op::Map { span });
    }
    world.op(&Op::Fill { span: AWAY, pattern: Pattern::Noise, stamp: 7 });
    assert_eq!(world.engine().evict_range(Machine::range(AWAY)), 9);
    let is_away = |page| matches!(world.engine().state(Machine::vpn(page)), PageState::Device { .. });
    for _ in 0..20 {
        if !AWAY.pages().all(is_away) {
            let _ = world.engine().reclaim();
        }
    }
    assert_eq!((AWAY.pages().all(is_away), world.engine().nr_stock()), (true, 9), "it is stock");
    world.op(&Op::Protect { span: HOLES, writable: false });
    world.op(&Op::scan(HOLES));
    runtime::settle(&world.shared(), world.engine());
    check::all(&world.shared(), world.engine());
    check::bytes(&world.shared(), world.engine());
}

/// What is given up without an event is noticed when its block leaves, whatever else stays of the block.
#[test]
fn what_was_given_up_is_not_charged_though_what_is_read_only_stays() {
    let world = World::new(Setup { budget_pages: 100, ..Setup::calm(1) });
    for span in [AWAY, HOLES] {
        world.op(&Op::Map { span });
        world.op(&Op::Fill { span, pattern: Pattern::Noise, stamp: 7 });
    }
    world.op(&Op::Protect { span: HOLES, writable: false });
    let shared = world.shared();
    let before = shared.ledger.charged() - world.engine().nr_stock();
    {
        let mut machine = shared.lock();
        machine.memory.zap(AWAY);
        machine.ghosts.extend(AWAY.pages());
    }
    world.op(&Op::DontNeed { span: Span::new(AWAY.first, 1) });
    assert_eq!(world.engine().evict_range(Machine::range(Span::new(0, 64))), 0);
    assert_eq!(shared.ledger.charged() - world.engine().nr_stock(), before - u64::from(AWAY.len));
    let state = |page| world.engine().state(Machine::vpn(page));
    assert!(AWAY.pages().all(|page| state(page) == PageState::None));
    assert!(HOLES.pages().all(|page| matches!(state(page), PageState::System { .. })));
    check::all(&shared, world.engine());
}
