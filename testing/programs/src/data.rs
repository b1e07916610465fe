//! Input that is the same every time.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Xorshift: quick, and random enough to keep a compressor from finding much.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts anew.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// A file of about `bytes` of text: lines of random keys with some words that repeat.
///
/// # Panics
/// When it cannot be written.
pub fn write_text(path: &Path, bytes: u64) {
    let mut file = BufWriter::new(File::create(path).expect("there is room for temporary files"));
    let mut random = Random::new(1);
    let mut written = 0;
    while written < bytes {
        let (key, more) = (random.next_u64(), random.next_u64());
        let word =
            ["away", "block", "charge", "device", "evict", "fault", "gate", "home"][(more % 8) as usize];
        let line = format!("{key:016x} {word} {word} {:x} {word}\n", more >> 40);
        file.write_all(line.as_bytes()).expect("there is room for temporary files");
        written += line.len() as u64;
    }
    file.flush().expect("there is room for temporary files");
}

/// A file of bytes that nobody can compress.
///
/// # Panics
/// When it cannot be written.
pub fn write_noise(path: &Path, bytes: u64) {
    let mut random = Random::new(2);
    let noise: Vec<u8> = (0..bytes / 8).flat_map(|_| random.next_u64().to_le_bytes()).collect();
    std::fs::write(path, noise).expect("there is room for temporary files");
}
