//! Lines of the log, and short forms of pages and snapshots.

use std::fmt::{Display, Write as _};
use std::io::{self, Write as _};

use crate::dmirror::UNTOUCHED;
use crate::region::PAGE;
use crate::rng::mix;

/// A line that is being written: `key=value key=value ...`
#[derive(Debug)]
pub(crate) struct Line(String);

impl Line {
    pub(crate) fn new(seed: u64, step: usize, who: &str, op: &str) -> Self {
        Self(format!("seed={seed} step={step} who={who} op={op}"))
    }

    pub(crate) fn add(&mut self, key: &str, value: impl Display) {
        let _infallible = write!(self.0, " {key}={value}");
    }

    /// A number that the device wrote, or did not.
    pub(crate) fn add_out(&mut self, key: &str, value: u64) {
        if value == UNTOUCHED { self.add(key, '-') } else { self.add(key, value) }
    }

    /// Writes it at once: whatever happens in the next step, this one is in the log.
    ///
    /// # Errors
    /// The ones of standard output.
    pub(crate) fn print(mut self) -> io::Result<()> {
        self.0.push('\n');
        let mut stdout = io::stdout().lock();
        stdout.write_all(self.0.as_bytes())?;
        stdout.flush()
    }
}

/// Values with commas between them, equal neighbours counted: `a*3,b`; `-` for none.
pub(crate) fn runs<T: PartialEq>(values: &[T], show: impl Fn(&T) -> String) -> String {
    let runs: Vec<String> = values
        .chunk_by(PartialEq::eq)
        .map(|run| match run {
            [one] => show(one),
            all => format!("{}*{}", show(&all[0]), all.len()),
        })
        .collect();
    if runs.is_empty() { "-".to_owned() } else { runs.join(",") }
}

/// The bytes of a snapshot.
pub(crate) fn snapshot(bytes: &[u8]) -> String {
    runs(bytes, |byte| format!("{byte:02x}"))
}

/// Digests of pages.
pub(crate) fn pages(bytes: &[u8]) -> String {
    let digests: Vec<u32> = bytes.chunks_exact(PAGE).map(digest).collect();
    digests_of(&digests.into_iter().map(Some).collect::<Vec<_>>())
}

/// Digests of pages, `x` where there is none.
pub(crate) fn digests_of(digests: &[Option<u32>]) -> String {
    runs(digests, |digest| digest.map_or("x".to_owned(), |digest| format!("{digest:x}")))
}

/// A digest of a page: 0 for zeroes, and hardly ever for anything else.
pub(crate) fn digest(page: &[u8]) -> u32 {
    let words =
        page.chunks_exact(8).map(|word| word.iter().rfold(0, |all, &byte| all << 8 | u64::from(byte)));
    // A word of zeroes adds nothing, so a page of zeroes has 0. Of others the place counts.
    let hash = words
        .zip(1_u64..)
        .filter(|&(word, _)| word != 0)
        .fold(0_u64, |hash, (word, place)| hash.wrapping_add(mix(word ^ mix(place))));
    (hash >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_counted() {
        assert_eq!(snapshot(&[0, 0, 0, 0x21, 0xff, 0xff]), "00*3,21,ff*2");
        assert_eq!(snapshot(&[]), "-");
    }

    #[test]
    fn digests_tell_bytes_and_places_apart() {
        let page = |at: usize, byte: u8| {
            let mut page = vec![0; PAGE];
            page[at] = byte;
            digest(&page)
        };
        assert_eq!(digest(&vec![0; PAGE]), 0);
        let mut all: Vec<u32> = (0..PAGE).flat_map(|at| [1, 2, 0x80].map(|byte| page(at, byte))).collect();
        let number = all.len();
        all.sort_unstable();
        all.dedup();
        // Of 12288 values of 32 bits hardly two are equal.
        assert!(number - all.len() <= 1, "{} are equal", number - all.len());
    }
}
