//! A full device says so, keeps what it has, and goes on when there is room again.

use super::{MAX_PAGES, alloc, expect, expect_frames, is_full, pages, pages::Kind, store};
use crate::{Access, Device, DevicePfn, LARGE_PAGES, PAGE_SIZE};

/// Pages in a store.
const RUN: usize = 24;

/// A page that is on the device, by the seed of its bytes.
type Stored = (DevicePfn, u64);

fn noise(seed: u64) -> Vec<u8> {
    pages::bytes(Kind::Noise, PAGE_SIZE, seed)
}

fn expect_all(device: &impl Device, stored: &[Stored], what: &str) {
    for (frame, seed) in stored {
        expect(device, &[*frame], &noise(*seed), what);
    }
}

/// Stores pages until the device refuses one. Returns what is on it, and whether it refused.
fn fill(device: &impl Device, first_seed: u64) -> (Vec<Stored>, bool) {
    let mut stored: Vec<Stored> = Vec::new();
    let mut seed = first_seed;
    while stored.len() < MAX_PAGES {
        let mut frames = [DevicePfn(0); RUN];
        let granted = device.alloc(&mut frames);
        let frames = &frames[..granted];
        let bytes: Vec<u8> = (seed..).take(granted).flat_map(noise).collect();
        let access = if seed.is_multiple_of(2) { Access::Random } else { Access::Stream };
        let outcome = store(device, frames, &bytes, access);
        stored.extend(frames[..outcome.done].iter().copied().zip(seed..));
        device.free(&frames[outcome.done..]);
        seed += RUN as u64 + 1;
        if is_full(outcome) || granted < RUN {
            return (stored, true);
        }
    }
    (stored, false)
}

pub(super) fn full_and_back(device: &impl Device) {
    let (mut stored, is_full) = fill(device, 0);
    expect_frames(device, stored.len(), "when full");
    expect_all(device, &stored, "when full");
    if !is_full {
        device.free(&stored.iter().map(|(frame, _)| *frame).collect::<Vec<_>>());
        return;
    }
    // Room for a quarter: at least half of that can be used again, whatever the device does about fragments.
    let nr_freed = stored.len() / 4;
    let freed: Vec<DevicePfn> = stored.drain(..nr_freed).map(|(frame, _)| frame).collect();
    device.free(&freed);
    let (more, _) = fill(device, 1 << 32);
    assert!(
        more.len() >= nr_freed / 2,
        "free: after {nr_freed} pages were freed, a full device took only {} again",
        more.len()
    );
    stored.extend(more);
    expect_all(device, &stored, "after pages were freed and others stored");
    expect_frames(device, stored.len(), "when full again");
    device.free(&stored.iter().map(|(frame, _)| *frame).collect::<Vec<_>>());
    expect_frames(device, 0, "after all were freed");
}

pub(super) fn cycles_leak_nothing(device: &impl Device) {
    let mut used_after_first = None;
    for cycle in 0..5 {
        let frames = alloc(device, 200);
        let bytes = pages::mixed(200, 77);
        let outcome = store(device, &frames, &bytes, Access::Stream);
        expect(device, &frames[..outcome.done], &bytes[..outcome.done * PAGE_SIZE], "in a cycle");
        device.free(&frames);
        expect_frames(device, 0, "between cycles");
        let used = device.usage().used_bytes;
        let first = *used_after_first.get_or_insert(used);
        assert!(
            used <= first,
            "usage: {used} bytes after {cycle} more cycles of the same, {first} after the first"
        );
    }
}

/// A device that has large runs hands them out whole, and takes them back in parts.
pub(super) fn large_runs(device: &impl Device) {
    let Some(first) = device.alloc_large() else { return };
    assert!(
        first.is_large_start(),
        "alloc_large: a large run begins at a multiple of {LARGE_PAGES}, not {first:?}"
    );
    let run: Vec<DevicePfn> = (0..LARGE_PAGES).map(|number| first.add(number)).collect();
    expect_frames(device, LARGE_PAGES, "with a large run");
    let mut small = [DevicePfn(0); RUN];
    let granted = device.alloc(&mut small);
    let is_apart = small[..granted].iter().all(|frame| !run.contains(frame));
    assert!(is_apart, "alloc: a frame of a large run is handed out again");
    let bytes = pages::mixed(LARGE_PAGES, 5);
    let outcome = store(device, &run, &bytes, Access::Stream);
    assert!(outcome.stop.is_none() || is_full(outcome), "store: to a large run");
    let stored = outcome.done;
    expect(device, &run[..stored], &bytes[..stored * PAGE_SIZE], "of a large run");
    // Every other page first, as when the program gives up parts.
    let (even, odd): (Vec<_>, Vec<_>) = run.iter().partition(|frame| frame.0 % 2 == 0);
    device.free(&even);
    expect(
        device,
        &odd[..stored / 2],
        &odd_pages(&bytes[..stored / 2 * 2 * PAGE_SIZE]),
        "left of a large run",
    );
    device.free(&odd);
    device.free(&small[..granted]);
    expect_frames(device, 0, "after a large run was freed in parts");
}

fn odd_pages(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks_exact(PAGE_SIZE).skip(1).step_by(2).flatten().copied().collect()
}
