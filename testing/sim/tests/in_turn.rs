//! Every call that can fail does, in turn and in every way, and no page is lost, duplicated or stale.

#![cfg(test)]

use hmm_model::Op;
use hmm_sim::{Failure, Noise, Report, Setup, ops_of, run, seeds};

const NR_OPS: usize = 40;
const NOISES: [Noise; 2] = [Noise::NONE, Noise { program: 8, engine: 3 }];

/// Programs to go through, each in a quiet and in a noisy world.
fn programs(default: u64) -> impl Iterator<Item = (Setup, Vec<Op>, Report)> {
    seeds(default).flat_map(|seed| NOISES.map(|noise| Setup::small(seed, noise))).map(|setup| {
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
    for (setup, ops, report) in programs(4) {
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
    for (setup, ops, report) in programs(6) {
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
