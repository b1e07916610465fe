//! Pages that are not in the program because hmm has taken them out.

use std::sync::Arc;

use hmm::core::addr::{PageRange, Vpn};
use hmm::core::mirror::RangeError;
use hmm::device::decorate::{Fault, Faulty, Rule, Verb, When};
use hmm::device::{DeviceError, Ram};
use hmm::mirror::pages;
use hmm::uapi::uffd::Access;
use hmm::{AddressSpace, Region};

use crate::common::{MIB, within};
use crate::maps::*;

const LIMIT: u64 = 60;

/// A space with a budget, and memory in it of which every page is out.
fn evicted(access: Access) -> Option<(AddressSpace, Region)> {
    let builder = AddressSpace::builder().ram(16 * MIB as u64).device(Arc::new(Ram::new(4096)));
    let space = match builder.access(access).build() {
        Ok(space) => space,
        Err(why) => {
            skip(&why.to_string());
            return None;
        }
    };
    let mut region = space.alloc(MIB).expect("allocates");
    region.as_mut_slice::<u64>().iter_mut().zip(0..).for_each(|(word, number)| *word = number);
    assert!(space.evict(&region) > 0);
    Some((space, region))
}

fn comes_home(access: Access) {
    let Some((space, region)) = evicted(access) else { return };
    let range = pages(region.as_slice::<u8>());
    assert_eq!(snapshot(&space, range), [NONE; 256], "looking brings nothing");
    assert_eq!(fault(&space, range, WANT_READ), (Ok(()), vec![WRITABLE; 256]));
    assert!(region.as_slice::<u64>().iter().zip(0..).all(|(word, number)| *word == number));
    space.evict(&region);
    assert_eq!(fault(&space, range, want_write()), (Ok(()), vec![WRITABLE; 256]));
}

#[test]
fn a_fault_brings_them_home() {
    let _alone = one_at_a_time();
    within(LIMIT, || comes_home(Access::Full));
}

#[test]
fn a_fault_brings_them_home_in_user_mode_only() {
    let _alone = one_at_a_time();
    within(LIMIT, || comes_home(Access::UserModeOnly));
}

#[test]
fn holes_of_managed_memory() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        for access in [Access::Full, Access::UserModeOnly] {
            let Ok(space) = AddressSpace::builder().access(access).build() else { continue };
            let region = space.alloc(MIB).expect("allocates");
            let range = pages(region.as_slice::<u8>());
            let part = |first, len| PageRange::new(range.start.add(first), len);
            assert_eq!(fault(&space, part(10, 2), WANT_READ), (Ok(()), vec![ZERO; 2]), "{access:?}");
            assert_eq!(fault(&space, part(11, 2), want_write()), (Ok(()), vec![WRITABLE; 2]), "{access:?}");
            assert_eq!(snapshot(&space, part(9, 5)), [NONE, ZERO, WRITABLE, WRITABLE, NONE], "{access:?}");
            assert_eq!(region.as_slice::<u8>()[12 * 4096], 0);
        }
    });
}

#[test]
fn reads_of_the_program_get_the_zero_page() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        let space = mirror();
        let mut region = space.alloc(MIB).expect("allocates");
        let range = pages(region.as_slice::<u8>());
        let first = PageRange::new(range.start, 3);
        assert_eq!(region.as_slice::<u8>()[0], 0);
        region.as_mut_slice::<u8>()[4096] = 1;
        assert_eq!(snapshot(&space, first), [ZERO, WRITABLE, NONE]);
        region.as_mut_slice::<u8>()[1] = 1;
        assert_eq!(snapshot(&space, first), [WRITABLE, WRITABLE, NONE]);
    });
}

fn are_lost(access: Access) {
    let device = Arc::new(Faulty::new(Ram::new(64 * 1024), []));
    let builder = AddressSpace::builder().ram(16 * MIB as u64).device(Arc::clone(&device) as _);
    let space = match builder.access(access).build() {
        Ok(space) => space,
        Err(why) => return skip(&why.to_string()),
    };
    let mut region = space.alloc(64 * MIB).expect("allocates");
    region.as_mut_slice::<u8>().fill(1);
    device.set_plan([Rule {
        verb: Some(Verb::Fetch),
        when: When::From(0),
        fault: Fault::fail(DeviceError::Lost),
    }]);
    let range = pages(region.as_slice::<u8>());
    let first = PageRange::new(range.start, 1);
    assert_eq!(fault(&space, first, WANT_READ).0, Err(RangeError::Fault), "finds out that it is lost");
    assert_eq!(fault(&space, first, WANT_READ).0, Err(RangeError::Fault), "knows that it is");
    assert_eq!(snapshot(&space, first), [NONE]);
    let last = PageRange::new(range.end.0.checked_sub(1).map(Vpn).expect("not at zero"), 1);
    assert_eq!(fault(&space, last, want_write()).0, Ok(()), "others are there");
}

#[test]
fn lost_pages() {
    let _alone = one_at_a_time();
    within(LIMIT, || [Access::Full, Access::UserModeOnly].into_iter().for_each(are_lost));
}

#[test]
fn no_memory_is_left() {
    let _alone = one_at_a_time();
    within(LIMIT, || {
        // Where the program's own threads wait for memory, a driver is told at once.
        let device = Arc::new(Ram::new(16));
        let builder = AddressSpace::builder().ram(16 * MIB as u64).device(device);
        let space = match builder.access(Access::UserModeOnly).build() {
            Ok(space) => space,
            Err(why) => return skip(&why.to_string()),
        };
        let region = space.alloc(32 * MIB).expect("allocates");
        let range = pages(region.as_slice::<u8>());
        let part = |first: u64| PageRange::new(range.start.add(first), 256);
        let outcomes: Vec<_> = (0..32)
            .map(|mib| fault(&space, part(mib * 256), want_write()).0)
            .take_while(Result::is_ok)
            .collect();
        assert!((8..17).contains(&outcomes.len()), "{} MiB were there", outcomes.len());
        let next = part(outcomes.len() as u64 * 256);
        assert_eq!(fault(&space, next, want_write()).0, Err(RangeError::NoMemory));
        // SAFETY: there are no references into the range.
        unsafe { space.discard(part(0)) }.expect("discards");
        space.settle();
        let (outcome, pfns) = fault(&space, PageRange::new(next.start.add(255), 1), want_write());
        assert_eq!((outcome, pfns), (Ok(()), vec![WRITABLE]), "what was given up is used");
    });
}
