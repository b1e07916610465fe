//! The reference model: what a program may do to its memory, and what it must read afterwards.
//!
//! One [`Op`] is one thing that the program does, or one step that the engine takes on its own. A [`Model`] applies the
//! program's operations to a plain map of page contents; what is away, staged or stored does not exist in it. Every test
//! of the engine, be it on a simulated kernel, fuzzed, or on the real one, applies the same operations to both and
//! compares: a page that reads otherwise than the model says was lost, duplicated or stale.
//!
//! Pages are numbered from the start of an [`Arena`]; whoever runs the operations decides where the arena lies.
//! Operations come from [`Generator`], which draws from anything that is [`Entropy`]: a seed, or a fuzzer's bytes.

#![forbid(unsafe_code)]

mod content;
mod entropy;
mod generate;
mod memory;
mod op;
mod span;
#[cfg(feature = "proptest")]
pub mod strategy;

pub use content::{Content, Difference, PAGE_SIZE, PAGE_WORDS, Pattern};
pub use entropy::{Bytes, Entropy, Seeded};
pub use generate::{Arena, Generator, Mix};
pub use memory::{Model, Page, Refused};
pub use op::Op;
pub use span::Span;
