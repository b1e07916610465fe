//! Snapshot and range fault on the real kernel: each state that a page can be in, and what a driver is told of it.

#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

mod away;
#[path = "../common/mod.rs"]
#[expect(dead_code, reason = "shared with tests that use other parts of it")]
mod common;
mod device;
mod manage;
mod maps;
mod requests;
mod states;
