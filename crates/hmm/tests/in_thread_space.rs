//! The tests of the library, with threads that serve their own faults.

#[path = "space.rs"]
mod space;
