//! Copies of pages that everybody only reads: who may make one, and what ends it.

use std::sync::{Arc, Mutex};

use hmm_core::driver::Select;
use hmm_core::mirror::{Found, Pfn, RangeFault, Request};
use hmm_core::notifier::{Cause, Change, Notifier, Owner, Pass, Watch};
use hmm_core::state::PageState;
use hmm_model::{Op, Pattern, Span};

use super::{Fixture, range, vpn};
use crate::events::Event;
use crate::machine::Machine;
use crate::memory::Held;
use crate::shared::Shared;

/// More than what one write lifts the protection of.
const PAGES: Span = Span::new(0, 48);

/// A world in which these pages are write-protected for the first driver.
fn protected() -> Fixture {
    let world = Fixture::new();
    world.world.op(&Op::Fill { span: PAGES, pattern: Pattern::Noise, stamp: 7 });
    world.engine().write_protect(Machine::range(PAGES), world.one.owner).expect("a short range");
    world
}

fn look(world: &Fixture, want: Request) -> Vec<Pfn> {
    let mut pfns = vec![Pfn::default(); PAGES.len as usize];
    let mut fault = RangeFault::all(Machine::range(PAGES), want, None, &mut pfns);
    // What is asked for may be a change of the range by itself.
    let mut read = || world.engine().range_fault(&world.log, world.log.read_begin(), &mut fault);
    let outcome = (0..9).map(|_| read()).find(Result::is_ok);
    assert_eq!(outcome, Some(Ok(())));
    pfns
}

/// The pages of which a driver may make copies.
fn may_be_copied(world: &Fixture) -> Vec<u32> {
    let pfns = look(world, Request::NONE);
    assert!(pfns.iter().all(|pfn| !(pfn.protected && pfn.write)), "{pfns:?}");
    PAGES.pages().zip(pfns).filter(|(_, pfn)| pfn.protected).map(|(page, _)| page).collect()
}

fn is_told_of(told: &[(hmm_core::addr::PageRange, Cause, Option<Owner>)], page: u32) -> bool {
    told.iter().any(|(range, _, owner)| range.contains(vpn(page)) && owner.is_none())
}

#[test]
fn copies_may_be_made_of_what_is_protected() {
    let world = Fixture::new();
    world.world.op(&Op::Fill { span: PAGES, pattern: Pattern::Noise, stamp: 7 });
    assert_eq!(may_be_copied(&world), [], "anybody may write");
    world.told();
    let part = range(8, 16);
    world.engine().write_protect(part, world.one.owner).expect("a short range");
    // In between the CPU could write: it is no change that the driver may ignore.
    assert_eq!(world.told(), [(part, Cause::Clear, None)]);
    assert_eq!(may_be_copied(&world), (8..24).collect::<Vec<_>>());
    let nr_faults = world.world.shared().lock().nr_faults;
    world.scan(PAGES);
    assert_eq!(world.world.shared().lock().nr_faults, nr_faults, "reading is no fault");
    assert_eq!((world.told(), may_be_copied(&world).len()), (vec![], 16), "and no change");
    world.verify();
}

/// Sees whether the pages are protected when it is told of a change.
struct Witness(Arc<Shared>);

impl Watch for Witness {
    type Table = Vec<bool>;

    fn invalidate(&self, seen: &mut Vec<bool>, change: &Change) -> Pass {
        let machine = self.0.lock();
        let mut pages = change.range.iter().filter_map(|page| machine.page(page));
        seen.push(pages.all(|page| machine.memory.is_protected(page)));
        Pass::Done
    }
}

#[test]
fn a_write_is_told_of_before_it_happens() {
    let world = protected();
    let table = Arc::new(Mutex::new(Vec::new()));
    let all = world.engine().notifiers();
    let witness =
        Notifier::new(all, Machine::range(PAGES), table, Witness(world.world.shared())).expect("a range");
    world.told();
    let before = may_be_copied(&world);
    world.world.op(&Op::Write { page: 20, word: 3, value: 1 });
    assert_eq!(*witness.table(), [true], "one word, and they were all protected then");
    let told = world.told();
    let after = may_be_copied(&world);
    assert!(!after.contains(&20) && after.len() >= before.len() - 16, "{after:?}");
    for page in before.iter().filter(|page| !after.contains(page)) {
        assert!(is_told_of(&told, *page), "page {page} can be written to: {told:?}");
    }
    world.world.op(&Op::Write { page: 20, word: 4, value: 1 });
    assert_eq!(world.told(), [], "it can be written to");
    drop(witness);
    world.verify();
}

#[test]
fn who_asks_for_writing_ends_copies() {
    let world = protected();
    world.told();
    let pfns = look(&world, Request::FAULT);
    assert!(pfns.iter().all(|pfn| pfn.protected), "enough for reading");
    assert_eq!(world.told(), []);
    let pfns = look(&world, Request::FAULT | Request::WRITE);
    assert!(pfns.iter().all(|pfn| pfn.write && !pfn.protected), "{pfns:?}");
    let told = world.told();
    assert!(PAGES.pages().all(|page| is_told_of(&told, page)), "{told:?}");
    world.verify();
}

#[test]
fn whatever_takes_a_page_away_ends_its_copies() {
    let ends: [&dyn Fn(&Fixture); 6] = [
        &|world| assert!(world.engine().evict_range(range(20, 1)) > 0),
        &|world| drop(world.setup(Span::new(20, 1), Select::SYSTEM, &world.two)),
        &|world| assert!(world.engine().make_exclusive(vpn(20), world.two.owner).is_ok()),
        &|world| world.world.op(&Op::DontNeed { span: Span::new(20, 1) }),
        &|world| world.world.op(&Op::Unmap { span: Span::new(20, 1) }),
        &|world| world.world.op(&Op::Remap { from: 20, to: 300, len: 1, keep_source: true }),
    ];
    for (number, end) in ends.iter().enumerate() {
        let world = protected();
        assert!(may_be_copied(&world).contains(&20));
        world.told();
        end(&world);
        let told = world.told();
        assert!(told.iter().any(|(range, ..)| range.contains(vpn(20))), "{number}: {told:?}");
        world.scan(PAGES);
        world.scan(Span::new(300, 1));
        assert!(!may_be_copied(&world).contains(&20), "{number}: whoever comes back can be written to");
        world.verify();
    }
}

#[test]
fn what_others_may_write_to_unseen_is_not_protected() {
    for held in [Held::Pinned, Held::Shared] {
        let world = Fixture::new();
        world.world.op(&Op::Fill { span: PAGES, pattern: Pattern::Noise, stamp: 7 });
        world.world.shared().lock().memory.hold(Span::new(20, 2), held);
        world.engine().write_protect(Machine::range(PAGES), world.one.owner).expect("a short range");
        let copied = may_be_copied(&world);
        assert_eq!(PAGES.pages().filter(|page| !copied.contains(page)).collect::<Vec<_>>(), [20, 21]);
        world.world.shared().lock().memory.hold(Span::new(20, 2), Held::No);
        world.verify();
    }
}

#[test]
fn what_is_being_discarded_is_not_protected() {
    let world = protected();
    world.told();
    world.world.start(&Op::DontNeed { span: PAGES });
    let events = world.engine().events();
    assert_eq!(world.world.shared().lock().read_event(), Some(Event::Discarded(PAGES)));
    events.removed(Machine::range(PAGES));
    drop(events);
    assert_eq!(world.told(), [(Machine::range(PAGES), Cause::Clear, None)]);
    // The kernel has not dropped the pages yet, and will not say when.
    assert!(world.world.shared().lock().memory.is_protected(5));
    let pfns = look(&world, Request::NONE);
    assert!(pfns.iter().all(|pfn| pfn.found == Found::System { zero: false } && !pfn.protected), "{pfns:?}");
    // Nor is one protected anew that is found again.
    world.told();
    world.engine().write_protect(range(4, 4), world.one.owner).expect("a short range");
    assert_eq!(world.told(), [], "that is left until drivers settle");
    world.begin(&Op::Read { page: 100, word: 0 });
    world.engine().settle();
    world.world.op(&Op::Write { page: 5, word: 1, value: 3 });
    assert!(matches!(world.state(5), PageState::System { .. }));
    world.engine().write_protect(range(4, 4), world.one.owner).expect("a short range");
    assert!(may_be_copied(&world).contains(&5));
    world.scan(PAGES);
    world.verify();
}
