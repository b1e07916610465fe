//! Data to measure with, the same each time.

/// Numbers that look random (SplitMix64).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

fn fill(len_bytes: usize, mut next: impl FnMut(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len_bytes + 64);
    while bytes.len() < len_bytes {
        next(&mut bytes);
    }
    bytes.truncate(len_bytes);
    bytes
}

/// Structures of 64 bytes as programs have them: a counter, a pointer, an enum, a float, and fields not in use.
/// About 3:1.
pub(crate) fn records(len_bytes: usize) -> Vec<u8> {
    let (mut rng, mut id) = (Rng(7), 1000_u64);
    fill(len_bytes, |bytes| {
        id += 1;
        let words =
            [id, 0x7f3a_4000_0000 + rng.next() % 0x1_0000 * 64, rng.next() % 8, rng.next() >> 48, 0, 0, 0, 0];
        words.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
    })
}

/// Words of a small dictionary, frequent ones more often. About 2:1.
pub(crate) fn words(len_bytes: usize) -> Vec<u8> {
    let mut rng = Rng(9);
    let dictionary: Vec<Vec<u8>> = (0..400)
        .map(|_| {
            (0..3 + rng.next() % 8).map(|_| b"etaoinshrdlucmfwypvbgk"[rng.next() as usize % 22]).collect()
        })
        .collect();
    fill(len_bytes, |bytes| {
        let rank = (0..3).map(|_| rng.next() as usize % 400).min().unwrap_or(0);
        bytes.extend(&dictionary[rank]);
        bytes.push(b' ');
    })
}

/// Cannot be compressed.
pub(crate) fn noise(len_bytes: usize) -> Vec<u8> {
    let mut rng = Rng(3);
    fill(len_bytes, |bytes| bytes.extend(rng.next().to_le_bytes()))
}
