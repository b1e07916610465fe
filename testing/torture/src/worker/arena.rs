//! Memory of one thread, and what every byte of it must be.
//!
//! Beside each page lies another that hmm does not manage, with the bytes that it must have: a private mapping of a file,
//! which a fork copies as it copies the memory. [`Page`] says what else the kernel knows of a page.

use std::ffi::c_int;

use super::finding::{Finding, found};
use super::place::{Errno, PAGE, Place, area, unmanaged};
use super::trail::{self, Deed, Step};
use super::{life, signals};

/// What may be done to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prot {
    /// Nothing.
    None,
    /// It may be read.
    Read,
    /// It may be read and written.
    Write,
}

impl Prot {
    /// The kernel's flags.
    pub(crate) const fn flags(self) -> c_int {
        match self {
            Self::None => libc::PROT_NONE,
            Self::Read => libc::PROT_READ,
            Self::Write => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

/// What a child of a fork finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtFork {
    /// The page.
    Copy,
    /// Zeroes.
    Wipe,
    /// Nothing.
    Drop,
}

/// A mapped page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) prot: Prot,
    pub(crate) locked: bool,
    /// Its bytes, or zeroes: `MADV_FREE`.
    pub(crate) lazy: bool,
    /// Touching it raises SIGSEGV.
    pub(crate) guard: bool,
    pub(crate) at_fork: AtFork,
    /// By which call it was mapped.
    pub(crate) call: u32,
}

impl Page {
    const fn fresh(prot: Prot, call: u32) -> Self {
        Self { prot, locked: false, lazy: false, guard: false, at_fork: AtFork::Copy, call }
    }

    /// Whether it can be read.
    pub(crate) const fn is_readable(&self) -> bool {
        !self.guard && !matches!(self.prot, Prot::None)
    }

    /// Whether it can be written to.
    pub(crate) const fn is_writable(&self) -> bool {
        !self.guard && matches!(self.prot, Prot::Write)
    }
}

/// The memory of a thread.
#[derive(Debug)]
pub(crate) struct Arena {
    memory: Place,
    wanted: Place,
    pages: Vec<Option<Page>>,
    /// Of the areas.
    first_page: usize,
    nr_calls: u32,
}

impl Arena {
    /// So many pages from there in the areas, of which nothing is mapped.
    pub(crate) fn new(first_page: usize, nr_pages: usize) -> Result<Self, Errno> {
        assert!(first_page + nr_pages <= signals::MAX_PAGES, "inside of the areas");
        Ok(Self {
            memory: area(first_page * PAGE, nr_pages * PAGE),
            wanted: unmanaged(nr_pages * PAGE)?,
            pages: vec![None; nr_pages],
            first_page,
            nr_calls: 0,
        })
    }

    /// How many pages there could be.
    pub(crate) const fn nr_pages(&self) -> usize {
        self.pages.len()
    }

    /// All of its addresses.
    pub(crate) const fn memory(&self) -> Place {
        self.memory
    }

    /// What its bytes must be.
    pub(crate) const fn wanted(&self) -> Place {
        self.wanted
    }

    /// What is known of a page.
    pub(crate) fn page(&self, page: usize) -> Option<Page> {
        self.pages[page]
    }

    /// So many of the pages are like that.
    pub(crate) fn count(&self, is: impl Fn(&Page) -> bool) -> usize {
        self.pages.iter().flatten().filter(|page| is(page)).count()
    }

    /// How many pages from the first on are like that, of so many.
    pub(crate) fn run(&self, first: usize, most: usize, is: impl Fn(&Page) -> bool) -> usize {
        let pages = self.pages[first..first + most].iter();
        pages.take_while(|page| page.as_ref().is_some_and(&is)).count()
    }

    /// How many pages from the first on are not mapped, of so many.
    pub(crate) fn hole(&self, first: usize, most: usize) -> usize {
        self.pages[first..(first + most).min(self.pages.len())]
            .iter()
            .take_while(|page| page.is_none())
            .count()
    }

    /// What is done is remembered, for the case that a signal comes of it.
    pub(crate) fn did(&self, deed: Deed, first: usize, nr_pages: usize, to: usize) {
        let (first, to) = (self.first_page + first, self.first_page + to);
        trail::leave(Step { deed, first, nr_pages, to });
    }

    /// Something fresh is mapped there.
    pub(crate) fn mapped(&mut self, first: usize, nr_pages: usize, prot: Prot) {
        self.did(Deed::Map, first, nr_pages, 0);
        self.nr_calls += 1;
        self.pages[first..first + nr_pages].fill(Some(Page::fresh(prot, self.nr_calls)));
        self.wanted.pages(first, nr_pages).clear();
    }

    /// A mapping has grown: fresh pages that are like its others.
    pub(crate) fn grown(&mut self, first: usize, nr_pages: usize, like: Page) {
        self.did(Deed::Grow, first, nr_pages, 0);
        self.pages[first..first + nr_pages].fill(Some(Page { lazy: false, guard: false, ..like }));
        self.wanted.pages(first, nr_pages).clear();
    }

    /// What is there is gone.
    pub(crate) fn unmapped(&mut self, first: usize, nr_pages: usize) {
        self.did(Deed::Unmap, first, nr_pages, 0);
        self.pages[first..first + nr_pages].fill(None);
    }

    /// The page reads as zeroes.
    pub(crate) fn cleared(&mut self, page: usize) {
        self.wanted.pages(page, 1).clear();
        self.change(page, |page| page.lazy = false);
    }

    /// Something is different with a page that is mapped.
    pub(crate) fn change(&mut self, page: usize, change: impl FnOnce(&mut Page)) {
        if let Some(page) = &mut self.pages[page] {
            change(page);
        }
    }

    /// Pages are somewhere else now, and not where they were; what they were beside stays as it was.
    pub(crate) fn moved(&mut self, from: usize, to: usize, nr_pages: usize) {
        self.did(Deed::Move, from, nr_pages, to);
        self.wanted.pages(to, nr_pages).copy_from(self.wanted.pages(from, nr_pages));
        self.pages.copy_within(from..from + nr_pages, to);
    }

    /// Bytes were written. Whether pages that were given up lazily were gone is seen now.
    pub(crate) fn written(&mut self, at: usize, from: Place) -> Result<(), Finding> {
        self.wanted.part(at, from.len()).copy_from(from);
        for page in at / PAGE..(at + from.len()).div_ceil(PAGE) {
            if !self.pages[page].is_some_and(|page| page.lazy) {
                continue;
            }
            if self.differs(page).is_some() {
                self.cleared(page);
                let (start, end) = (at.max(page * PAGE), (at + from.len()).min((page + 1) * PAGE));
                self.wanted.part(start, end - start).copy_from(from.part(start - at, end - start));
                self.check(page, 1, "after a write to what was given up lazily")?;
            }
            self.change(page, |page| page.lazy = false);
        }
        Ok(())
    }

    fn differs(&self, page: usize) -> Option<usize> {
        self.memory.pages(page, 1).difference(self.wanted.pages(page, 1))
    }

    /// Pages that were lost meanwhile are fresh; whether there were any.
    pub(crate) fn settle(&mut self) -> bool {
        let mut any = false;
        if signals::may_lose() {
            for page in 0..self.pages.len() {
                if signals::take_lost(self.first_page + page) {
                    self.did(Deed::Replace, page, 1, 0);
                    self.mapped(page, 1, Prot::Write);
                    any = true;
                }
            }
        }
        any
    }

    /// Looks at all that can be read of some pages. What was lost by that is settled, also where it makes no difference: what is
    /// done to the page next would count as done before it was lost.
    pub(crate) fn check(&mut self, first: usize, nr_pages: usize, what: &str) -> Result<(), Finding> {
        let looked = self.look(first, nr_pages, what);
        self.settle();
        looked
    }

    fn look(&mut self, first: usize, nr_pages: usize, what: &str) -> Result<(), Finding> {
        for page in first..first + nr_pages {
            let Some(state) = self.pages[page].filter(Page::is_readable) else { continue };
            life::sign();
            let Some(at) = self.differs(page) else { continue };
            if self.settle() && self.differs(page).is_none() {
                continue;
            }
            let (memory, wanted) = (self.memory.pages(page, 1), self.wanted.pages(page, 1));
            if state.lazy && (0..PAGE).all(|at| memory.byte(at) == 0) {
                self.cleared(page);
                continue;
            }
            let (is, must) = (memory.byte(at), wanted.byte(at));
            let nr_wrong = (0..PAGE).filter(|at| memory.byte(*at) != wanted.byte(*at)).count();
            let addr = memory.addr();
            return found(format_args!(
                "wrong bytes {what}: page {page} of span {first}+{nr_pages} at {addr:#x}, byte {at}: \
                {is:#04x} instead of {must:#04x}, {nr_wrong} bytes are wrong; {state:?}"
            ));
        }
        Ok(())
    }

    /// This is a child of a fork: some of what the parent has it has not.
    pub(crate) fn forked(&mut self) {
        for page in 0..self.pages.len() {
            // Locks are not inherited.
            self.change(page, |page| page.locked = false);
            match self.pages[page].map(|page| page.at_fork) {
                Some(AtFork::Drop) => self.pages[page] = None,
                Some(AtFork::Wipe) => {
                    self.cleared(page);
                    self.change(page, |page| page.guard = false);
                }
                Some(AtFork::Copy) | None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Far from those of other tests.
    fn arena(first_page: usize) -> Arena {
        let mut arena = Arena::new(first_page, 8).unwrap();
        arena.memory().map(Prot::Write.flags(), 0).unwrap();
        arena.mapped(0, 8, Prot::Write);
        arena
    }

    #[test]
    fn a_wrong_byte_is_found_and_a_right_one_is_not() {
        let mut arena = arena(1 << 17);
        arena.memory().set_word(600, 7);
        assert!(arena.check(0, 8, "now").unwrap_err().0.contains("page 1 of span 0+8"));
        arena.wanted().set_word(600, 7);
        arena.check(0, 8, "now").unwrap();
    }

    #[test]
    fn what_was_lost_and_then_unmapped_is_not_there() {
        let mut arena = arena((1 << 17) + 16);
        signals::lose((1 << 17) + 16 + 3);
        arena.check(0, 8, "zeroes, before and after").unwrap();
        arena.unmapped(0, 8);
        arena.settle();
        assert_eq!(arena.page(3), None);
    }

    #[test]
    fn what_was_given_up_lazily_is_as_it_was_or_zero() {
        let mut arena = arena((1 << 17) + 8);
        let bytes = unmanaged(PAGE).unwrap();
        bytes.set_word(0, 3);
        arena.memory().pages(2, 1).copy_from(bytes);
        arena.written(2 * PAGE, bytes).unwrap();
        arena.change(2, |page| page.lazy = true);
        arena.check(0, 8, "as it was").unwrap();
        arena.memory().pages(2, 1).clear();
        arena.check(0, 8, "zero").unwrap();
        // It does not come back.
        arena.memory().pages(2, 1).copy_from(bytes);
        arena.check(0, 8, "again").unwrap_err();
    }
}
