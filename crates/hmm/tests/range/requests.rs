//! What is wanted of pages, ranges of several mappings, and changes meanwhile.

use std::time::Duration;

use hmm::core::mirror::{Pfn, RangeError, RangeFault, Request};
use hmm::core::notifier::{Cause, Collided, Owner};
use hmm::uapi::maps::Perms;

use crate::common::within;
use crate::maps::*;

const LIMIT: u64 = 30;

#[test]
fn each_page_has_its_own_request_behind_the_mask() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let space = mirror();
        let look = |default: Request, mask: Request, requests: &[Request]| {
            let map = Map::holes(requests.len());
            let mut pfns = vec![Pfn::default(); requests.len()];
            let notifier = watch(&space, map.pages());
            let mut fault =
                RangeFault { range: map.pages(), default, mask, requests, owner: None, pfns: &mut pfns };
            let outcome = space.range_fault_within(&notifier, &mut fault, Duration::from_secs(5));
            assert!(outcome.is_ok(), "{outcome:?}");
            pfns
        };
        let (none, read, write) = (Request::NONE, Request::FAULT, Request::WRITE);
        // One page is to be writable, the others readable.
        assert_eq!(look(read, write, &[none, write, none]), [ZERO, WRITABLE, ZERO]);
        // What the mask leaves out does not count.
        assert_eq!(look(none, none, &[read, read | write]), [NONE, NONE]);
        assert_eq!(look(none, read, &[read, read | write, none]), [ZERO, ZERO, NONE]);
        assert_eq!(look(none, read | write, &[read, read | write, none]), [ZERO, WRITABLE, NONE]);
        // Wanting to write, but not to fault, is wanting nothing.
        assert_eq!(look(none, read | write, &[write]), [NONE]);
        assert_eq!(look(read | write, none, &[none]), [WRITABLE]);
    });
}

#[test]
fn a_range_of_several_mappings() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let (space, map) = (mirror(), Map::holes(8));
        map.protect(2, 2, READ);
        map.protect(4, 1, libc::PROT_NONE);
        assert_eq!(fault(&space, map.part(0, 4), WANT_READ), (Ok(()), vec![ZERO; 4]));
        let (outcome, pfns) = fault(&space, map.pages(), want_write());
        assert_eq!(outcome, Err(RangeError::Permission), "the first error from the front counts");
        assert_eq!(pfns[..2], [WRITABLE; 2]);
        let (outcome, pfns) = fault(&space, map.pages(), WANT_READ);
        assert_eq!(outcome, Err(RangeError::Fault));
        assert_eq!(pfns[..5], [WRITABLE, WRITABLE, ZERO, ZERO, ERROR]);
        assert_eq!(fault(&space, map.part(5, 3), want_write()), (Ok(()), vec![WRITABLE; 3]));
    });
}

#[test]
fn a_range_of_several_blocks() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let (space, map) = (mirror(), Map::holes(1500));
        map.write(700, 1);
        let (outcome, pfns) = fault(&space, map.pages(), WANT_READ);
        assert_eq!(outcome, Ok(()));
        assert_eq!(pfns.iter().position(|pfn| *pfn == WRITABLE), Some(700));
        assert_eq!(pfns.iter().filter(|pfn| **pfn == ZERO).count(), 1499);
    });
}

#[test]
fn calls_without_sense() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let (space, map) = (mirror(), Map::holes(4));
        let notifier = watch(&space, map.part(1, 2));
        let check = |range, requests: &[Request], nr_pfns: usize| {
            let mut pfns = vec![Pfn::default(); nr_pfns];
            let mut fault = RangeFault::all(range, Request::NONE, None, &mut pfns);
            fault.requests = requests;
            space.range_fault(&notifier, notifier.read_begin(), &mut fault)
        };
        assert_eq!(check(map.part(1, 2), &[], 2), Ok(()));
        assert_eq!(check(map.part(1, 0), &[], 0), Err(RangeError::Invalid), "empty");
        assert_eq!(check(map.part(0, 2), &[], 2), Err(RangeError::Invalid), "not watched");
        assert_eq!(check(map.part(1, 2), &[], 1), Err(RangeError::Invalid), "too few");
        assert_eq!(check(map.part(1, 2), &[Request::FAULT], 2), Err(RangeError::Invalid), "too few");
    });
}

#[test]
fn a_range_that_changed_has_to_be_read_again() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let (space, map) = (mirror(), Map::holes(2));
        map.write(0, 1);
        let notifier = watch(&space, map.pages());
        let mut pfns = [Pfn::default(); 2];
        let mut read =
            |seq| space.range_fault(&notifier, seq, &mut RangeFault::snapshot(map.pages(), None, &mut pfns));
        let seq = notifier.read_begin();
        assert_eq!(read(seq), Ok(()));
        // SAFETY: there are no references into the mapping.
        unsafe { space.protect(map.part(0, 1), Perms::READ) }.expect("protects");
        assert_eq!(read(seq), Err(RangeError::Busy));
        assert_eq!(notifier.install(seq, |_| ()), Err(Collided));
        assert_eq!(notifier.table().first().map(|change| change.cause), Some(Cause::ProtectVma));
        let seq = notifier.read_begin();
        assert_eq!(read(seq), Ok(()));
        assert_eq!(notifier.install(seq, |_| ()), Ok(()));
        assert_eq!(pfns, [READABLE, NONE]);
    });
}

#[test]
fn it_is_tried_again_until_patience_ends() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let (space, map) = (mirror(), Map::holes(1));
        map.write(0, 1);
        let notifier = watch(&space, map.pages());
        let read = |patience| {
            // What its own fault ends is a change of the range: the first try always collides.
            space.make_exclusive(map.pages().start, Owner(1)).expect("is private memory");
            let mut pfns = [Pfn::default()];
            let mut fault = RangeFault::all(map.pages(), WANT_READ, None, &mut pfns);
            let outcome = space.range_fault_within(&notifier, &mut fault, patience);
            (outcome.map(|seq| notifier.check_retry(seq)), pfns)
        };
        assert_eq!(read(Duration::ZERO).0, Err(RangeError::Busy));
        assert_eq!(read(Duration::from_secs(20)), (Ok(false), [WRITABLE]), "with a sequence that holds");
    });
}
