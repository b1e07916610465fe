//! Operation sequences from a source of choices.

use crate::content::{PAGE_WORDS, Pattern};
use crate::entropy::Entropy;
use crate::op::{Op, STRIDES};
use crate::span::Span;

/// The part of the address space that the operations are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arena {
    /// Its size.
    pub nr_pages: u32,
}

impl Arena {
    /// All of it.
    pub const fn all(self) -> Span {
        Span::new(0, self.nr_pages)
    }
}

/// How often each kind of operation comes, relative to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Mapping fresh memory, found memory, and unmapping.
    pub map: u32,
    /// Giving pages back.
    pub dont_need: u32,
    /// Moving mappings.
    pub remap: u32,
    /// Changing the protection.
    pub protect: u32,
    /// Writing words and whole pages.
    pub write: u32,
    /// Reading words and whole pages.
    pub read: u32,
    /// Holding pages in place, and letting them go.
    pub hold: u32,
    /// The engine's own steps.
    pub engine: u32,
}

impl Mix {
    /// All that a program does, mostly accesses.
    pub const PROGRAM: Self =
        Self { map: 4, dont_need: 5, remap: 4, protect: 2, write: 30, read: 25, hold: 2, engine: 0 };
    /// The same with the engine at work between any two operations.
    pub const ALL: Self = Self { engine: 28, ..Self::PROGRAM };
    /// Mappings that change under one's feet: for what happens in the middle of the engine's work.
    pub const UPHEAVAL: Self =
        Self { map: 6, dont_need: 12, remap: 8, protect: 1, write: 20, read: 20, hold: 1, engine: 0 };

    const fn weights(self) -> [u32; 8] {
        [self.map, self.dont_need, self.remap, self.protect, self.write, self.read, self.hold, self.engine]
    }
}

/// Pages in a block of the engine: spans like to begin and end there.
const BLOCK_PAGES: u32 = 512;

/// Draws operations. It knows nothing of what is mapped: some of what it draws, the kernel would refuse.
#[derive(Clone, Copy, Debug)]
pub struct Generator {
    /// Where the operations are.
    pub arena: Arena,
    /// Of what kinds they are.
    pub mix: Mix,
}

impl Generator {
    /// One operation.
    pub fn op(&self, entropy: &mut impl Entropy) -> Op {
        let weights = self.mix.weights();
        let mut pick = entropy.below(weights.iter().sum());
        let mut kind = 0;
        while kind < weights.len() - 1 && pick >= weights[kind] {
            pick -= weights[kind];
            kind += 1;
        }
        match kind {
            0 => self.mapping(entropy),
            1 => Op::DontNeed { span: self.span(entropy) },
            2 => self.remap(entropy),
            3 => Op::Protect { span: self.span(entropy), writable: entropy.one_in(2) },
            4 => self.write(entropy),
            5 => self.read(entropy),
            6 if entropy.one_in(2) => Op::Hold { span: self.span(entropy) },
            6 => Op::Release { span: self.arena.all() },
            _ if entropy.one_in(4) => Op::ReadAhead { steps: Self::steps(entropy) },
            _ => Op::Reclaim { steps: Self::steps(entropy) },
        }
    }

    /// `nr_ops` operations, after one that maps the whole arena.
    pub fn ops(&self, entropy: &mut impl Entropy, nr_ops: usize) -> Vec<Op> {
        let first = Op::Map { span: self.arena.all() };
        std::iter::once(first).chain((0..nr_ops).map(|_| self.op(entropy))).collect()
    }

    fn mapping(&self, entropy: &mut impl Entropy) -> Op {
        let span = self.span(entropy);
        match entropy.below(4) {
            0 | 1 => Op::Map { span },
            2 => Op::Adopt { span, stamp: entropy.bits() | 1 },
            _ => Op::Unmap { span },
        }
    }

    fn remap(&self, entropy: &mut impl Entropy) -> Op {
        let source = self.span(entropy);
        let to = match entropy.below(3) {
            // The same place of another block: what large allocators do.
            0 => (source.first + BLOCK_PAGES) % self.arena.nr_pages,
            1 => source.end() % self.arena.nr_pages,
            _ => entropy.below(self.arena.nr_pages),
        };
        let len = source.len.min(self.arena.nr_pages.saturating_sub(to)).max(1);
        Op::Remap { from: source.first, to, len, keep_source: entropy.one_in(3) }
    }

    fn write(&self, entropy: &mut impl Entropy) -> Op {
        if entropy.one_in(2) {
            return Op::Write { page: self.page(entropy), word: Self::word(entropy), value: entropy.bits() };
        }
        let pattern = if entropy.one_in(2) { Pattern::Same } else { Pattern::Noise };
        let stamp = if entropy.one_in(8) { 0 } else { entropy.bits() };
        Op::Fill { span: self.span(entropy), pattern, stamp }
    }

    fn read(&self, entropy: &mut impl Entropy) -> Op {
        if entropy.one_in(2) {
            Op::Read { page: self.page(entropy), word: Self::word(entropy) }
        } else {
            let stride = STRIDES[entropy.below(8) as usize];
            Op::Scan { span: self.span(entropy), stride }
        }
    }

    fn steps(entropy: &mut impl Entropy) -> u8 {
        #[expect(clippy::cast_possible_truncation, reason = "at most four")]
        let steps = 1 + entropy.below(4) as u8;
        steps
    }

    #[expect(clippy::cast_possible_truncation, reason = "a page has 512 words")]
    fn word(entropy: &mut impl Entropy) -> u16 {
        match entropy.below(4) {
            0 => 0,
            1 => PAGE_WORDS - 1,
            _ => entropy.below(u32::from(PAGE_WORDS)) as u16,
        }
    }

    fn page(&self, entropy: &mut impl Entropy) -> u32 {
        self.span(entropy).first
    }

    /// Few and short spans more often than many and long ones, and often at the border of a block.
    fn span(&self, entropy: &mut impl Entropy) -> Span {
        let nr_pages = self.arena.nr_pages;
        let first = match entropy.below(4) {
            0 => entropy.below(nr_pages.div_ceil(BLOCK_PAGES)) * BLOCK_PAGES,
            1 => (entropy.below(nr_pages.div_ceil(BLOCK_PAGES)) * BLOCK_PAGES + BLOCK_PAGES - 3) % nr_pages,
            // A few pages that everybody comes back to.
            2 => entropy.below(16) * 5 % nr_pages,
            _ => entropy.below(nr_pages),
        };
        let longest = match entropy.below(18) {
            0..=4 => 1,
            5..=10 => 8,
            11..=14 => 64,
            15 | 16 => BLOCK_PAGES,
            // All of a block, which may be one huge page.
            _ => {
                let block = first - first % BLOCK_PAGES;
                return Span::new(block, BLOCK_PAGES.min(nr_pages - block));
            }
        };
        let len = 1 + entropy.below(longest.min(nr_pages - first));
        Span::new(first, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::{Bytes, Seeded};
    use crate::memory::{Model, Refused};

    #[test]
    fn sequences_stay_in_the_arena_and_are_mostly_accepted() {
        for nr_pages in [1, 7, 512, 1500] {
            let generator = Generator { arena: Arena { nr_pages }, mix: Mix::ALL };
            let mut model = Model::new(generator.arena);
            let outcomes: Vec<_> =
                generator.ops(&mut Seeded::new(1), 2000).iter().map(|op| model.apply(op)).collect();
            assert!(!outcomes.contains(&Err(Refused::OutOfArena)), "{nr_pages} pages");
            let accepted = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
            assert!(accepted > 800, "{accepted} of 2001 in {nr_pages} pages");
        }
    }

    #[test]
    fn every_kind_comes_up() {
        let generator = Generator { arena: Arena { nr_pages: 1024 }, mix: Mix::ALL };
        let ops = generator.ops(&mut Seeded::new(2), 5000);
        let mut kinds: Vec<String> =
            ops.iter().map(|op| format!("{op:?}").split(' ').next().unwrap().to_owned()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), 14, "{kinds:?}");
    }

    #[test]
    fn any_bytes_make_operations() {
        let generator = Generator { arena: Arena { nr_pages: 600 }, mix: Mix::ALL };
        let bytes: Vec<u8> = (0..=255).collect();
        let mut entropy = Bytes::new(&bytes);
        let mut model = Model::new(generator.arena);
        while !entropy.is_empty() {
            let outcome = model.apply(&generator.op(&mut entropy));
            assert_ne!(outcome, Err(Refused::OutOfArena));
        }
    }
}
