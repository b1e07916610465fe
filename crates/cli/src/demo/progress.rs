//! A bar on the terminal while the demo works.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use super::work::Phase;
use crate::output;

const INTERVAL: Duration = Duration::from_millis(100);
const BAR: usize = 30;

/// The bar; none when standard error is no terminal.
#[derive(Debug)]
pub(super) struct Progress {
    terminal: bool,
    last: Option<Instant>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), last: None }
    }

    /// Draws the bar for what is done of a phase, from 0 to 1, now and then.
    pub(super) fn show(&mut self, place: &str, phase: Phase, done: f64) {
        if self.terminal && self.last.is_none_or(|last| last.elapsed() >= INTERVAL) {
            self.last = Some(Instant::now());
            output::raw(&format!("\r{}\x1b[K", line(place, phase, done)));
        }
    }

    /// Takes the bar away.
    pub(super) fn clear(&mut self) {
        if self.last.take().is_some() {
            output::raw("\r\x1b[K");
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a fraction of 1 becomes a few columns"
)]
fn line(place: &str, phase: Phase, done: f64) -> String {
    let done = done.clamp(0.0, 1.0);
    let full = (done * BAR as f64) as usize;
    format!(
        "{place:>9}  [{}{}] {:3.0} %  {}",
        "#".repeat(full),
        ".".repeat(BAR - full),
        done * 100.0,
        phase.name()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_as_long_as_the_work_is_done() {
        let bar = |done| line("in RAM", Phase::Fill, done);
        assert_eq!(bar(0.5), format!("   in RAM  [{}{}]  50 %  fill", "#".repeat(15), ".".repeat(15)));
        assert!(bar(1.7).contains(&"#".repeat(30)));
        assert!(bar(-1.0).contains("  0 %"));
    }
}
