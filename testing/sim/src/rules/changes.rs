//! Who changes what is mapped tells the drivers: why, and on whose behalf.

use hmm_core::addr::PageRange;
use hmm_core::driver::Select;
use hmm_core::mirror::{Found, Pfn, RangeFault, Request};
use hmm_core::notifier::{Cause, Change};
use hmm_model::{Op, Span};

use super::{DATA, Fixture, range};
use crate::events::Event;

#[test]
fn setup_tells_of_the_whole_range_with_the_owner() {
    let world = Fixture::new();
    drop(world.setup(DATA, Select::SYSTEM, &world.one));
    assert_eq!(world.told(), [(range(0, 16), Cause::Migrate, Some(world.one.owner))]);
    // Nothing to collect, and the range is invalidated all the same.
    drop(world.setup(Span::new(50, 3), Select::PRIVATE, &world.two));
    assert_eq!(world.told(), [(range(50, 3), Cause::Migrate, Some(world.two.owner))]);
    let seq = world.log.read_begin();
    drop(world.setup(DATA, Select::SYSTEM, &world.one));
    assert!(world.log.check_retry(seq), "what was read before is stale");
    let seq = world.log.read_begin();
    assert!(!world.log.check_retry(seq), "the change is over");
}

#[test]
fn a_touch_tells_the_driver_before_the_device_is_read() {
    let world = Fixture::new();
    world.take(DATA);
    world.told();
    world.world.op(&Op::Read { page: 4, word: 0 });
    let told = world.told();
    assert!(!told.is_empty());
    for (told, cause, owner) in told {
        assert!(told.contains(super::vpn(4)));
        // Not with the owner: the driver takes no part in it, and must not ignore it.
        assert_eq!((cause, owner), (Cause::Clear, None));
    }
    world.verify();
}

#[test]
fn every_way_in_which_pages_go() {
    let world = Fixture::new();
    world.told();
    let causes = |op: &Op| {
        world.world.op(op);
        world.told()
    };
    let none = None;
    assert_eq!(causes(&Op::Read { page: 0, word: 0 }), [], "what is there can be read in peace");
    assert_eq!(causes(&Op::DontNeed { span: DATA }), [(range(0, 16), Cause::Clear, none)]);
    assert_eq!(causes(&Op::Unmap { span: DATA }), [(range(0, 16), Cause::Unmap, none)]);
    let moves = causes(&Op::Remap { from: 100, to: 0, len: 8, keep_source: true });
    assert!(moves.contains(&(range(100, 8), Cause::Unmap, none)), "{moves:?}");
    world.world.op(&Op::Read { page: 200, word: 0 });
    world.told();
    assert!(world.engine().evict_range(range(200, 1)) > 0);
    assert_eq!(world.told(), [(range(200, 1), Cause::Clear, none)]);
}

#[test]
fn a_discard_is_told_before_its_pages_go_and_once_more_when_drivers_settle() {
    let world = Fixture::new();
    world.told();
    world.world.start(&Op::DontNeed { span: DATA });
    let events = world.engine().events();
    assert_eq!(world.world.shared().lock().read_event(), Some(Event::Discarded(DATA)));
    events.removed(range(0, 16));
    drop(events);
    assert_eq!(world.told(), [(range(0, 16), Cause::Clear, None)]);
    // The thread has not gone on: what a driver finds now, goes.
    let mut pfns = [Pfn::default(); 16];
    let seq = world.log.read_begin();
    let mut look = RangeFault::snapshot(range(0, 16), None, &mut pfns);
    assert_eq!(world.engine().range_fault(&world.log, seq, &mut look), Ok(()));
    assert!(pfns.iter().all(|pfn| pfn.found == Found::System { zero: false }), "they are still there");
    world.begin(&Op::Read { page: 100, word: 0 });
    assert!(!world.world.shared().lock().memory.is_present(0), "now they are gone");
    assert!(world.log.install(seq, |_| ()).is_ok(), "and nobody has said so");
    world.engine().settle();
    assert_eq!(world.told(), [(range(0, 16), Cause::Clear, None)]);
    assert!(world.log.install(seq, |_| ()).is_err());
    world.engine().settle();
    assert_eq!(world.told(), [], "all is said");
    world.verify();
}

#[test]
fn the_end_of_the_engine_is_told() {
    let Fixture { world, one: _, two: _, log } = Fixture::new();
    std::mem::take(&mut *log.table());
    drop(world);
    let told: Vec<Change> = std::mem::take(&mut *log.table());
    let all = |change: &Change| change.range.start.0 == 0 && change.range.nr_pages() == 1 << 35;
    assert!(matches!(&told[..], [change] if change.cause == Cause::Release && all(change)), "{told:?}");
}

#[test]
fn frames_are_shown_to_their_owner_alone() {
    let world = Fixture::new();
    world.take(DATA);
    let look = |owner, request| {
        let mut pfns = [Pfn::default(); 16];
        let seq = world.log.read_begin();
        let whole: PageRange = range(0, 16);
        let mut fault = RangeFault::all(whole, request, owner, &mut pfns);
        let outcome = world.engine().range_fault(&world.log, seq, &mut fault);
        (outcome, pfns)
    };
    let (outcome, pfns) = look(Some(world.one.owner), Request::FAULT | Request::WRITE);
    assert_eq!(outcome, Ok(()));
    assert!(pfns.iter().all(|pfn| matches!(pfn.found, Found::Private(_)) && pfn.write));
    assert!(world.is_away(0), "the own driver's fault brings nothing home");
    for stranger in [None, Some(world.two.owner)] {
        let (outcome, pfns) = look(stranger, Request::NONE);
        assert_eq!(outcome, Ok(()));
        assert!(pfns.iter().all(|pfn| pfn.found == Found::None));
    }
    assert!(world.is_away(0), "looking brings nothing home");
    // Another driver's fault does.
    let mut outcome = look(Some(world.two.owner), Request::FAULT).0;
    for _ in 0..20 {
        outcome = outcome.or_else(|_| look(Some(world.two.owner), Request::FAULT).0);
    }
    assert_eq!(outcome, Ok(()));
    assert!((0..16).all(|page| !world.is_away(page)));
    world.verify();
}
