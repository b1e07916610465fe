//! What goes in comes out, run by run, page by page, as often as asked.

use super::{MIN_PAGES, alloc, expect, expect_frames, pages, pages::Kind, sane, store, store_all};
use crate::{Access, Device, DevicePfn, Fetch, MemKind, PAGE_SIZE, Transfer};

const ACCESSES: [Access; 2] = [Access::Random, Access::Stream];

pub(super) fn constant_caps(device: &impl Device) {
    let caps = device.caps();
    assert!(caps.preferred_run_pages >= 1, "caps: preferred_run_pages is at least 1");
    assert!(
        caps.capacity_pages >= MIN_PAGES as u64,
        "check: needs a device of {MIN_PAGES} pages, not of {}",
        caps.capacity_pages
    );
    let nr_frames = device.memory().map(|memory| (memory.end - memory.start) / PAGE_SIZE as u64);
    let mapped = (caps.kind == MemKind::Coherent).then_some(caps.capacity_pages);
    assert_eq!(nr_frames, mapped, "memory: of a coherent device, and no other, a place for each frame");
    expect_frames(device, 0, "of a new device");
    let frames = alloc(device, 8);
    store_all(device, &frames, &pages::mixed(8, 1), Access::Random);
    assert_eq!(device.caps(), caps, "caps: constant over the device's life");
    assert_eq!(device.flush(), Ok(()), "flush: nothing is wrong with this device");
}

pub(super) fn empty_runs(device: &impl Device) {
    assert_eq!(device.alloc(&mut []), 0, "alloc: nothing asked, nothing granted");
    assert_eq!(store(device, &[], &[], Access::Stream), Transfer::complete(0), "store of nothing");
    let outcome = device.fetch(Fetch { frames: &[], bytes: &mut [] });
    assert_eq!(outcome, Transfer::complete(0), "fetch of nothing");
    device.free(&[]);
    expect_frames(device, 0, "after empty runs");
}

pub(super) fn round_trips(device: &impl Device) {
    let mut seed = 0;
    for nr_pages in [1, 2, 3, 4, 5, 7, 8, 16, 33, 64] {
        for access in ACCESSES {
            for kind in Kind::ALL {
                seed += 1;
                let bytes = pages::bytes(kind, nr_pages * PAGE_SIZE, seed);
                round_trip(device, &bytes, access, &format!("{nr_pages} pages, {kind:?}, {access:?}"));
            }
            round_trip(
                device,
                &pages::mixed(nr_pages, seed),
                access,
                &format!("{nr_pages} mixed, {access:?}"),
            );
        }
    }
    expect_frames(device, 0, "after all were freed");
}

fn round_trip(device: &impl Device, bytes: &[u8], access: Access, what: &str) {
    let nr_pages = bytes.len() / PAGE_SIZE;
    let frames = alloc(device, nr_pages);
    expect_frames(device, nr_pages, what);
    store_all(device, &frames, bytes, access);
    expect(device, &frames, bytes, what);
    expect(device, &frames, bytes, &format!("{what}, again"));

    let page = |index: usize| &bytes[index * PAGE_SIZE..][..PAGE_SIZE];
    for index in (0..nr_pages).rev() {
        expect(device, &[frames[index]], page(index), &format!("{what}, page {index} alone"));
    }
    for start in 0..nr_pages.min(6) {
        let end = nr_pages - start / 2;
        let part = &bytes[start * PAGE_SIZE..end.max(start) * PAGE_SIZE];
        expect(device, &frames[start..end.max(start)], part, &format!("{what}, from {start} to {end}"));
    }
    let backwards: Vec<DevicePfn> = frames.iter().rev().copied().collect();
    let reversed: Vec<u8> = (0..nr_pages).rev().flat_map(|index| page(index).iter().copied()).collect();
    expect(device, &backwards, &reversed, &format!("{what}, backwards"));
    let twice: Vec<DevicePfn> = [frames[0], frames[0]].into();
    expect(device, &twice, &[page(0), page(0)].concat(), &format!("{what}, a frame twice"));

    // Frames end one by one, in an order of their own; the others stay.
    let (first, rest): (Vec<_>, Vec<_>) = (0..nr_pages).partition(|index| index % 3 == 1);
    let named = |indices: &[usize]| indices.iter().map(|index| frames[*index]).collect::<Vec<_>>();
    device.free(&named(&first));
    for index in &rest {
        expect(
            device,
            &[frames[*index]],
            page(*index),
            &format!("{what}, page {index} after others were freed"),
        );
    }
    expect_frames(device, rest.len(), what);
    device.free(&named(&rest));
}

pub(super) fn unstored_frames(device: &impl Device) {
    let frames = alloc(device, 64);
    let mut sorted = frames.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(sorted.len(), frames.len(), "alloc: the same frame was handed out twice");
    // Only every other one is ever stored to.
    for (index, frame) in frames.iter().enumerate().filter(|(index, _)| index % 2 == 0) {
        store_all(device, &[*frame], &pages::mixed(1, index as u64), Access::Random);
    }
    for (index, frame) in frames.iter().enumerate().filter(|(index, _)| index % 2 == 0) {
        expect(device, &[*frame], &pages::mixed(1, index as u64), "a neighbour was never stored to");
    }
    device.free(&frames);
    expect_frames(device, 0, "half of them never stored to");
    let again = alloc(device, 64);
    device.free(&again);
}

/// A caller that breaks the protocol may be refused or served, but other frames keep their bytes.
pub(super) fn misuse_harms_nobody(device: &impl Device) {
    let frames = alloc(device, 24);
    let bytes = pages::mixed(16, 5);
    store_all(device, &frames[..16], &bytes, Access::Stream);

    // A second store: refused, or the frame holds the new bytes.
    let other = pages::bytes(Kind::Noise, PAGE_SIZE, 6);
    let second = store(device, &frames[3..4], &other, Access::Random);
    let now = if second.stop.is_none() { &other[..] } else { &bytes[3 * PAGE_SIZE..4 * PAGE_SIZE] };
    expect(device, &frames[3..4], now, "after a second store");

    // A fetch of a frame that was never stored to: an error, or bytes without meaning; the run in front of it counts.
    let mut got = vec![0; 2 * PAGE_SIZE];
    let outcome = device.fetch(Fetch { frames: &[frames[0], frames[20]], bytes: &mut got });
    sane(outcome, 2, "fetch");
    if outcome.done >= 1 {
        assert_eq!(got[..PAGE_SIZE], bytes[..PAGE_SIZE], "fetch: the page in front of an unstored one");
    }
    assert!(!device.holds(frames[20], &bytes[..PAGE_SIZE]), "holds: nothing was stored to this frame");

    for index in (0..16).filter(|index| *index != 3) {
        let page = &bytes[index * PAGE_SIZE..][..PAGE_SIZE];
        expect(device, &frames[index..=index], page, "after others were misused");
    }
    device.free(&frames);
    expect_frames(device, 0, "after misuse");
}
