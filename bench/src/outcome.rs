//! How a measurement ended, and what the worker said.

use crate::cost::RunCost;
use crate::worker::{WRONG_BYTES, WorkerReport};
use anyhow::{Result, bail};
use serde_json::Value;
use std::process::Output;

/// One successful measurement.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Repetition {
    /// What the worker said.
    #[serde(flatten)]
    pub(crate) worker: WorkerReport,
    /// RAM beside the budget that held what was away, at its peak.
    pub(crate) device_bytes: Option<u64>,
    /// What it cost from start to end.
    pub(crate) run: RunCost,
    /// What is to be known of the figures.
    pub(crate) note: Option<String>,
    /// What `hmm run --stats` said.
    pub(crate) hmm_stats: Option<Value>,
}

/// How a measurement ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// With figures.
    Done(Box<Repetition>),
    /// The kernel killed the worker for want of memory.
    OutOfMemory,
    /// This system cannot work here, with the reason.
    Unavailable(String),
    /// It could have worked but did not.
    Failed(String),
}

/// Reads what the worker left behind.
///
/// # Errors
/// Wrong bytes.
pub(crate) fn outcome(output: &Output, around: Around) -> Result<Outcome> {
    if output.status.code() == Some(i32::from(WRONG_BYTES)) {
        bail!("{}", last_words(output));
    }
    if !output.status.success() {
        return Ok(Outcome::Failed(format!("{}: {}", output.status, last_words(output))));
    }
    let line = output.stdout.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).unwrap_or_default();
    match serde_json::from_slice::<WorkerReport>(line) {
        Ok(worker) => Ok(Outcome::Done(Box::new(around.with(worker)))),
        Err(error) => Ok(Outcome::Failed(format!("the worker's report cannot be read: {error}"))),
    }
}

/// What was seen around a worker.
#[derive(Debug, Default)]
pub(crate) struct Around {
    /// What it cost from start to end.
    pub(crate) run: RunCost,
    /// RAM beside the budget that held what was away, at its peak.
    pub(crate) device_bytes: Option<u64>,
    /// What is to be known of the figures.
    pub(crate) note: Option<String>,
    /// What `hmm run --stats` said.
    pub(crate) hmm_stats: Option<Value>,
}

impl Around {
    fn with(self, worker: WorkerReport) -> Repetition {
        let Self { run, device_bytes, note, hmm_stats } = self;
        Repetition { worker, device_bytes, run, note, hmm_stats }
    }
}

/// What the process wrote on standard error, in one line; the end of it where it is long.
pub(crate) fn last_words(output: &Output) -> String {
    const LINES: usize = 4;
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(LINES)..];
    if last.is_empty() { "nothing on standard error".to_owned() } else { last.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn ends_are_told_apart() {
        let output = |status: i32, stdout: &str, stderr: &str| Output {
            status: std::process::ExitStatus::from_raw(status),
            stdout: stdout.into(),
            stderr: stderr.into(),
        };
        let wrong = output(i32::from(WRONG_BYTES) << 8, "", "one\n wrong bytes: here\n");
        assert_eq!(outcome(&wrong, Around::default()).unwrap_err().to_string(), "one; wrong bytes: here");
        let failed = outcome(&output(1 << 8, "", ""), Around::default()).unwrap();
        assert!(matches!(failed, Outcome::Failed(why) if why.contains("nothing on standard error")));
        let unread = outcome(&output(0, "{}", ""), Around::default()).unwrap();
        assert!(matches!(unread, Outcome::Failed(why) if why.contains("cannot be read")));
        let report = serde_json::to_string(&crate::sample::repetition(1.0, 2.0).worker).unwrap();
        let done = outcome(
            &output(0, &format!("noise\n{report}\n\n"), ""),
            Around { device_bytes: Some(7), ..Around::default() },
        )
        .unwrap();
        assert!(matches!(done, Outcome::Done(repetition) if repetition.device_bytes == Some(7)));
    }
}
