//! Compares codecs and hash functions at the sizes of our units, as the device would use them. Best of several rounds.
//!
//!     cargo run --release --package hmm-lz4 --example codec

#![expect(clippy::print_stdout, reason = "prints a table")]
#![expect(clippy::unwrap_used, reason = "a measurement that fails has no result")]
#![expect(clippy::cast_possible_truncation, reason = "random numbers")]

mod data;

use std::hint::black_box;
use std::time::Instant;

use hmm_lz4::codec::{Encoder, decompress};
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

const TOTAL: usize = 32 << 20;
const ROUNDS: usize = 9;

/// Gigabytes a second, the best of some rounds over `TOTAL` bytes.
fn rate(mut round: impl FnMut()) -> f64 {
    round();
    let times = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        round();
        start.elapsed().as_secs_f64()
    });
    TOTAL as f64 / times.fold(f64::MAX, f64::min) / 1e9
}

/// A codec with its working memory.
trait Codec {
    fn compress(&mut self, unit: &[u8], out: &mut [u8]) -> usize;
    fn decompress(&self, bytes: &[u8], unit: &mut [u8]);
}

struct Flex(CompressTable);

impl Codec for Flex {
    fn compress(&mut self, unit: &[u8], out: &mut [u8]) -> usize {
        compress_into_with_table(unit, out, &mut self.0).unwrap()
    }

    fn decompress(&self, bytes: &[u8], unit: &mut [u8]) {
        decompress_into(bytes, unit).unwrap();
    }
}

/// The C library, as the device uses it.
struct C(Encoder);

impl Codec for C {
    fn compress(&mut self, unit: &[u8], out: &mut [u8]) -> usize {
        self.0.compress(unit, out).unwrap()
    }

    fn decompress(&self, bytes: &[u8], unit: &mut [u8]) {
        decompress(bytes, unit).unwrap();
    }
}

fn measure(label: &str, data: &[u8], unit_bytes: usize, codec: &mut impl Codec) {
    let max_bytes = get_maximum_output_size(unit_bytes);
    let mut outputs = vec![0; TOTAL / unit_bytes * max_bytes];
    let mut lens = vec![0; TOTAL / unit_bytes];
    let compress = rate(|| {
        let units = data.chunks_exact(unit_bytes).zip(outputs.chunks_exact_mut(max_bytes));
        for ((unit, out), len) in units.zip(&mut lens) {
            *len = codec.compress(unit, out);
        }
    });
    let mut unit = vec![0; unit_bytes];
    let decompress = rate(|| {
        for (out, len) in outputs.chunks_exact(max_bytes).zip(&lens) {
            codec.decompress(&out[..*len], &mut unit);
            black_box(&unit);
        }
    });
    let ratio = TOTAL as f64 / lens.iter().sum::<usize>() as f64;
    println!("{label:24} {:4} KiB {ratio:8.2} {compress:10.2} {decompress:12.2}", unit_bytes >> 10);
}

fn measure_hashes(data: &[u8]) {
    let secrets = rapidhash::v3::RapidSecrets::seed(5);
    let hot: &[u8] = &data[..4096];
    println!("\n{:24} {:>12} {:>12}  GB/s at 4 KiB", "hash", "from memory", "from cache");
    let row = |label: &str, hash: &dyn Fn(&[u8]) -> u64| {
        let pages = rate(|| data.chunks_exact(4096).for_each(|page| _ = black_box(hash(page))));
        let cached = rate(|| (0..TOTAL / 4096).for_each(|_| _ = black_box(hash(black_box(hot)))));
        println!("{label:24} {pages:12.1} {cached:12.1}");
    };
    row("rapidhash", &|page| rapidhash::v3::rapidhash_v3_seeded(page, &secrets));
    row("xxhash-rust xxh3 64", &|page| xxhash_rust::xxh3::xxh3_64_with_seed(page, 5));
    row("xxhash-rust xxh3 128", &|page| xxhash_rust::xxh3::xxh3_128_with_seed(page, 5) as u64);
}

fn main() {
    println!("{:24} {:>8} {:>8} {:>10} {:>12}", "data, codec", "unit", "ratio", "comp GB/s", "decomp GB/s");
    let kinds =
        [("records", data::records(TOTAL)), ("words", data::words(TOTAL)), ("noise", data::noise(TOTAL))];
    for (kind, data) in &kinds {
        for unit_bytes in [4 << 10, 16 << 10, 64 << 10] {
            let table = if unit_bytes < 64 << 10 { CompressTable::small() } else { CompressTable::large() };
            measure(&format!("{kind}, lz4_flex"), data, unit_bytes, &mut Flex(table));
            measure(&format!("{kind}, C"), data, unit_bytes, &mut C(Encoder::new()));
        }
    }
    measure_hashes(&kinds[2].1);
}
