//! Real programs under `hmm run`: what they do must not show that they are.

#![expect(clippy::tests_outside_test_module, clippy::unwrap_used, reason = "integration tests")]

mod allocators;
mod budget;
mod calls;
mod compilers;
mod compressors;
mod dmirror;
mod endings;
mod failing;
mod full;
mod kernel_tests;
mod last_words;
mod numpy;
mod python;
mod redis;
mod rude;
mod runtimes;
mod sort;
mod sqlite;
mod strangers;
mod user;
