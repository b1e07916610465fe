//! Pages in frames of drivers' devices.

use std::sync::Arc;
use std::time::Duration;

use hmm::AddressSpace;
use hmm::core::DeviceId;
use hmm::core::addr::PageRange;
use hmm::core::driver::Select;
use hmm::core::mirror::{Found, Pfn, RangeError, Request};
use hmm::core::notifier::{Cause, Change, Owner};
use hmm::device::Ram;
use hmm::uapi::maps::Perms;
use hmm::uapi::uffd::Access;

use crate::common::within;
use crate::maps::*;

const LIMIT: u64 = 30;
const MINE: Owner = Owner(1);
const OTHER: Owner = Owner(2);

fn device(space: &AddressSpace, owner: Owner) -> DeviceId {
    space.add_device(Arc::new(Ram::new(1024)), owner).expect("there are few devices")
}

/// Takes pages of any memory to a device. Returns how many went.
fn migrate(space: &AddressSpace, range: PageRange, device: DeviceId, owner: Owner) -> usize {
    let mut migration = space.migrate_setup(range, Select::SYSTEM, owner).expect("can be managed");
    migration.store(device).expect("the device is the driver's");
    migration.pages().finalize()
}

/// Whether it is a frame of that device, which may be written to or not.
fn is_private(pfn: &Pfn, device: DeviceId, write: bool) -> bool {
    matches!(pfn.found, Found::Private(frame) if frame.device == device.number()) && pfn.write == write
}

fn own_and_others(access: Access) {
    let space = match AddressSpace::builder().access(access).build() {
        Ok(space) => space,
        Err(why) => return skip(&why.to_string()),
    };
    let (mine, map) = (device(&space, MINE), Map::holes(4));
    let _others = device(&space, OTHER);
    (0..3).for_each(|page| map.write(page, 7));
    assert_eq!(migrate(&space, map.part(0, 3), mine, MINE), 3);
    let look = |want, owner| fault_as(&space, map.part(0, 3), want, owner);
    // The owner gets its frames, whatever it asks for, and nothing moves.
    for want in [Request::NONE, WANT_READ, want_write()] {
        let (outcome, pfns) = look(want, Some(MINE));
        assert_eq!(outcome, Ok(()));
        assert!(pfns.iter().all(|pfn| is_private(pfn, mine, true)), "{want:?} {pfns:?}");
    }
    // To all others they are away.
    assert_eq!(look(Request::NONE, Some(OTHER)), (Ok(()), vec![NONE; 3]));
    assert_eq!(look(Request::NONE, None), (Ok(()), vec![NONE; 3]));
    // Who asks for them has them brought home.
    let notifier = watch(&space, map.pages());
    assert_eq!(fault_as(&space, map.part(1, 1), WANT_READ, Some(OTHER)), (Ok(()), vec![WRITABLE]));
    assert!(notifier.table().iter().any(|change| change.cause == Cause::Clear && change.owner.is_none()));
    assert_eq!(fault_as(&space, map.part(2, 1), want_write(), None), (Ok(()), vec![WRITABLE]));
    let (_, pfns) = look(Request::NONE, Some(MINE));
    assert!(is_private(&pfns[0], mine, true) && pfns[1..] == [WRITABLE; 2], "{pfns:?}");
    // So does the program.
    (0..3).for_each(|page| assert_eq!(map.read(page), 7));
    assert_eq!(look(Request::NONE, Some(MINE)), (Ok(()), vec![WRITABLE; 3]));
}

#[test]
fn private_frames_are_their_owners() {
    let _alone = one_at_a_time();
    within(LIMIT, || [Access::Full, Access::UserModeOnly].into_iter().for_each(own_and_others));
}

#[test]
fn a_hole_on_a_device() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let (space, map) = (mirror(), Map::holes(2));
        let mine = device(&space, MINE);
        assert_eq!(migrate(&space, map.pages(), mine, MINE), 2);
        let (_, pfns) = fault_as(&space, map.pages(), Request::NONE, Some(MINE));
        assert!(pfns.iter().all(|pfn| is_private(pfn, mine, true)), "{pfns:?}");
        assert_eq!(map.read(0), 0);
        assert_eq!(snapshot(&space, map.pages()), [WRITABLE, NONE]);
    });
}

#[test]
fn a_private_frame_of_a_read_only_mapping() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let (space, map) = (mirror(), Map::holes(1));
        let mine = device(&space, MINE);
        map.write(0, 7);
        assert_eq!(migrate(&space, map.pages(), mine, MINE), 1);
        // SAFETY: there are no references into the mapping.
        unsafe { space.protect(map.pages(), Perms::READ) }.expect("protects");
        // Wanting to write is no error: the owner sees that it may not.
        let (outcome, pfns) = fault_as(&space, map.pages(), want_write(), Some(MINE));
        assert!(outcome == Ok(()) && is_private(&pfns[0], mine, false), "{outcome:?} {pfns:?}");
        assert_eq!(fault(&space, map.pages(), want_write()).0, Err(RangeError::Permission));
        assert_eq!(fault(&space, map.pages(), WANT_READ), (Ok(()), vec![READABLE]));
        assert_eq!(map.read(0), 7);
        // SAFETY: as above.
        unsafe { space.protect(map.pages(), Perms::empty()) }.expect("protects");
        assert_eq!(fault_as(&space, map.pages(), Request::NONE, Some(MINE)).1, [ERROR]);
    });
}

#[test]
fn exclusive_pages_are_nobodys_to_read() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let (space, map) = (mirror(), Map::holes(4));
        (0..4).for_each(|page| map.write(page, 7));
        for page in 0..3 {
            space.make_exclusive(map.part(page, 1).start, MINE).expect("is private memory");
        }
        // Looking takes it from nobody, its own driver's look included.
        for owner in [None, Some(MINE), Some(OTHER)] {
            let looked = fault_as(&space, map.pages(), Request::NONE, owner);
            assert_eq!(looked, (Ok(()), vec![NONE, NONE, NONE, WRITABLE]), "{owner:?}");
        }
        // Who asks for it ends it, and the driver hears of that.
        let notifier = watch(&space, map.pages());
        for (page, want, owner) in [(0, WANT_READ, OTHER), (1, want_write(), MINE)] {
            assert_eq!(fault_as(&space, map.part(page, 1), want, Some(owner)), (Ok(()), vec![WRITABLE]));
            let told = notifier.table().drain(..).collect::<Vec<_>>();
            let ends = |change: &Change| change.cause == Cause::Clear && change.owner.is_none();
            assert!(told.iter().any(ends), "page {page}: {told:?}");
        }
        assert_eq!(snapshot(&space, map.pages()), [WRITABLE, WRITABLE, NONE, WRITABLE]);
        (0..4).for_each(|page| assert_eq!(map.read(page), 7));
    });
}

/// What another driver gets who asks for a page, and has to wait until `end` is called.
fn gets_behind(space: &AddressSpace, map: &Map, page: usize, end: impl FnOnce()) -> Vec<Pfn> {
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| fault_as(space, map.part(page, 1), WANT_READ, Some(OTHER)));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!asking.is_finished(), "page {page} was not waited for");
        end();
        let (outcome, pfns) = asking.join().expect("asks");
        assert_eq!(outcome, Ok(()), "page {page}");
        pfns
    })
}

#[test]
fn pages_on_their_way_are_waited_for() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let (space, map) = (mirror(), Map::holes(3));
        let mine = device(&space, MINE);
        (0..3).for_each(|page| map.write(page, 7));
        let look = |owner| fault_as(&space, map.part(0, 2), Request::NONE, owner);
        let mut out = space.migrate_setup(map.pages(), Select::SYSTEM, MINE).expect("can be managed");
        out.store(mine).expect("the device is the driver's");
        assert_eq!(look(Some(MINE)), (Ok(()), vec![NONE; 2]), "collected");
        let out = out.pages();
        assert_eq!(look(Some(MINE)), (Ok(()), vec![NONE; 2]), "committed, and nobody's to enter yet");
        assert_eq!(gets_behind(&space, &map, 0, || drop(out)), [WRITABLE], "came home again");
        let home = space.migrate_setup(map.part(1, 2), Select::PRIVATE, MINE).expect("can be managed");
        assert_eq!(home.nr_collected(), 2);
        assert_eq!(look(Some(MINE)), (Ok(()), vec![WRITABLE, NONE]), "collected on the way home");
        assert_eq!(gets_behind(&space, &map, 1, || drop(home)), [WRITABLE]);
        let (_, pfns) = fault_as(&space, map.part(2, 1), Request::NONE, Some(MINE));
        assert!(is_private(&pfns[0], mine, true), "nobody asked for this one: {pfns:?}");
        (0..3).for_each(|page| assert_eq!(map.read(page), 7));
    });
}
