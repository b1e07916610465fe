//! Working memory for as many threads as can be busy at a time, without thread-local storage.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Threads that work side by side; others wait.
const LANES: usize = 8;

/// Some of a kind of working memory.
#[derive(Debug)]
pub struct Lanes<T>(Box<[Mutex<T>]>);

impl<T> Lanes<T> {
    /// Makes all of them.
    pub fn new(mut make: impl FnMut() -> T) -> Self {
        Self((0..LANES).map(|_| Mutex::new(make())).collect())
    }

    /// Makes all of them, or none.
    ///
    /// # Errors
    /// The first one's that cannot be made.
    pub fn try_new<E>(mut make: impl FnMut() -> Result<T, E>) -> Result<Self, E> {
        (0..LANES).map(|_| make().map(Mutex::new)).collect::<Result<_, _>>().map(Self)
    }

    /// Bytes that all lanes take.
    pub const fn total_bytes() -> usize {
        LANES * size_of::<Mutex<T>>()
    }

    /// A lane that nobody else uses now; waits for one only when all are in use.
    pub fn enter(&self) -> MutexGuard<'_, T> {
        // Threads have stacks of their own: most begin at lanes of their own.
        let here = std::ptr::from_ref(&self).addr() >> 16;
        let first = here.wrapping_mul(0x9E37_79B9) >> 16;
        let lane = |step: usize| &self.0[first.wrapping_add(step) % LANES];
        (0..LANES)
            .find_map(|step| lane(step).try_lock().ok())
            .unwrap_or_else(|| lane(0).lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_different_until_there_are_no_more() {
        let mut next = 0;
        let lanes = Lanes::new(|| {
            next += 1;
            next
        });
        let guards: Vec<_> = (0..LANES).map(|_| lanes.enter()).collect();
        let mut seen: Vec<i32> = guards.iter().map(|guard| **guard).collect();
        seen.sort_unstable();
        assert_eq!(seen, (1..=8).collect::<Vec<_>>());
        let fails = Lanes::<()>::try_new(|| Err(7));
        assert_eq!(fails.expect_err("the first one's"), 7);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| *lanes.enter());
            drop(guards);
            assert!((1..=8).contains(&waiter.join().unwrap()));
        });
    }
}
