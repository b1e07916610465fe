//! Rows of medians, as a table or as JSON.

use super::figure::{Bar, Figure};
use super::sample::{Found, Sample};
use super::samples_of;
use crate::machine::Machine;
use crate::report::median;
use std::fmt;

/// Medians of a figure.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Median {
    /// Of the figure.
    pub(crate) figure: f64,
    /// Of its floor.
    pub(crate) floor: f64,
    /// Of figure over floor, of those measured beside each other.
    pub(crate) ratio: f64,
    /// Smallest of these ratios.
    pub(crate) least_ratio: f64,
    /// Largest of these ratios.
    pub(crate) most_ratio: f64,
    /// Whether the bar is met.
    pub(crate) met: bool,
}

/// One figure, all repetitions of it.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Row {
    /// Which.
    pub(crate) figure: Figure,
    /// In words.
    pub(crate) what: &'static str,
    /// What its floor is.
    pub(crate) floor: &'static str,
    /// Unit of both.
    pub(crate) unit: &'static str,
    /// What is good enough.
    pub(crate) bar: Bar,
    /// Medians, if it was measured.
    pub(crate) median: Option<Median>,
    /// Why it cannot be measured here.
    pub(crate) skipped: Option<String>,
    /// Why it could not be measured although it should.
    pub(crate) failed: Option<String>,
    /// What else is to be known.
    pub(crate) note: Option<String>,
    /// All that was measured.
    pub(crate) samples: Vec<Sample>,
}

impl Row {
    /// Without figures.
    pub(crate) fn new(figure: Figure) -> Self {
        let spec = figure.spec();
        Self {
            figure,
            what: spec.what,
            floor: spec.floor,
            unit: spec.unit,
            bar: spec.bar,
            median: None,
            skipped: None,
            failed: None,
            note: None,
            samples: Vec::new(),
        }
    }

    /// Adds what a worker found, as far as it is of this figure.
    pub(crate) fn add(&mut self, found: &Result<Found, String>) {
        match found {
            Ok(Found::Measured { samples, notes }) => {
                let before = self.samples.len();
                self.samples.extend(samples_of(samples, self.figure));
                if self.samples.len() == before {
                    self.failed = Some("the worker left it out".to_owned());
                }
                let note = notes.iter().rfind(|note| note.of == self.figure);
                self.note = note.map(|note| note.text.clone()).or(self.note.take());
            }
            Ok(Found::Unavailable(why)) => self.skipped = Some(why.clone()),
            Err(why) => self.failed = Some(why.clone()),
        }
    }

    /// Computes the medians.
    pub(crate) fn finish(&mut self) {
        let over = |value: &dyn Fn(&Sample) -> f64| median(self.samples.iter().map(value));
        let ratio = |sample: &Sample| sample.figure / sample.floor;
        let (Some(figure), Some(floor), Some(middle)) =
            (over(&|sample| sample.figure), over(&|sample| sample.floor), over(&ratio))
        else {
            return;
        };
        let ratios = || self.samples.iter().map(ratio);
        self.median = Some(Median {
            figure,
            floor,
            ratio: middle,
            least_ratio: ratios().fold(f64::INFINITY, f64::min),
            most_ratio: ratios().fold(0.0, f64::max),
            met: self.bar.is_met(figure, middle),
        });
    }
}

/// Everything that a run found out.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Report {
    /// Version of hmm.
    pub(crate) version: &'static str,
    /// What was asked for.
    pub(crate) option: &'static str,
    /// The machine.
    pub(crate) machine: Machine,
    /// Worker processes for each figure.
    pub(crate) reps: u32,
    /// Small sizes: the figures mean little.
    pub(crate) quick: bool,
    /// The figures.
    pub(crate) rows: Vec<Row>,
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::RatioAtLeast(least) => format!(">= {least}x"),
            Self::RatioAtMost(most) => format!("<= {most}x"),
            Self::FigureAtMost(most) => format!("<= {most}"),
        };
        f.pad(&text)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        writeln!(
            f,
            "hmm {} bench {}, {} reps{}",
            self.version,
            self.option,
            self.reps,
            if self.quick { " (quick: sizes are too small for the figures to mean much)" } else { "" }
        )?;
        let below = if machine.virtual_machine { ", virtual machine" } else { "" };
        writeln!(f, "{}, {} CPUs{below}, Linux {}\n", machine.cpu, machine.nr_cpus, machine.kernel)?;
        writeln!(
            f,
            "{:44}{:>9}{:>9} {:9}{:>7} {:>13}  {:9}result",
            "", "figure", "floor", "unit", "ratio", "least-most", "bar"
        )?;
        self.rows.iter().try_for_each(|row| write!(f, "{row}"))?;
        f.write_str(LEGEND)?;
        let mut floors: Vec<&str> = self.rows.iter().map(|row| row.floor).collect();
        floors.dedup();
        floors.sort_unstable();
        floors.dedup();
        writeln!(f, "{}.", floors.join("; "))
    }
}

const LEGEND: &str = "
Medians of all repetitions; least-most: of the ratios. Floors, measured in turns with the figures:
";

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.median, &self.skipped) {
            (Some(median), _) => writeln!(
                f,
                "{:44}{:>9.2}{:>9.2} {:9}{:>6.2}x {:>6.2}-{:<6.2}  {:9}{}",
                self.what,
                median.figure,
                median.floor,
                self.unit,
                median.ratio,
                median.least_ratio,
                median.most_ratio,
                self.bar,
                if median.met { "met" } else { "MISSED" }
            )?,
            (None, Some(why)) => writeln!(f, "{:44}skipped: {why}", self.what)?,
            (None, None) => writeln!(f, "{:44}no figures", self.what)?,
        }
        let mut line = |kind: &str, text: &Option<String>| match text {
            Some(text) => writeln!(f, "    {kind}{text}"),
            None => Ok(()),
        };
        line("failed: ", &self.failed)?;
        line("", &self.note)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::sample::Note;

    fn measured(ratios: &[f64]) -> Result<Found, String> {
        let sample = |ratio: &f64| Sample { of: Figure::Snapshot, figure: 10.0 * ratio, floor: 10.0 };
        let notes = vec![Note { of: Figure::Snapshot, text: "a note".to_owned() }];
        Ok(Found::Measured { samples: ratios.iter().map(sample).collect(), notes })
    }

    #[test]
    fn rows_are_medians() {
        let mut row = Row::new(Figure::Snapshot);
        row.add(&measured(&[0.25, 1.0]));
        row.add(&measured(&[0.5]));
        row.finish();
        let median = row.median.unwrap();
        assert_eq!((median.figure, median.floor, median.ratio), (5.0, 10.0, 0.5));
        assert_eq!((median.least_ratio, median.most_ratio, median.met), (0.25, 1.0, true));
        let text = row.to_string();
        assert!(text.contains("0.50x") && text.contains(">= 0.5x  met") && text.contains("a note"), "{text}");
        row.samples.truncate(1);
        row.finish();
        assert!(row.to_string().contains("MISSED"), "{row}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut row = Row::new(Figure::Fault);
        row.add(&measured(&[1.0]));
        row.finish();
        assert!(row.to_string().contains("failed: the worker left it out"), "{row}");
        let mut row = Row::new(Figure::Fault);
        row.add(&Ok(Found::Unavailable("no userfaultfd".to_owned())));
        row.finish();
        assert!(row.to_string().contains("skipped: no userfaultfd"), "{row}");
        let mut row = Row::new(Figure::Fault);
        row.add(&Err("exit status: 1: wrong bytes".to_owned()));
        row.finish();
        assert!(row.to_string().contains("failed: exit status: 1: wrong bytes"), "{row}");
    }
}
