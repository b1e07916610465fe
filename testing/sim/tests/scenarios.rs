//! Programs that do one particular thing.

#![cfg(test)]

use hmm_model::{Arena, Op, Pattern, Span};
use hmm_sim::{Noise, Setup, run, seeds};

const BLOCK: Span = Span::new(0, 512);

/// Room for all of it, so that a whole block leaves at once, as a huge page with some seeds.
fn wide(seed: u64) -> Setup {
    Setup { arena: Arena { nr_pages: 600 }, budget_pages: 1300, ..Setup::small(seed, Noise::NONE) }
}

fn staged_block() -> Vec<Op> {
    vec![
        Op::Map { span: Span::new(0, 600) },
        Op::Fill { span: BLOCK, pattern: Pattern::Noise, stamp: 1 },
        Op::Reclaim { steps: 1 },
    ]
}

#[test]
fn a_huge_page_comes_home_into_a_mapping_that_was_split() {
    for seed in seeds(16) {

        let mut ops = staged_block();
        ops.push(Op::Protect { span: Span::new(100, 10), writable: false });
        ops.extend([511, 104, 50].map(|page| Op::Read { page, word: 0 }));
        run(&wide(seed), &ops);
    }
}
