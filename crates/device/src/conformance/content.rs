//! `holds` tells the truth: a wrong yes loses a write.

use super::{alloc, expect_frames, pages, pages::Kind, store_all};
use crate::rng::Rng;
use crate::{Access, Device, DevicePfn, PAGE_SIZE};

pub(super) fn holds_is_true(device: &impl Device) {
    let mut yes = 0;
    for access in [Access::Random, Access::Stream] {
        for kind in Kind::ALL {
            yes += holds_of_kind(device, kind, access);
        }
    }
    if device.caps().keeps_copies {
        assert!(yes > 0, "holds: never says yes, yet caps say keeps_copies");
    } else {
        assert_eq!(yes, 0, "holds: says yes, yet caps deny keeps_copies");
    }
    expect_frames(device, 0, "after holds");
}

/// Returns how often the answer was a (true) yes.
fn holds_of_kind(device: &impl Device, kind: Kind, access: Access) -> usize {
    const PAGES: usize = 9;
    let bytes = pages::bytes(kind, PAGES * PAGE_SIZE, 42);
    let frames = alloc(device, PAGES);
    store_all(device, &frames, &bytes, access);
    let mut rng = Rng::new(kind as u64);
    let mut yes = 0;
    for (index, frame) in frames.iter().enumerate() {
        let page = &bytes[index * PAGE_SIZE..][..PAGE_SIZE];
        yes += usize::from(device.holds(*frame, page));
        for other in bytes.chunks_exact(PAGE_SIZE).filter(|other| *other != page) {
            assert!(!device.holds(*frame, other), "holds: {kind:?}: these are another page's bytes");
        }
        for change in 0..64 {
            never_holds_changed(device, *frame, page, change, &mut rng);
        }
    }
    device.free(&frames);
    yes
}

/// Makes one small change of the kind that a weak comparison misses.
fn never_holds_changed(device: &impl Device, frame: DevicePfn, page: &[u8], change: usize, rng: &mut Rng) {
    let mut changed = page.to_vec();
    let word = rng.below(PAGE_SIZE / 8) * 8;
    let other = rng.below(PAGE_SIZE / 8) * 8;
    match change % 4 {
        0 => changed[rng.below(PAGE_SIZE)] ^= 1 << rng.below(8),
        1 => (0..8).for_each(|byte| changed.swap(word + byte, other + byte)),
        2 => changed.copy_within(word..word + 8, other),
        // Two changes that cancel in a sum.
        _ => {
            changed[word] = changed[word].wrapping_add(1);
            changed[other] = changed[other].wrapping_sub(1);
        }
    }
    if changed != page {
        assert!(!device.holds(frame, &changed), "holds: yes to a page that differs at {word} and {other}");
    }
}
