//! The engine on a simulated kernel: a program, its page table, staging, devices and other threads, all in safe Rust and
//! all decided by a seed.
//!
//! A [`World`] runs operations of the reference model ([`hmm_model`]) on an engine whose kernel door and devices are
//! simulated, and compares after each one:
//!
//! - *content*: every page reads what the model says, wherever it is;
//! - *homes*: every page is in one place, and every slot and frame is one page's;
//! - *budget*: what is charged is what is resident, within the budget;
//! - *liveness*: nobody waits for nobody.
//!
//! There are no threads. What other threads would do happens inside the engine's calls: at every call of the kernel door
//! a thread of the program may write, fault, unmap, discard or move (and then waits for its event to be read); at every
//! transfer of a device, which the engine starts without locks, the runtime's other threads may serve faults, read
//! events and reclaim. Any call can be made to fail ([`Failure`]): tests let each in turn.
//!
//! `HMM_SIM_SEEDS=1000` runs more seeds than usual, `HMM_SIM_SEED=17` that one alone, and `HMM_SIM_TRACE=100000` shows
//! more of what happened in front of a failure.

#![forbid(unsafe_code)]

mod check;
mod choices;
mod deeds;
mod device;
mod driver;
mod events;
mod failure;
mod kernel;
mod machine;
mod memory;
mod program;
mod run;
mod runtime;
mod setup;
mod shared;
mod slots;
mod trace;
mod world;

#[cfg(test)]
mod policies;
#[cfg(test)]
mod rules;

pub use choices::world_of;
pub use device::DeviceSetup;
pub use failure::{DeviceVerb, Failure, Made, Verb};
pub use run::{ops_of, run, seeds};
pub use setup::{Meanwhile, Noise, Setup};
pub use world::{Report, World};
