//! What happens by chance in a world: as bytes say, as long as there are any, and then as a seed says.

use hmm_model::{Bytes, Entropy, Generator, Mix, Op, Seeded};

use crate::setup::{Noise, Setup};

/// See the module.
#[derive(Debug)]
pub(crate) struct Choices {
    bytes: Vec<u8>,
    used: usize,
    then: Seeded,
}

impl Choices {
    pub(crate) const fn new(bytes: Vec<u8>, seed: u64) -> Self {
        Self { bytes, used: 0, then: Seeded::new(seed) }
    }

    fn choose<T>(&mut self, choose: impl FnOnce(&mut dyn Entropy) -> T) -> T {
        let mut bytes = Bytes::new(&self.bytes[self.used..]);
        if bytes.is_empty() {
            return choose(&mut self.then);
        }
        let choice = choose(&mut bytes);
        self.used = self.bytes.len() - bytes.len();
        choice
    }
}

impl Entropy for Choices {
    fn bits(&mut self) -> u64 {
        self.choose(|entropy| entropy.bits())
    }

    fn below(&mut self, bound: u32) -> u32 {
        self.choose(|entropy| entropy.below(bound))
    }
}

/// The most operations that bytes give: a world of more takes longer and finds no more.
const MAX_OPS: usize = 60;

/// What a fuzzer's bytes mean: a world, what happens in it by chance, and operations. Any bytes mean something; a change of one
/// changes one thing.
pub fn world_of(bytes: &[u8]) -> (Setup, Vec<Op>) {
    let (head, rest) = bytes.split_at(bytes.len().min(8));
    let mut head = Bytes::new(head);
    let (kind, failures, seed) = (head.below(4), head.below(4), head.bits());
    let mut setup = match kind {
        0 => Setup::small(seed, Noise { program: 10, engine: 1 }),
        1 => Setup::small(seed, Noise { program: 3, engine: 3 }),
        _ => Setup::from_seed(seed),
    };
    setup.failure_rarity = [0, 0, 12, 40][failures as usize];
    let (schedule, ops) = rest.split_at(rest.len() / 2);
    setup.schedule = schedule.to_vec();
    let generator = Generator { arena: setup.arena, mix: Mix::ALL };
    let mut ops = Bytes::new(ops);
    let ops =
        std::iter::from_fn(|| (!ops.is_empty()).then(|| generator.op(&mut ops))).take(MAX_OPS).collect();
    (setup, ops)
}
