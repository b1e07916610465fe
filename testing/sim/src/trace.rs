//! What happened, for the report of a failure.

/// Lines that a report has, unless `HMM_SIM_TRACE` says otherwise.
const DEFAULT_LINES: usize = 400;

/// More happens in no world that works.
const MAX_LINES: usize = 10_000_000;

/// All that happened, a line each.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    lines: Vec<String>,
}

impl Trace {
    pub(crate) fn push(&mut self, line: String) {
        assert!(self.lines.len() < MAX_LINES, "this goes on for ever");
        self.lines.push(line);
    }

    /// How much happened.
    pub(crate) const fn nr_lines(&self) -> usize {
        self.lines.len()
    }

    /// The last lines.
    pub(crate) fn report(&self) -> String {
        let wanted = std::env::var("HMM_SIM_TRACE").ok().and_then(|lines| lines.parse().ok());
        let first = self.lines.len().saturating_sub(wanted.unwrap_or(DEFAULT_LINES));
        let mut report = self.lines[first..].join("\n");
        if first > 0 {
            let all = self.lines.len();
            report.insert_str(0, &format!("({first} lines before these: HMM_SIM_TRACE={all} shows all)\n"));
        }
        report
    }
}
