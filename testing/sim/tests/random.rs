//! Random operations in random worlds.

#![cfg(test)]

use hmm_sim::{Setup, ops_of, run, seeds};

#[test]
fn random_operations_in_random_worlds() {
    for seed in seeds(300) {
        let setup = Setup::from_seed(seed);
        let t = std::time::Instant::now();
        run(&setup, &ops_of(&setup, 100));
        eprintln!("seed {seed} {:?}", t.elapsed());
    }
}

#[test]
fn random_operations_in_a_calm_world() {
    for seed in seeds(200) {
        let setup = Setup::calm(seed);
        run(&setup, &ops_of(&setup, 100));
    }
}
