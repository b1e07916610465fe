//! Worlds that a fuzzer describes: what it finds it prints as bytes, and as the setup and the last lines of what happened.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (setup, ops) = hmm_sim::world_of(bytes);
    hmm_sim::run(&setup, &ops);
});
