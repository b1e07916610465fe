//! Operations that proptest makes up, and on a failure makes fewer and simpler.

#![cfg(test)]

use hmm_model::{Arena, strategy};
use hmm_sim::{DeviceSetup, Noise, Setup, run};
use proptest::prelude::*;

/// Pages of one block's end and the next one's beginning are what the operations are about.
const ARENA: Arena = Arena { nr_pages: 600 };

fn setup(seed: u64, noise: Noise) -> Setup {
    Setup { arena: ARENA, budget_pages: 64, ..Setup::small(seed, noise) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn programs_read_what_they_wrote(seed in 0_u64..4, ops in strategy::ops(ARENA, 40)) {
        run(&setup(seed, Noise::NONE), &ops);
    }

    #[test]
    fn programs_with_threads_read_what_they_wrote(seed: u64, ops in strategy::ops(ARENA, 30)) {
        run(&setup(seed, Noise { program: 6, engine: 2 }), &ops);
    }

    #[test]
    fn programs_with_drivers_read_what_they_wrote(seed: u64, rarity in prop_oneof![Just(0), 10_u32..30], ops in strategy::ops(ARENA, 30)) {
        let device = |capacity_pages| DeviceSetup { capacity_pages, keeps_copies: false, is_coherent: false, may_hang: false };
        let noisy = setup(seed, Noise { program: 6, engine: 3 });
        run(&Setup { drivers: vec![device(40), device(600)], failure_rarity: rarity, ..noisy }, &ops);
    }
}
