//! Bytes of a chosen compressibility, made faster than they are paged, and again at will for checking.
//!
//! A page is a pure function of (seed, page number, generation), so a checker needs no second copy of the working set.
//! Data of 3:1 looks like records: an unpredictable word, then a phrase from a small set, of varying length. lz4 then has
//! about as many sequences to do a page as with real data, and its speed is about that with real data; long runs of one
//! value would compress to the same ratio at several times the speed. Adding a constant to every word keeps the ratio.

/// Bytes in a page: the unit of generation, and of every touch.
pub(crate) const PAGE_BYTES: usize = 4096;
/// 64-bit words in a page.
pub(crate) const PAGE_WORDS: usize = PAGE_BYTES / 8;
/// The words of one page.
pub(crate) type Page = [u64; PAGE_WORDS];

const NR_PHRASES: usize = 4;
const PHRASE_WORDS: usize = 6;
/// An unpredictable word and the longest phrase.
const GROUP_WORDS: usize = 1 + PHRASE_WORDS;

/// How well the data compress under lz4 in units of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
pub(crate) enum Data {
    /// About 3:1.
    #[value(name = "3:1")]
    #[serde(rename = "3:1")]
    Compressible,
    /// Not at all.
    #[value(name = "1:1")]
    #[serde(rename = "1:1")]
    Incompressible,
}

impl std::fmt::Display for Data {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Compressible => "3:1",
            Self::Incompressible => "1:1",
        })
    }
}

/// Splitmix64: fast, stateless to seed, and good enough that lz4 finds nothing in it.
#[derive(Debug)]
pub(crate) struct Random(u64);

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Turns any difference of the input into a difference of half of the output's bits.
pub(crate) const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Random {
    /// The sequence that belongs to `seed`.
    pub(crate) const fn new(seed: u64) -> Self {
        Self(mix(seed ^ GOLDEN))
    }

    /// The next 64 bits.
    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number below `bound`, which is less than 2^32.
    pub(crate) const fn below(&mut self, bound: usize) -> usize {
        (((self.next() >> 32) * bound as u64) >> 32) as usize
    }
}

/// Makes pages of one kind from one seed.
#[derive(Debug)]
pub(crate) struct Generator {
    data: Data,
    seed: u64,
    phrases: [[u64; PHRASE_WORDS]; NR_PHRASES],
}

impl Generator {
    pub(crate) fn new(data: Data, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let phrases = std::array::from_fn(|_| std::array::from_fn(|_| random.next()));
        Self { data, seed, phrases }
    }

    /// Writes what page number `page` holds after it was written `generation` times.
    pub(crate) fn fill(&self, page: usize, generation: u64, out: &mut Page) {
        let mut random = Random::new(self.seed ^ mix((page as u64) << 32 ^ generation));
        match self.data {
            Data::Compressible => self.records(&mut random, out),
            Data::Incompressible => out.fill_with(|| random.next()),
        }
    }

    /// A phrase is written at its full length, and the next group begins somewhere in its second half: a copy of fixed
    /// size is several times faster than one of varying size.
    #[expect(clippy::cast_possible_truncation, reason = "two bits, and a number below three")]
    fn records(&self, random: &mut Random, out: &mut Page) {
        let mut at = 0;
        while let Some(group) = out.get_mut(at..at + GROUP_WORDS) {
            let word = random.next();
            group[0] = word;
            group[1..].copy_from_slice(&self.phrases[(word % NR_PHRASES as u64) as usize]);
            let shorter_by = (((word >> 48) * 3) >> 16) as usize;
            at += GROUP_WORDS - shorter_by;
        }
        let rest = &mut out[at..];
        rest.copy_from_slice(&self.phrases[0][..rest.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Size before over size after lz4, page by page, as a device with units of a page sees it.
    fn lz4_ratio(data: Data, change: impl Fn(u64) -> u64) -> f64 {
        let generator = Generator::new(data, 7);
        let mut page = [0; PAGE_WORDS];
        let mut packed = vec![0; lz4_flex::block::get_maximum_output_size(PAGE_BYTES)];
        let nr_pages = 512;
        let packed_bytes: usize = (0..nr_pages)
            .map(|index| {
                generator.fill(index, index as u64 % 3, &mut page);
                let bytes: Vec<u8> = page.iter().flat_map(|word| change(*word).to_ne_bytes()).collect();
                lz4_flex::block::compress_into(&bytes, &mut packed).unwrap()
            })
            .sum();
        (nr_pages * PAGE_BYTES) as f64 / packed_bytes as f64
    }

    #[test]
    fn ratios_are_what_they_are_called() {
        let three = lz4_ratio(Data::Compressible, |word| word);
        assert!((2.8..=3.3).contains(&three), "3:1 data compresses {three:.3}:1");
        let changed = lz4_ratio(Data::Compressible, |word| word.wrapping_add(GOLDEN));
        assert!((2.8..=3.3).contains(&changed), "after a pass of seqrmw {changed:.3}:1");
        let one = lz4_ratio(Data::Incompressible, |word| word);
        assert!((0.98..=1.0).contains(&one), "1:1 data compresses {one:.3}:1");
    }

    #[test]
    fn pages_depend_on_everything_they_should() {
        for data in [Data::Compressible, Data::Incompressible] {
            let page = |seed, number, generation| {
                let mut page = [0; PAGE_WORDS];
                Generator::new(data, seed).fill(number, generation, &mut page);
                page
            };
            assert_eq!(page(1, 2, 3), page(1, 2, 3));
            assert_ne!(page(1, 2, 3), page(9, 2, 3));
            assert_ne!(page(1, 2, 3), page(1, 9, 3));
            assert_ne!(page(1, 2, 3), page(1, 2, 9));
        }
    }

    #[test]
    fn below_reaches_both_ends() {
        let mut random = Random::new(3);
        let mut seen = [false; 7];
        (0..1000).for_each(|_| seen[random.below(7)] = true);
        assert_eq!(seen, [true; 7]);
    }
}
