//! Pages to be stored: the kinds that devices treat differently.

use crate::PAGE_SIZE;
use crate::rng::Rng;

/// What a page is made of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Zero,
    /// One 64-bit word, over and over.
    Same,
    /// Nearly same-filled: only the last byte differs.
    AlmostSame,
    /// About 3:1.
    Records,
    Text,
    /// Cannot be compressed.
    Noise,
    /// Half noise, half zero.
    Half,
}

impl Kind {
    pub(super) const ALL: [Self; 7] =
        [Self::Zero, Self::Same, Self::AlmostSame, Self::Records, Self::Text, Self::Noise, Self::Half];
}

/// So many bytes of a kind; different for each seed, except for zeroes.
pub(super) fn bytes(kind: Kind, len_bytes: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let word = rng.next();
    let mut bytes = Vec::with_capacity(len_bytes);
    while bytes.len() < len_bytes {
        let place = bytes.len() as u64 / 8;
        let last_in_page = bytes.len() % PAGE_SIZE == PAGE_SIZE - 8;
        let next = match kind {
            Kind::Zero => 0,
            Kind::AlmostSame if last_in_page => word ^ (0xFF << 56),
            Kind::Same | Kind::AlmostSame => word,
            Kind::Records => match place % 4 {
                0 => seed + place,
                1 => 0x7F30_0000_0000 + rng.next() % 0x10_0000 * 16,
                2 => rng.next() % 8,
                _ => 0,
            },
            Kind::Text => rng.next() & 0x0303_0303_0303_0303 | 0x6161_6161_6161_6161,
            Kind::Half if place % 512 < 256 => 0,
            Kind::Noise | Kind::Half => rng.next(),
        };
        bytes.extend(next.to_le_bytes());
    }
    bytes
}

/// A run of pages of all kinds, mixed.
pub(super) fn mixed(nr_pages: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed ^ 0x006D_6978_6564);
    let mut all = Vec::with_capacity(nr_pages * PAGE_SIZE);
    for page in 0..nr_pages as u64 {
        let kind = Kind::ALL[rng.below(Kind::ALL.len())];
        all.extend(bytes(kind, PAGE_SIZE, seed.wrapping_mul(1000) + page));
    }
    all
}
