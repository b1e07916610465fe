//! What was done last to the areas, by all threads, for a finding that is a signal. Nothing here allocates or waits.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Changes that are remembered.
const NR_STEPS: usize = 1 << 14;
/// Bits of a page's number.
const PAGE_BITS: u32 = 19;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Deed {
    /// Something fresh was mapped.
    Map,
    /// What was lost was replaced.
    Replace,
    /// A mapping has grown.
    Grow,
    /// What was there is gone.
    Unmap,
    /// Its protection, advice or locks were changed.
    Change,
    /// It went to a place of the kernel's choice, and came back.
    Wander,
    /// It went somewhere else.
    Move,
}

const DEEDS: [Deed; 7] =
    [Deed::Map, Deed::Replace, Deed::Grow, Deed::Unmap, Deed::Change, Deed::Wander, Deed::Move];

/// One change, of pages of the areas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) deed: Deed,
    pub(crate) first: usize,
    pub(crate) nr_pages: usize,
    /// Where to, of a move.
    pub(crate) to: usize,
}

impl Step {
    fn word(self) -> u64 {
        [self.first, self.nr_pages, self.to]
            .iter()
            .fold(self.deed as u64 + 1, |word, field| word << PAGE_BITS | *field as u64)
    }

    /// `None`: there was no such step.
    fn of_word(word: u64) -> Option<Self> {
        let field = |number: u32| usize::try_from(word >> (number * PAGE_BITS) & ((1 << PAGE_BITS) - 1)).ok();
        let deed = DEEDS.get(usize::try_from(word >> (3 * PAGE_BITS)).ok()?.checked_sub(1)?)?;
        Some(Self { deed: *deed, first: field(2)?, nr_pages: field(1)?, to: field(0)? })
    }

    /// Whether it concerns a page.
    fn concerns(&self, page: usize) -> bool {
        let holds = |first: usize| (first..first + self.nr_pages).contains(&page);
        holds(self.first) || self.deed == Deed::Move && holds(self.to)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}+{}", self.deed, self.first, self.nr_pages)?;
        if self.deed == Deed::Move { write!(f, " to {}", self.to) } else { Ok(()) }
    }
}

static STEPS: [AtomicU64; NR_STEPS] = [const { AtomicU64::new(0) }; NR_STEPS];
static NR_DONE: AtomicUsize = AtomicUsize::new(0);

/// That was done.
pub(crate) fn leave(step: Step) {
    let number = NR_DONE.fetch_add(1, Ordering::Relaxed);
    STEPS[number % NR_STEPS].store(step.word(), Ordering::Relaxed);
}

/// What was done last that concerns a page, the oldest first, with how long ago, in steps.
pub(crate) fn of(page: usize) -> impl Iterator<Item = (usize, Step)> {
    let nr_done = NR_DONE.load(Ordering::Relaxed);
    (nr_done.saturating_sub(NR_STEPS)..nr_done)
        .filter_map(move |number| {
            let step = Step::of_word(STEPS[number % NR_STEPS].load(Ordering::Relaxed))?;
            Some((nr_done - number, step))
        })
        .filter(move |(_, step)| step.concerns(page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_knows_what_was_done_to_it() {
        let step = |deed, first, nr_pages, to| Step { deed, first, nr_pages, to };
        let done = [
            step(Deed::Map, 0, 100, 0),
            step(Deed::Unmap, 40, 10, 0),
            step(Deed::Move, 7, 3, 200),
            step(Deed::Grow, (1 << 18) - 2, 2, 0),
        ];
        done.iter().for_each(|step| leave(*step));
        let seen = |page| of(page).map(|(_, step)| step.to_string()).collect::<Vec<_>>();
        assert_eq!(seen(45), ["Map 0+100", "Unmap 40+10"]);
        assert_eq!(seen(201), ["Move 7+3 to 200"]);
        assert_eq!(seen((1 << 18) - 1), ["Grow 262142+2"]);
        assert_eq!(seen(300), <[&str; 0]>::default());
    }
}
