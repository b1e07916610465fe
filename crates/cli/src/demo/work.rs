//! The work: phases on an array of words, each checked against what [`data`](super::data) says.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::data::{self, GROUP, NR_MIXES, Updates};

/// Words between two looks at the clock.
const CHUNK: usize = 1 << 17;
/// Random updates for each page.
const UPDATES_PER_PAGE: u64 = 2;
const WORDS_PER_PAGE: usize = 512;
/// Updates between two looks at the clock.
const UPDATE_CHUNK: u64 = 1 << 10;

/// What is done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// Writes every word.
    Fill,
    /// Reads every word.
    Verify,
    /// Reads and writes every word, several times over.
    Mix,
    /// Checks and changes words all over the place.
    RandomUpdates,
    /// Reads every word.
    FinalVerify,
}

impl Phase {
    /// In order.
    pub(super) const ALL: [Self; 5] =
        [Self::Fill, Self::Verify, Self::Mix, Self::RandomUpdates, Self::FinalVerify];

    /// Its name, for people.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Fill => "fill",
            Self::Verify => "verify",
            Self::Mix => "mix in place, 3 passes",
            Self::RandomUpdates => "random updates",
            Self::FinalVerify => "verify every byte",
        }
    }
}

/// How much a phase does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Amount {
    /// Bytes gone through.
    Bytes(u64),
    /// Single words.
    Updates(u64),
}

/// Memory as words: plain or managed, the work is the same.
pub(super) trait WordMemory {
    fn words(&mut self) -> &mut [u64];
}

impl WordMemory for &mut [u64] {
    fn words(&mut self) -> &mut [u64] {
        self
    }
}

/// A word is not what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    phase: Phase,
    place: usize,
    found: u64,
    expected: u64,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "WRONG DATA in phase '{}': word {} of page {} is {:#018x}, must be {:#018x}. This must never happen; \
             please report it",
            self.phase.name(),
            self.place % WORDS_PER_PAGE,
            self.place / WORDS_PER_PAGE,
            self.found,
            self.expected
        )
    }
}

/// The work on one memory.
#[derive(Debug)]
pub(super) struct Work<'a> {
    words: &'a mut [u64],
    updates: Updates,
}

impl<'a> Work<'a> {
    /// On this memory, of whole groups.
    pub(super) fn new(memory: &'a mut impl WordMemory) -> Self {
        let words = memory.words();
        let nr_pages = (words.len() / WORDS_PER_PAGE) as u64;
        let updates = Updates::new(words.len(), nr_pages * UPDATES_PER_PAGE);
        Self { words, updates }
    }

    /// How much the phase does.
    pub(super) fn amount(&self, phase: Phase) -> Amount {
        let bytes = size_of_val(self.words) as u64;
        match phase {
            Phase::Fill | Phase::Verify | Phase::FinalVerify => Amount::Bytes(bytes),
            Phase::Mix => Amount::Bytes(bytes * NR_MIXES as u64),
            Phase::RandomUpdates => {
                let done = (0..self.updates.nr_steps()).filter(|step| self.updates.word(*step).is_some());
                Amount::Updates(done.count() as u64)
            }
        }
    }

    /// Does a phase, and takes the time. `done` hears how much is done, from 0 to 1.
    pub(super) fn run(&mut self, phase: Phase, mut done: impl FnMut(f64)) -> Result<Duration, Wrong> {
        let start = Instant::now();
        match phase {
            Phase::Fill => self.fill(&mut done),
            Phase::Verify => self.verify(phase, data::filled, &mut done)?,
            Phase::Mix => self.mix(&mut done),
            Phase::RandomUpdates => self.update(&mut done)?,
            Phase::FinalVerify => {
                let updates = self.updates;
                let last = |group| {
                    let mixed = data::mixed(group);
                    std::array::from_fn(|index| updates.finally(group * GROUP + index, mixed[index]))
                };
                self.verify(phase, last, &mut done)?;
            }
        }
        Ok(start.elapsed())
    }

    fn fill(&mut self, done: &mut impl FnMut(f64)) {
        let nr_words = self.words.len();
        for (chunk, words) in self.words.chunks_mut(CHUNK).enumerate() {
            for (group, words) in words.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                *words = data::filled(chunk * CHUNK / GROUP + group);
            }
            done(fraction((chunk + 1) * CHUNK, nr_words));
        }
    }

    fn verify(
        &self,
        phase: Phase,
        expect: impl Fn(usize) -> [u64; GROUP],
        done: &mut impl FnMut(f64),
    ) -> Result<(), Wrong> {
        for (chunk, words) in self.words.chunks(CHUNK).enumerate() {
            for (group, words) in words.as_chunks::<GROUP>().0.iter().enumerate() {
                let group = chunk * CHUNK / GROUP + group;
                let expected = expect(group);
                if *words != expected {
                    return Err(Wrong::find(phase, group, words, &expected));
                }
            }
            done(fraction((chunk + 1) * CHUNK, self.words.len()));
        }
        Ok(())
    }

    fn mix(&mut self, done: &mut impl FnMut(f64)) {
        let nr_words = self.words.len();
        for pass in 0..NR_MIXES {
            for (chunk, words) in self.words.chunks_mut(CHUNK).enumerate() {
                words.as_chunks_mut::<GROUP>().0.iter_mut().for_each(data::mix);
                done(fraction(pass * nr_words + (chunk + 1) * CHUNK, NR_MIXES * nr_words));
            }
        }
    }

    fn update(&mut self, done: &mut impl FnMut(f64)) -> Result<(), Wrong> {
        let nr_steps = self.updates.nr_steps();
        for step in 0..nr_steps {
            if step % UPDATE_CHUNK == 0 {
                #[expect(clippy::cast_precision_loss, reason = "a fraction to be shown")]
                done(step as f64 / nr_steps as f64);
            }
            let Some(place) = self.updates.word(step) else { continue };
            let (found, expected) = (self.words[place], data::mixed(place / GROUP)[place % GROUP]);
            if found != expected {
                return Err(Wrong { phase: Phase::RandomUpdates, place, found, expected });
            }
            self.words[place] = Updates::update(found, step);
        }
        Ok(())
    }
}

impl Wrong {
    fn find(phase: Phase, group: usize, found: &[u64; GROUP], expected: &[u64; GROUP]) -> Self {
        let index = (0..GROUP).find(|index| found[*index] != expected[*index]).unwrap_or(0);
        Self { phase, place: group * GROUP + index, found: found[index], expected: expected[index] }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a fraction to be shown")]
fn fraction(done: usize, all: usize) -> f64 {
    (done as f64 / all as f64).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NR_WORDS: usize = 300 * WORDS_PER_PAGE;

    fn run_until(memory: &mut [u64], last: Phase) {
        let mut memory = memory;
        let mut work = Work::new(&mut memory);
        for phase in Phase::ALL {
            work.run(phase, |_| {}).unwrap();
            if phase == last {
                break;
            }
        }
    }

    #[test]
    fn the_work_finds_nothing_wrong_in_good_memory() {
        let mut memory = vec![0; NR_WORDS];
        run_until(&mut memory, Phase::FinalVerify);
    }

    #[test]
    fn one_wrong_bit_is_found_with_its_place() {
        for (before, phase) in [(Phase::Fill, Phase::Verify), (Phase::RandomUpdates, Phase::FinalVerify)] {
            for place in [0, 777, NR_WORDS - 1] {
                let mut memory = vec![0; NR_WORDS];
                run_until(&mut memory, before);
                let expected = memory[place];
                memory[place] ^= 1 << 40;
                let mut slice = memory.as_mut_slice();
                let wrong = Work::new(&mut slice).run(phase, |_| {}).expect_err("found");
                assert_eq!(wrong, Wrong { phase, place, found: expected ^ 1 << 40, expected });
            }
        }
    }

    #[test]
    fn a_page_of_the_past_is_found() {
        let mut memory = vec![0; NR_WORDS];
        run_until(&mut memory, Phase::Fill);
        let old = memory[WORDS_PER_PAGE..2 * WORDS_PER_PAGE].to_vec();
        run_until(&mut memory, Phase::Mix);
        memory[WORDS_PER_PAGE..2 * WORDS_PER_PAGE].copy_from_slice(&old);
        let mut slice = memory.as_mut_slice();
        assert!(Work::new(&mut slice).run(Phase::FinalVerify, |_| {}).is_err());
    }
}
