//! What the device does: rates a thread and of two threads, for single pages and for streams.
//!
//!     cargo run --release --package hmm-lz4 --example throughput

#![expect(clippy::print_stdout, reason = "prints a table")]
#![expect(clippy::unwrap_used, reason = "a measurement that fails has no result")]
#![expect(clippy::cast_possible_truncation, reason = "random numbers")]

mod data;

use std::time::Instant;

use hmm_device::{Access, Device, DevicePfn, Fetch, PAGE_SIZE, Store};
use hmm_lz4::{Lz4, Lz4Config};

const PAGES: usize = 16 << 10;
const RUN: usize = 64;
const ROUNDS: usize = 5;

/// Best time of some rounds, in nanoseconds a page, of: alloc and store, fetch in runs, fetch one by one, holds, free.
fn measure(device: &Lz4, bytes: &[u8], access: Access) -> [f64; 5] {
    let mut best = [f64::MAX; 5];
    let mut back = vec![0; RUN * PAGE_SIZE];
    let pages = bytes.len() / PAGE_SIZE;
    for _ in 0..ROUNDS {
        let mut frames = vec![DevicePfn(0); pages];
        let mut times = Vec::new();
        let mut lap = |work: &mut dyn FnMut()| {
            let start = Instant::now();
            work();
            times.push(start.elapsed().as_nanos() as f64 / pages as f64);
        };
        lap(&mut || {
            for (run, bytes) in frames.chunks_mut(RUN).zip(bytes.chunks(RUN * PAGE_SIZE)) {
                assert_eq!(device.alloc(run), run.len());
                assert_eq!(device.store(Store { frames: run, bytes, access }).stop, None);
            }
        });
        lap(&mut || {
            for run in frames.chunks(RUN) {
                let bytes = &mut back[..run.len() * PAGE_SIZE];
                assert_eq!(device.fetch(Fetch { frames: run, bytes }).stop, None);
            }
        });
        lap(&mut || {
            for step in 0..pages {
                // In no order.
                let frame = step * 7919 % pages;
                let bytes = &mut back[..PAGE_SIZE];
                assert_eq!(device.fetch(Fetch { frames: &frames[frame..=frame], bytes }).stop, None);
            }
        });
        lap(&mut || {
            for (frame, page) in frames.iter().zip(bytes.chunks(PAGE_SIZE)) {
                assert!(device.holds(*frame, page));
            }
        });
        lap(&mut || frames.chunks(RUN).for_each(|run| device.free(run)));
        best.iter_mut().zip(times).for_each(|(best, time)| *best = best.min(time));
    }
    best
}

fn row(label: &str, times: [f64; 5]) {
    let cells: String = times.iter().map(|ns| format!(" {ns:9.0}")).collect();
    println!("{label:36}{cells}");
}

fn main() {
    let config = Lz4Config::new(256 << 20);
    println!("ns a page{:27} {:>9} {:>9} {:>9} {:>9} {:>9}", "", "store", "fetch", "random", "holds", "free");
    let len = PAGES * PAGE_SIZE;
    let kinds = [
        ("records", data::records(len)),
        ("words", data::words(len)),
        ("noise", data::noise(len)),
        ("zero", vec![0; len]),
    ];
    for (kind, bytes) in &kinds {
        for access in [Access::Random, Access::Stream] {
            for verify in [false, true] {
                let device = Lz4::new(config.verify(verify)).unwrap();
                let verified = if verify { ", verified" } else { "" };
                row(&format!("{kind}, {access:?}{verified}"), measure(&device, bytes, access));
            }
        }
        let device = Lz4::new(config).unwrap();
        let both = std::thread::scope(|scope| {
            let halves =
                bytes.chunks(len / 2).map(|half| scope.spawn(|| measure(&device, half, Access::Random)));
            let threads: Vec<_> = halves.collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).fold([0.0; 5], |mut sum, times| {
                sum.iter_mut().zip(times).for_each(|(sum, time)| *sum += time / 2.0);
                sum
            })
        });
        row(&format!("{kind}, Random, each of 2 threads"), both);
    }
    let device = Lz4::new(config).unwrap();
    let mut frames = vec![DevicePfn(0); PAGES];
    assert_eq!(device.alloc(&mut frames), PAGES);
    let run = Store { frames: &frames, bytes: &kinds[0].1, access: Access::Random };
    assert_eq!(device.store(run).stop, None);
    println!("\nrecords, Random: {:#?}", device.stats());
}
