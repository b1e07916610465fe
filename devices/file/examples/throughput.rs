//! What the device gives on the disk of a directory, compressed and not, by batches as the engine makes them.
//!
//!     cargo run --release --package hmm-file --example throughput -- DIRECTORY

#![expect(clippy::print_stdout, reason = "prints a table")]
#![expect(clippy::unwrap_used, reason = "a measurement that fails has no result")]
#![expect(clippy::cast_precision_loss, reason = "three digits are shown")]

use std::time::Instant;

use hmm_device::{Access, Device, DevicePfn, Fetch, PAGE_SIZE, Store};
use hmm_file::{By, FileConfig, FileDevice};

const PAGES: usize = 64 << 10;
/// Pages of a store, and of a fetch: what leaves together, and what a fault brings at most.
const STORE_PAGES: usize = 64;
const FETCH_PAGES: usize = 128;
const BYTES: usize = PAGES * PAGE_SIZE;

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    state.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Records of 64 bytes that repeat in part, which lz4 shrinks to a third; or noise.
fn data(compressible: bool) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252;
    let mut bytes = Vec::with_capacity(BYTES);
    let mut number = 0_u64;
    while bytes.len() < BYTES {
        let word = random(&mut state);
        if compressible {
            number += 1;
            bytes.extend_from_slice(&number.to_le_bytes());
            bytes.extend_from_slice(&word.to_le_bytes());
            bytes.extend_from_slice(&[0; 24]);
            bytes.extend_from_slice(b"a name, and a place here");
        } else {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
    }
    bytes
}

/// Bytes at a page's border, as the engine's are.
fn aligned(bytes: &mut Vec<u8>, len: usize) -> &mut [u8] {
    bytes.resize(len + PAGE_SIZE, 1);
    let start = bytes.as_ptr().align_offset(PAGE_SIZE);
    &mut bytes[start..start + len]
}

fn rate(bytes: usize, start: Instant) -> f64 {
    bytes as f64 / start.elapsed().as_secs_f64() / 1e6
}

/// Microseconds a page of calls for so many pages that have nothing to do with each other.
fn per_page(device: &FileDevice, frames: &[DevicePfn], nr_pages: usize, nr_calls: u32) -> f64 {
    let (mut memory, mut state) = (Vec::new(), 1);
    let bytes = aligned(&mut memory, nr_pages * PAGE_SIZE);
    let start = Instant::now();
    for _ in 0..nr_calls {
        let mut one = || frames[usize::try_from(random(&mut state) >> 32).unwrap() % PAGES];
        let frames: Vec<_> = (0..nr_pages).map(|_| one()).collect();
        assert_eq!(device.fetch(Fetch { frames: &frames, bytes }).stop, None);
    }
    start.elapsed().as_secs_f64() * 1e6 / (f64::from(nr_calls) * nr_pages as f64)
}

fn measure(config: &FileConfig, bytes: &[u8], access: Access, nr_threads: usize) {
    let device = FileDevice::create(config).unwrap();
    let mut frames = vec![DevicePfn(0); PAGES];
    let mut rates = Vec::new();
    // The second time the file has its blocks.
    for _ in 0..2 {
        assert_eq!(device.alloc(&mut frames), PAGES);
        let start = Instant::now();
        for (frames, bytes) in frames.chunks(STORE_PAGES).zip(bytes.chunks(STORE_PAGES * PAGE_SIZE)) {
            assert_eq!(device.store(Store { frames, bytes, access }).stop, None);
        }
        rates.push(rate(BYTES, start));
        if rates.len() < 2 {
            device.free(&frames);
        }
    }
    let ratio = BYTES as f64 / device.usage().used_bytes as f64;
    let start = Instant::now();
    std::thread::scope(|scope| {
        for frames in frames.chunks(PAGES / nr_threads) {
            let device = &device;
            scope.spawn(move || {
                let mut memory = Vec::new();
                let page = aligned(&mut memory, FETCH_PAGES * PAGE_SIZE);
                for frames in frames.chunks(FETCH_PAGES) {
                    assert_eq!(device.fetch(Fetch { frames, bytes: page }).stop, None);
                }
            });
        }
    });
    let run = rate(BYTES, start);
    let single = per_page(&device, &frames, 1, 8192);
    let scattered = per_page(&device, &frames, 32, 512);
    println!(
        "  ratio {ratio:4.2}, stored {:5.0}, fetched {run:5.0} MB/s; a page alone {single:5.1} us, one of 32 from all over \
         {scattered:4.1} us",
        rates[1]
    );
}

fn main() {
    let dir = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    for (name, compressible) in [("3:1", true), ("1:1", false)] {
        let mut memory = data(compressible);
        let len = memory.len() / PAGE_SIZE * PAGE_SIZE;
        let mut copy = Vec::new();
        let bytes = aligned(&mut copy, len);
        bytes.copy_from_slice(&memory[..len]);
        memory.clear();
        for access in [Access::Stream, Access::Random] {
            for (compress, nr_threads) in [(false, 1), (true, 1), (false, 2), (true, 2)] {
                for by in [By::Single, By::Aio, By::Uring] {
                    let config = FileConfig::new(&dir, 1 << 30).with_requests(by).with_compression(compress);
                    print!("{name}, {access:?}, compressed {compress:5}, by {by:?}, {nr_threads} threads:");
                    measure(&config, &bytes[..BYTES], access, nr_threads);
                }
            }
        }
    }
}
