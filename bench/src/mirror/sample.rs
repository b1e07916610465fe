//! What a worker found out, on its way to the bench as one line of JSON.

use super::figure::Figure;
use std::time::Instant;

/// One repetition of a figure, with the floor that was measured beside it.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Sample {
    /// What was measured.
    pub(crate) of: Figure,
    /// The figure.
    pub(crate) figure: f64,
    /// Its floor.
    pub(crate) floor: f64,
}

/// Something to know of a figure.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Note {
    /// Of which.
    pub(crate) of: Figure,
    /// What.
    pub(crate) text: String,
}

/// What a worker says.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Found {
    /// Figures.
    Measured { samples: Vec<Sample>, notes: Vec<Note> },
    /// It cannot be measured here, with the reason.
    Unavailable(String),
}

/// Collects samples.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    samples: Vec<Sample>,
    notes: Vec<Note>,
}

impl Sampler {
    /// Adds a repetition.
    pub(crate) fn add(&mut self, of: Figure, figure: f64, floor: f64) {
        self.samples.push(Sample { of, figure, floor });
    }

    /// Adds something to know.
    pub(crate) fn note(&mut self, of: Figure, text: String) {
        self.notes.push(Note { of, text });
    }

    /// All of it.
    pub(crate) fn end(self) -> Found {
        Found::Measured { samples: self.samples, notes: self.notes }
    }
}

/// How long some work takes, in seconds.
pub(crate) fn time(work: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    work();
    begin.elapsed().as_secs_f64()
}

/// Bytes in a second, in 10^9.
pub(crate) fn gb_per_s(nr_bytes: usize, seconds: f64) -> f64 {
    nr_bytes as f64 / seconds / 1e9
}
