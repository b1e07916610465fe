//! The file that `--stats` writes.

use std::path::Path;

use serde_json::Value;

/// Its content. See the figures' names there.
#[derive(Clone, Debug)]
pub struct Stats(Value);

impl Stats {
    /// Reads it, if it was written: a run that could not start has none.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok().map(Self)
    }

    /// A figure.
    ///
    /// # Panics
    /// When there is none of this name.
    #[track_caller]
    pub fn get(&self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap_or_else(|| panic!("no number '{name}' in {:#}", self.0))
    }

    /// A counter.
    ///
    /// # Panics
    /// When there is none of this name.
    #[track_caller]
    pub fn count(&self, name: &str) -> u64 {
        self.0["counters"][name].as_u64().unwrap_or_else(|| panic!("no counter '{name}' in {:#}", self.0))
    }

    /// Kind of the verdict, if there is one.
    pub fn verdict(&self) -> Option<&str> {
        self.0["verdict"]["kind"].as_str()
    }
}

impl std::fmt::Display for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.0)
    }
}
