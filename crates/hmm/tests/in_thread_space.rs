//! The tests of the library, with threads that serve their own faults.

#![cfg(not(thread_sanitizer))]

#[path = "space.rs"]
mod space;
