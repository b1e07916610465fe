//! Several threads at a time, each with frames of its own.

use super::{MIN_PAGES, expect, expect_frames, is_full, pages, store};
use crate::rng::Rng;
use crate::{Access, Device, DevicePfn};

const THREADS: usize = 4;
const ROUNDS: usize = 300;
const MAX_RUN: usize = 12;

/// A run of pages on the device, by the seed of its bytes.
struct Stored {
    frames: Vec<DevicePfn>,
    seed: u64,
}

pub(super) fn side_by_side(device: &impl Device) {
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..THREADS as u64).map(|thread| scope.spawn(move || work(device, thread))).collect();
        for thread in threads {
            // With the message that says what is wrong.
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    expect_frames(device, 0, "after four threads");
}

fn work(device: &impl Device, thread: u64) {
    let mut rng = Rng::new(thread);
    let mut stored: Vec<Stored> = Vec::new();
    let mut nr_pages = 0;
    for round in 0..ROUNDS as u64 {
        let room = nr_pages + MAX_RUN <= MIN_PAGES / THREADS;
        if room && rng.below(2) == 0 {
            let run = store_run(device, 1 + rng.below(MAX_RUN), thread << 32 | round << 8);
            nr_pages += run.frames.len();
            stored.push(run);
        } else if !stored.is_empty() {
            let run = stored.swap_remove(rng.below(stored.len()));
            let bytes = pages::mixed(run.frames.len(), run.seed);
            expect(device, &run.frames, &bytes, "stored by this thread, others at work");
            if rng.below(3) == 0 {
                stored.push(run);
            } else {
                nr_pages -= run.frames.len();
                device.free(&run.frames);
            }
        }
    }
    for run in stored {
        expect(device, &run.frames, &pages::mixed(run.frames.len(), run.seed), "at the end of the thread");
        device.free(&run.frames);
    }
}

/// Stores as much of a run as the device takes.
fn store_run(device: &impl Device, nr_pages: usize, seed: u64) -> Stored {
    let mut frames = vec![DevicePfn(0); nr_pages];
    let granted = device.alloc(&mut frames);
    frames.truncate(granted);
    let bytes = pages::mixed(granted, seed);
    let access = if seed & 256 == 0 { Access::Random } else { Access::Stream };
    let outcome = store(device, &frames, &bytes, access);
    assert!(outcome.stop.is_none() || is_full(outcome));
    // A mixed run begins like any longer one of the same seed: the pages that were taken are known by it.
    device.free(&frames[outcome.done..]);
    frames.truncate(outcome.done);
    Stored { frames, seed }
}
