//! Memory that all threads access at the same time: each has its own words in every page. Now and then one of them has it
//! to itself, and changes its mappings.

use super::finding::{Finding, found};
use super::place::{Errno, PAGE, Place, area, unmanaged};
use super::signals;
use super::thread::{MAX_THREADS, Thread};

/// Its size: two blocks and a half.
pub(crate) const NR_PAGES: usize = 1280;
const WORDS: usize = PAGE / 8;

/// The memory, its other place, and what is in it.
#[derive(Debug)]
pub(crate) struct Common {
    memory: Place,
    other: Place,
    wanted: Place,
}

impl Common {
    /// At that page of the areas; it has twice as many.
    pub(crate) fn new(first_page: usize) -> Result<Self, Errno> {
        let place = |page| area((first_page + page) * PAGE, NR_PAGES * PAGE);
        let this = Self { memory: place(0), other: place(NR_PAGES), wanted: unmanaged(NR_PAGES * PAGE)? };
        this.memory.map(libc::PROT_READ | libc::PROT_WRITE, 0)?;
        Ok(this)
    }

    fn check_word(&self, number: usize) -> Result<(), Finding> {
        let (is, must) = (self.memory.word(number), self.wanted.word(number));
        if is == must {
            return Ok(());
        }
        let page = number / WORDS;
        found(format_args!(
            "wrong bytes in common memory: page {page}, word {number}: {is:#x} instead of {must:#x}"
        ))
    }

    /// Looks at all of it. Nobody writes meanwhile.
    pub(crate) fn check_all(&self, when: &str) -> Result<(), Finding> {
        match self.memory.difference(self.wanted) {
            None => Ok(()),
            Some(at) => {
                found(format_args!("wrong bytes in common memory {when}: page {}, byte {at}", at / PAGE))
            }
        }
    }

    /// A thread's own words of some pages, by turns read and written.
    fn access(&self, thread: &mut Thread<'_>) -> Result<(), Finding> {
        let (first, nr_pages) = thread.chance.span(NR_PAGES);
        let own = thread.number % MAX_THREADS + MAX_THREADS * thread.chance.below(WORDS / MAX_THREADS);
        let writes = thread.chance.one_in(2);
        for page in first..first + nr_pages {
            let word = page * WORDS + own;
            self.check_word(word)?;
            if writes {
                let value = thread.chance.bits();
                self.memory.set_word(word, value);
                self.wanted.set_word(word, value);
            }
        }
        Ok(())
    }

    /// Changes mappings, while nobody else accesses them.
    fn change(&mut self, thread: &mut Thread<'_>) -> Result<(), Finding> {
        let (first, nr_pages) = thread.chance.span(NR_PAGES);
        let part = self.memory.pages(first, nr_pages);
        let done = match thread.chance.below(4) {
            0 => {
                self.wanted.pages(first, nr_pages).clear();
                part.advise(libc::MADV_DONTNEED)
            }
            1 => {
                self.wanted.pages(first, nr_pages).clear();
                part.map(libc::PROT_READ | libc::PROT_WRITE, 0)
            }
            2 => {
                part.protect(libc::PROT_READ).and_then(|()| part.protect(libc::PROT_READ | libc::PROT_WRITE))
            }
            _ => {
                let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                let moved = self.memory.remap(self.other, flags).map(drop);
                if moved == Err(Errno(libc::EFAULT)) {
                    // To older kernels it is several mappings.
                    return self.check_all("that did not move");
                }
                std::mem::swap(&mut self.memory, &mut self.other);
                moved
            }
        };
        match done {
            Ok(()) => Ok(()),
            Err(why) => found(format_args!("a change of common memory: {why}")),
        }
    }
}

/// The thread's words in it, or all of it.
pub(super) fn common(thread: &mut Thread<'_>) -> Result<(), Finding> {
    if signals::may_lose() {
        return Ok(());
    }
    let common = thread.common;
    if thread.chance.one_in(12) {
        let mut common = common.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        common.change(thread)
    } else {
        let common = common.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        common.access(thread)
    }
}
