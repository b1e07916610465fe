//! Exclusive access.

use std::sync::Arc;

use hmm_core::addr::PageRange;
use hmm_core::driver::{Exclusive, ExclusiveError, Select, Skip, Source};
use hmm_core::notifier::{Cause, Change, Notifier, Owner, Pass, Watch};
use hmm_core::state::PageState;
use hmm_model::{Op, Span};

use super::{DATA, Fixture, range, vpn};
use crate::kernel::slot_at;

/// The device adds to a word, which the model learns, too.
fn write(world: &Fixture, exclusive: Exclusive, value: u64) {
    let shared = world.world.shared();
    let mut machine = shared.lock();
    let bytes = machine.slots.page_mut(slot_at(exclusive.addr));
    Arc::make_mut(bytes)[8..16].copy_from_slice(&value.to_ne_bytes());
    let page = machine.page(exclusive.page).expect("is in the arena");
    machine.apply(&Op::Write { page, word: 1, value });
}

fn is_exclusive(world: &Fixture, page: u32) -> bool {
    matches!(world.state(page), PageState::Exclusive { .. })
}

/// Ignores what is done for its own driver.
#[derive(Debug)]
struct Ignoring(Owner);

impl Watch for Ignoring {
    type Table = ();

    fn ignores(&self, change: &Change) -> bool {
        change.owner == Some(self.0)
    }

    fn invalidate(&self, (): &mut (), _: &Change) -> Pass {
        Pass::Done
    }
}

#[test]
fn a_device_has_a_page_until_the_cpu_touches_it() {
    let world = Fixture::new();
    world.told();
    let exclusive = world.engine().make_exclusive(vpn(4), world.one.owner).expect("is private memory");
    assert_eq!(world.told(), [(range(4, 1), Cause::Exclusive, Some(world.one.owner))]);
    assert!(is_exclusive(&world, 4));
    assert!(!world.world.shared().lock().memory.is_present(4), "the CPU has no mapping");
    write(&world, exclusive, 77);
    world.world.op(&Op::Read { page: 4, word: 1 });
    assert_eq!(world.told(), [(range(4, 1), Cause::Clear, None)]);
    assert!(!is_exclusive(&world, 4));
    world.verify();
}

#[test]
fn a_page_is_brought_in_first_from_wherever_it_is() {
    let world = Fixture::new();
    world.take(DATA);
    for page in [4, 200] {
        // On the own device; a hole.
        let exclusive = world.engine().make_exclusive(vpn(page), world.one.owner).expect("comes home first");
        write(&world, exclusive, 5);
        // Once more: the page is taken from the device, and given anew.
        world.engine().make_exclusive(vpn(page), world.one.owner).expect("again");
        assert!(is_exclusive(&world, page));
    }
    // Shared by a fork: a copy of its own is made.
    world.world.op(&Op::Read { page: 7, word: 0 });
    world.world.shared().lock().memory.hold(Span::new(7, 1), crate::memory::Held::Shared);
    world.engine().make_exclusive(vpn(7), world.one.owner).expect("is made the program's own");
    world.world.op(&Op::Read { page: 200, word: 1 });
    world.verify();
}

#[test]
fn what_is_not_writable_private_memory_is_refused() {
    let world = Fixture::new();
    let make = |page| world.engine().make_exclusive(vpn(page), world.one.owner);
    world.world.op(&Op::Protect { span: Span::new(2, 1), writable: false });
    assert_eq!(make(2), Err(ExclusiveError::ReadOnly(vpn(2))));
    world.world.op(&Op::Unmap { span: Span::new(40, 2) });
    assert_eq!(make(40), Err(ExclusiveError::Unmanaged(vpn(40))));
    world.world.shared().lock().memory.hold(Span::new(6, 1), crate::memory::Held::Pinned);
    assert_eq!(make(6), Err(ExclusiveError::Busy(vpn(6))));
    world.world.shared().lock().memory.hold(Span::new(6, 1), crate::memory::Held::No);
    world.world.op(&Op::Protect { span: Span::new(2, 1), writable: true });
    world.verify();
}

#[test]
fn everybody_else_takes_it_away() {
    let revocations: [&dyn Fn(&Fixture); 5] = [
        &|world| drop(world.setup(DATA, Select::SYSTEM, &world.two)),
        &|world| world.engine().revoke(range(0, 16)),
        &|world| world.world.op(&Op::DontNeed { span: DATA }),
        &|world| world.world.op(&Op::Unmap { span: DATA }),
        &|world| world.world.op(&Op::Remap { from: 0, to: 300, len: 16, keep_source: true }),
    ];
    for (number, revoke) in revocations.iter().enumerate() {
        let world = Fixture::new();
        // Two of them, and others between.
        for page in [4, 9] {
            let exclusive = world.engine().make_exclusive(vpn(page), world.one.owner);
            write(&world, exclusive.expect("is private memory"), 99);
        }
        world.told();
        revoke(&world);
        let told = world.told();
        for page in [4, 9] {
            let is_end = |(range, cause, owner): &(PageRange, Cause, Option<Owner>)| {
                range.contains(vpn(page)) && owner.is_none() && matches!(cause, Cause::Clear | Cause::Unmap)
            };
            assert!(told.iter().any(is_end), "{number}: {told:?}");
            assert!(!is_exclusive(&world, page), "{number}");
        }
        world.scan(Span::new(300, 16));
        world.verify();
    }
}

#[test]
fn a_driver_that_was_too_slow_finds_out() {
    let world = Fixture::new();
    let (all, owner) = (world.engine().notifiers(), world.one.owner);
    let driver = Notifier::new(all, range(0, 16), Arc::default(), Ignoring(owner)).expect("has pages");
    let (seq, of_log) = (driver.read_begin(), world.log.read_begin());
    world.engine().make_exclusive(vpn(4), owner).expect("is private memory");
    assert!(driver.install_own(seq, |()| ()).is_ok(), "its own making of the page it ignores");
    assert!(world.log.install_own(of_log, |_| ()).is_err(), "who ignores nothing collides with itself");
    assert!(driver.install(seq, |()| ()).is_err(), "what was read before is stale all the same");
    world.world.op(&Op::Read { page: 4, word: 0 });
    assert!(driver.install_own(seq, |()| ()).is_err(), "taken back before it was mapped");
    drop(driver);
    world.verify();
}

#[test]
fn a_migration_can_leave_a_device_what_it_has_to_itself() {
    let world = Fixture::new();
    world.engine().make_exclusive(vpn(4), world.one.owner).expect("is private memory");
    let migration = world.setup(Span::new(3, 2), Select::SYSTEM | Select::KEEP_EXCLUSIVE, &world.two);
    assert_eq!(migration.entries()[0].source(), Source::System);
    assert_eq!(migration.entries()[1].source(), Source::Skipped(Skip::Exclusive));
    drop(migration);
    assert!(is_exclusive(&world, 4));
    drop(world.setup(Span::new(4, 1), Select::PRIVATE, &world.two));
    assert!(is_exclusive(&world, 4), "system pages were not asked for");
    drop(world.setup(Span::new(4, 1), Select::SYSTEM, &world.two));
    assert!(!is_exclusive(&world, 4));
    world.verify();
}

#[test]
fn what_a_fork_shares_is_at_home() {
    let world = Fixture::new();
    for page in 4..7 {
        world.engine().make_exclusive(vpn(page), world.one.owner).expect("is private memory");
    }
    world.engine().restore_all();
    assert!((4..7).all(|page| matches!(world.state(page), PageState::System { .. })));
    world.verify();
}
