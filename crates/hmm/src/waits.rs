//! For how long pages have been waited for that there was no memory for.
//!
//! A thread that waits for a page can be woken without having got it: somebody else had begun to fetch it, and found no memory
//! either. It faults again, and its message is a new one. So what counts is the page, not the message.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hmm_core::addr::Vpn;

/// Pages that are followed at a time. Of more than that some wait longer.
const MAX_WAITS: usize = 64;
/// A page that nobody has asked for in so long is not waited for any more. Far more than a retry takes.
const FORGET: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
struct Wait {
    page: Vpn,
    since: Instant,
    seen: Instant,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Waits {
    waits: Mutex<[Option<Wait>; MAX_WAITS]>,
    /// How many there are, asked without the lock: as a rule none.
    len: AtomicUsize,
}

impl Waits {
    pub(crate) const fn new() -> Self {
        Self { waits: Mutex::new([None; MAX_WAITS]), len: AtomicUsize::new(0) }
    }

    /// There is no memory for the page at this time. Gives since when it is waited for.
    pub(crate) fn go_on(&self, page: Vpn, now: Instant) -> Instant {
        self.change(|waits| {
            let is_over = |wait: &Wait| now.duration_since(wait.seen) >= FORGET;
            let known = waits.iter_mut().flatten().find(|wait| wait.page == page && !is_over(wait));
            if let Some(wait) = known {
                wait.seen = now;
                return wait.since;
            }
            if let Some(slot) = waits.iter_mut().find(|slot| slot.as_ref().is_none_or(is_over)) {
                *slot = Some(Wait { page, since: now, seen: now });
            }
            now
        })
    }

    /// The page is there, or there is memory for it now.
    pub(crate) fn end(&self, page: Vpn) {
        if self.len.load(Ordering::Relaxed) > 0 {
            self.change(|waits| {
                waits
                    .iter_mut()
                    .filter(|slot| slot.is_some_and(|wait| wait.page == page))
                    .for_each(|slot| *slot = None);
            });
        }
    }

    fn change<R>(&self, change: impl FnOnce(&mut [Option<Wait>; MAX_WAITS]) -> R) -> R {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut waits);
        self.len.store(waits.iter().flatten().count(), Ordering::Relaxed);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_asked_for_again_has_waited_since_the_first_time() {
        let (waits, page, begin) = (Waits::new(), Vpn(1), Instant::now());
        let at = |millis| begin + Duration::from_millis(millis);
        assert_eq!(waits.go_on(page, at(0)), at(0));
        assert_eq!(waits.go_on(page, at(900)), at(0));
        assert_eq!(waits.go_on(Vpn(2), at(900)), at(900), "another one");
        assert_eq!(waits.go_on(page, at(1800)), at(0));
        assert_eq!(waits.go_on(Vpn(2), at(1900)), at(1900), "nobody asked for it in between");
        waits.end(page);
        assert_eq!(waits.go_on(page, at(1900)), at(1900), "it was there");
    }

    #[test]
    fn pages_that_cannot_be_followed_have_just_begun_to_wait() {
        let (waits, begin) = (Waits::new(), Instant::now());
        let at = |millis| begin + Duration::from_millis(millis);
        for page in 0..=MAX_WAITS as u64 {
            assert_eq!(waits.go_on(Vpn(page), at(0)), at(0));
        }
        assert_eq!(waits.go_on(Vpn(0), at(5)), at(0));
        assert_eq!(waits.go_on(Vpn(MAX_WAITS as u64), at(5)), at(5));
        assert_eq!(waits.go_on(Vpn(MAX_WAITS as u64), at(2000)), at(2000));
        assert_eq!(waits.go_on(Vpn(MAX_WAITS as u64), at(2005)), at(2000), "the others are forgotten");
    }
}
