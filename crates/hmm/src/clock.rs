//! Time in which this process could run.
//!
//! A process is stopped by Ctrl-Z, by a debugger, by whoever freezes its cgroup, and a loaded machine does not let it run for a
//! while. What waits in it has no chance to go on in that time, and must not be found to have waited for too long when the
//! process goes on: a request would be given up that was answered long ago. So no more is counted between two looks at the clock
//! than [`MAX_STEP`]; the threads of the runtime look often enough.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// More than the longest pause between two looks when the process runs.
const MAX_STEP: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Clock(Mutex<Option<Look>>);

#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    /// What the clock said.
    said: Instant,
}

impl Clock {
    /// The time. It never goes back.
    pub(crate) fn now(&self) -> Instant {
        self.look(Instant::now())
    }

    fn look(&self, at: Instant) -> Instant {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let said = last.map_or(at, |last| last.said + at.saturating_duration_since(last.at).min(MAX_STEP));
        // Of two that look at the same time the one that was first may come here last.
        let at = last.map_or(at, |last| at.max(last.at));
        *last = Some(Look { at, said });
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_nobody_looked_does_not_count() {
        let (clock, begin) = (Clock::default(), Instant::now());
        let at = |millis| begin + Duration::from_millis(millis);
        assert_eq!(clock.look(at(0)), at(0));
        assert_eq!(clock.look(at(250)), at(250));
        // Stopped for a minute.
        assert_eq!(clock.look(at(60_250)), at(750));
        assert_eq!(clock.look(at(60_200)), at(750), "it never goes back");
        assert_eq!(clock.look(at(60_350)), at(850));
    }
}
