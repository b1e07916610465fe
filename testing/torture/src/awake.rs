//! Time in which this process ran.
//!
//! Who watches others for a hang must not count time in which all of them stood still, it as well as they: a cgroup that was frozen,
//! a machine that was suspended. So no more is counted between two looks than [`MAX_STEP`].

use std::time::{Duration, Instant};

/// More than there is between two looks of a process that runs.
const MAX_STEP: Duration = Duration::from_secs(3);

/// See the module.
#[derive(Debug)]
pub(crate) struct Awake {
    last: Instant,
    time: Duration,
}

impl Awake {
    pub(crate) fn new() -> Self {
        Self { last: Instant::now(), time: Duration::ZERO }
    }

    /// The time since the first look. To be looked at often.
    pub(crate) fn now(&mut self) -> Duration {
        self.look(Instant::now())
    }

    fn look(&mut self, at: Instant) -> Duration {
        self.time += at.saturating_duration_since(self.last).min(MAX_STEP);
        self.last = at;
        self.time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_nobody_looked_does_not_count() {
        let mut awake = Awake::new();
        let at = |awake: &Awake, millis| awake.last + Duration::from_millis(millis);
        assert_eq!(awake.look(at(&awake, 500)), Duration::from_millis(500));
        assert_eq!(awake.look(at(&awake, 2500)), Duration::from_secs(3));
        // Frozen for ten minutes.
        assert_eq!(awake.look(at(&awake, 600_000)), Duration::from_secs(6));
        assert_eq!(awake.look(at(&awake, 20)), Duration::from_millis(6020));
    }
}
