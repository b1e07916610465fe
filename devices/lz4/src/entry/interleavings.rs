//! A frame that is filled, read and freed by several threads, in every interleaving (loom) or in many (shuttle).
//!
//! Each page has a tag that fits its state and no other. While a frame is free its tag is the list's, which fits none.

use super::*;
use crate::word::Unit;
use std::sync::Arc;

#[cfg(loom)]
use loom::{sync::Mutex, thread};
#[cfg(shuttle)]
use shuttle::{sync::Mutex, thread};

#[cfg(loom)]
fn explore(case: impl Fn() + Send + Sync + 'static) {
    loom::model(case);
}

#[cfg(shuttle)]
fn explore(case: impl Fn() + Send + Sync + 'static) {
    shuttle::check_random(case, 20_000);
}

/// What the list notes in a free frame.
const NEXT_FREE: u64 = 99;

/// A page: of one word, or compressed to so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Same(u64),
    Unit(usize),
}

impl Page {
    fn entry(self) -> (State, u64) {
        match self {
            Self::Same(word) => (State::Same, word),
            Self::Unit(len) => (State::Unit(Unit { offset: 4096, len, part: None }), 1000 + len as u64),
        }
    }
}

/// A table of one frame.
struct Table {
    entry: Entry,
    /// Whether the frame is in the free list.
    is_free: Mutex<bool>,
}

impl Table {
    /// The frame is handed out, and empty.
    fn new() -> Arc<Self> {
        let table = Self { entry: Entry::default(), is_free: Mutex::new(false) };
        table.entry.hand_out();
        Arc::new(table)
    }

    fn alloc(&self) -> bool {
        let mut is_free = self.is_free.lock().unwrap();
        if std::mem::take(&mut *is_free) {
            assert_eq!(self.entry.next_free(), NEXT_FREE, "the list is broken");
            self.entry.hand_out();
            return true;
        }
        false
    }

    fn ended(&self, state: Option<State>) {
        if state.is_some() {
            let mut is_free = self.is_free.lock().unwrap();
            assert!(!std::mem::replace(&mut is_free, true), "ended twice");
            self.entry.set_next_free(NEXT_FREE);
        }
    }

    fn store(&self, page: Page) -> bool {
        let (state, tag) = page.entry();
        if !self.entry.claim() {
            return false;
        }
        let is_filled = self.entry.fill(state, tag);
        if !is_filled {
            self.ended(self.entry.unpin());
        }
        is_filled
    }

    fn free(&self) {
        self.ended(self.entry.end());
    }

    /// What a reader sees is one of these pages.
    fn read(&self, pages: &[Page]) -> Option<Page> {
        let seen = self.entry.pin()?;
        self.ended(self.entry.unpin());
        let page = pages.iter().find(|page| page.entry() == seen);
        Some(*page.unwrap_or_else(|| panic!("{seen:?} is none of the pages")))
    }
}

fn beside(table: &Arc<Table>, work: impl FnOnce(&Table) + Send + 'static) -> thread::JoinHandle<()> {
    let table = Arc::clone(table);
    thread::spawn(move || work(&table))
}

/// A frame that is freed, and stored to again, while it is read.
fn read_while_it_is_stored_anew(first: Page, second: Page) {
    explore(move || {
        let table = Table::new();
        assert!(table.store(first));
        let reader = beside(&table, move |table| {
            table.read(&[first, second]);
        });
        table.free();
        let is_stored = table.alloc() && table.store(second);
        reader.join().unwrap();
        // The reader may have been the one to end the frame, and too late.
        assert_eq!(table.read(&[second]), is_stored.then_some(second));
        table.free();
        assert!(is_stored || table.alloc());
    });
}

#[test]
fn a_page_of_one_word_is_never_read_with_the_word_of_another() {
    read_while_it_is_stored_anew(Page::Same(1), Page::Same(2));
}

#[test]
fn a_page_is_never_read_with_the_tag_of_another() {
    read_while_it_is_stored_anew(Page::Same(1), Page::Unit(100));
    read_while_it_is_stored_anew(Page::Unit(100), Page::Same(1));
    read_while_it_is_stored_anew(Page::Unit(100), Page::Unit(200));
}

#[test]
fn of_two_pages_stored_to_a_frame_one_is_there_as_a_whole() {
    explore(|| {
        let pages = [Page::Same(1), Page::Unit(100)];
        let table = Table::new();
        let other = beside(&table, move |table| {
            assert!(table.store(pages[0]) || table.read(&pages) != Some(pages[0]));
        });
        let is_mine = table.store(pages[1]);
        other.join().unwrap();
        assert_eq!(table.read(&pages), Some(pages[usize::from(is_mine)]));
    });
}

#[test]
fn a_frame_that_is_freed_while_it_is_stored_to_ends_once() {
    explore(|| {
        let table = Table::new();
        let storer = beside(&table, |table| {
            table.store(Page::Same(1));
        });
        table.free();
        table.read(&[Page::Same(1)]);
        storer.join().unwrap();
        assert!(table.alloc(), "the frame is lost");
        assert_eq!(table.read(&[]), None, "it is empty");
        assert!(table.store(Page::Unit(100)));
        assert_eq!(table.read(&[Page::Unit(100)]), Some(Page::Unit(100)));
    });
}
