//! What every device has to do, as one check that its tests call.
//!
//! [`check`] panics with a message that names the broken rule. It is a function rather than a set of tests so that a
//! device is checked in each of its configurations, and inside decorators, with one line each:
//!
//! ```
//! hmm_device::conformance::check(|| hmm_device::Ram::new(256));
//! ```

mod content;
mod filling;
mod pages;
mod threads;
mod transfers;

#[cfg(test)]
mod tests;

use crate::{Access, Device, DeviceError, DevicePfn, Fetch, PAGE_SIZE, Store, Transfer};

/// Pages that the checks need room for, incompressible ones.
const MIN_PAGES: usize = 256;
/// Pages after which a device that is still not full is not filled any further.
const MAX_PAGES: usize = 16_384;

/// Checks a kind of device; `make` gives a new, empty one each time. It should hold between 256 and 16 384
/// incompressible pages: the check fills it (a larger one is not filled, and its behaviour when full not seen).
///
/// # Panics
/// If the device breaks the contract of [`Device`].
pub fn check<D: Device>(make: impl Fn() -> D) {
    transfers::constant_caps(&make());
    transfers::empty_runs(&make());
    transfers::round_trips(&make());
    transfers::unstored_frames(&make());
    transfers::misuse_harms_nobody(&make());
    content::holds_is_true(&make());
    filling::full_and_back(&make());
    filling::cycles_leak_nothing(&make());
    filling::large_runs(&make());
    threads::side_by_side(&make());
}

/// Gets exactly so many frames.
fn alloc(device: &impl Device, nr_frames: usize) -> Vec<DevicePfn> {
    let mut frames = vec![DevicePfn(u32::MAX); nr_frames];
    let granted = device.alloc(&mut frames);
    assert_eq!(granted, nr_frames, "alloc: a device that is nearly empty must grant {nr_frames} frames");
    frames
}

fn store(device: &impl Device, frames: &[DevicePfn], bytes: &[u8], access: Access) -> Transfer {
    let outcome = device.store(Store { frames, bytes, access });
    sane(outcome, frames.len(), "store");
    outcome
}

/// Stores pages that there must be room for.
fn store_all(device: &impl Device, frames: &[DevicePfn], bytes: &[u8], access: Access) {
    let outcome = store(device, frames, bytes, access);
    assert_eq!(
        outcome,
        Transfer::complete(frames.len()),
        "store: there must be room for {} pages",
        frames.len()
    );
}

/// Fetches frames and compares them with what was stored.
fn expect(device: &impl Device, frames: &[DevicePfn], bytes: &[u8], what: &str) {
    let mut got = vec![0xA5; frames.len() * PAGE_SIZE];
    let outcome = device.fetch(Fetch { frames, bytes: &mut got });
    assert_eq!(outcome, Transfer::complete(frames.len()), "fetch: {what}");
    for (index, (got, want)) in got.chunks_exact(PAGE_SIZE).zip(bytes.chunks_exact(PAGE_SIZE)).enumerate() {
        let differs = got.iter().zip(want).position(|(got, want)| got != want);
        assert_eq!(differs, None, "fetch: wrong bytes in page {index} of {}: {what}", frames.len());
    }
}

/// What holds of the outcome of any transfer.
fn sane(outcome: Transfer, nr_pages: usize, verb: &str) {
    match outcome.stop {
        None => assert_eq!(outcome.done, nr_pages, "{verb}: nothing stopped it, yet not all is done"),
        Some(_) => assert!(outcome.done < nr_pages, "{verb}: stopped, yet all {nr_pages} are done"),
    }
}

/// Checks what is true of the usage at any time.
fn expect_frames(device: &impl Device, frames: usize, what: &str) {
    let usage = device.usage();
    assert_eq!(usage.frames, frames as u64, "usage: frames handed out, {what}");
    assert!(
        usage.used_bytes <= usage.capacity_bytes,
        "usage: {} bytes used of {}, {what}",
        usage.used_bytes,
        usage.capacity_bytes
    );
}

/// Whether a store was refused because the device is full; any other error is a failure of the check.
fn is_full(outcome: Transfer) -> bool {
    match outcome.stop {
        None => false,
        Some(DeviceError::OutOfMemory) => true,
        Some(why) => panic!("store: a sound device has no reason for {why:?}"),
    }
}
