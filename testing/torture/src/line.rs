//! What a worker says on its standard output, a line of JSON each.

use serde::{Deserialize, Serialize};

/// A line.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Line {
    /// For each thread how many operations it has done, what else was done for it that shows that it does not hang, and what it
    /// does now.
    Progress(Vec<(u64, u64, String)>),
    /// It is done.
    Done(Done),
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Done {
    /// Operations, but for those of children.
    pub(crate) nr_operations: u64,
    /// Forks.
    pub(crate) nr_forks: u64,
    /// Forks that were refused, because there was no room.
    pub(crate) nr_refused: u64,
    /// Children that outlived their parents.
    pub(crate) nr_orphans: u64,
    /// Pages that were lost to a device that fails on purpose.
    pub(crate) nr_lost: u64,
}

impl Done {
    /// Adds another's.
    pub(crate) const fn add(&mut self, other: Self) {
        self.nr_operations += other.nr_operations;
        self.nr_forks += other.nr_forks;
        self.nr_refused += other.nr_refused;
        self.nr_orphans += other.nr_orphans;
        self.nr_lost += other.nr_lost;
    }
}

impl Line {
    /// Writes it. Nobody may be there to read it.
    pub(crate) fn write(&self) {
        use std::io::Write;
        let text = serde_json::to_string(self).unwrap_or_default();
        let mut out = std::io::stdout().lock();
        let _reader_gone = writeln!(out, "{text}").and_then(|()| out.flush());
    }

    /// Reads one.
    pub(crate) fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}
