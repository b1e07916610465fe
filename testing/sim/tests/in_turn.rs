//! Every call that can fail does, in turn and in every way, and no page is lost, duplicated or stale.

#![cfg(test)]

use hmm_model::Op;
use hmm_sim::{DeviceSetup, Failure, Noise, Report, Setup, ops_of, run, seeds};

const NR_OPS: usize = 40;
const NOISES: [Noise; 2] = [Noise::NONE, Noise { program: 8, engine: 3 }];

/// The device of a driver, private or coherent.
const DRIVEN: DeviceSetup =
    DeviceSetup { capacity_pages: 20, keeps_copies: false, is_coherent: false, may_hang: false };

/// Programs to go through, each in a quiet world, in a noisy one, and every second in one with a driver.
fn programs(default: u64) -> impl Iterator<Item = (Setup, Vec<Op>, Report)> {
    let driven = |seed: u64| {
        let driver = DeviceSetup { is_coherent: seed.is_multiple_of(4), ..DRIVEN };
        Setup { drivers: vec![driver], ..Setup::small(seed, NOISES[1]) }
    };
    let undriven = NOISES.map(|noise| move |seed| Setup::small(seed, noise));
    let setups = move |seed: u64| {
        let driven = seed.is_multiple_of(2).then(|| driven(seed));
        undriven.map(|setup| setup(seed)).into_iter().chain(driven)
    };
    seeds(default).flat_map(setups).map(|setup| {
        let ops = ops_of(&setup, NR_OPS);
        let report = run(&setup, &ops);
        (setup, ops, report)
    })
}

/// Pages that may be done before the failure: none, and some.
fn dones(nr_pages: usize) -> impl Iterator<Item = usize> {
    [0, nr_pages / 2].into_iter().take(if nr_pages > 1 { 2 } else { 1 })
}

#[test]
fn every_kernel_call_fails_in_turn() {
    let mut nr_runs = 0;
    for (setup, ops, report) in programs(2) {
        for (call, made) in report.kernel_calls.iter().enumerate() {
            for (why, done) in
                made.verb.stops().iter().flat_map(|why| dones(made.nr_pages).map(move |done| (*why, done)))
            {
                let failure = Failure { call, why, done };
                run(&Setup { kernel_failures: vec![failure], ..setup.clone() }, &ops);
                nr_runs += 1;
            }
        }
    }
    assert!(nr_runs > 500, "only {nr_runs} failures");
}

#[test]
fn every_device_call_fails_in_turn() {
    let mut nr_runs = 0;
    for (setup, ops, report) in programs(3) {
        for (call, made) in report.device_calls.iter().enumerate() {
            for (why, done) in
                made.verb.errors().iter().flat_map(|why| dones(made.nr_pages).map(move |done| (*why, done)))
            {
                let failure = Failure { call, why, done };
                run(&Setup { device_failures: vec![failure], ..setup.clone() }, &ops);
                nr_runs += 1;
            }
        }
    }
    assert!(nr_runs > 500, "only {nr_runs} failures");
}
