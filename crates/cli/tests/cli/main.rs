//! The command from outside: as its users call it, with a watchdog on every call.
//!
//! One program for all of it, so that what the tests share is compiled and linked once.

#[cfg(test)]
mod common;
#[cfg(test)]
mod doctor_and_demo;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod passing_through;
#[cfg(test)]
mod place;
#[cfg(test)]
mod policies;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod signals;
#[cfg(test)]
mod sweep;
#[cfg(test)]
mod terminal;
