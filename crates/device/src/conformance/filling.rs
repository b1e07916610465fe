//! A full device says so, keeps what it has, and goes on when there is room again.

use super::{MAX_PAGES, alloc, expect, expect_frames, is_full, pages, pages::Kind, store};
use crate::{Access, Device, DevicePfn, PAGE_SIZE};

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
