//! Memory that everybody works on, and what must be in it.
//!
//! The first and the last words of a page are counters, which everybody adds one to; besides, each writer has a word of his
//! own, to which he writes ever greater numbers. So:
//!
//! - a counter never goes back for whoever looks at it, and is at a standstill exactly how often it was added to;
//! - a writer's word never goes back for any reader, and is for the writer himself what he wrote last;
//! - what is mapped anew or was discarded is zero: numbers carry the page's *life*, which begins then.
//!
//! Whoever accesses the memory holds the region's lock for reading, whoever changes its mapping holds it for writing, as
//! any program has to see to it that nobody uses what it unmaps. Whoever migrates holds nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hmm::core::addr::PAGE_SIZE;
use hmm_conformance::Map;

use crate::NR_AGENTS;

/// The words that are counters.
pub(crate) const COUNTERS: [usize; 2] = [0, PAGE_SIZE / 8 - 1];
/// Bits of a writer's numbers below the life.
const LIFE_SHIFT: u32 = 40;

/// The word that a writer writes to; apart, so that a part of a page that is wrong is seen.
pub(crate) const fn word_of(writer: usize) -> usize {
    37 + 101 * writer
}

/// What is true while nobody changes the mapping.
#[derive(Debug)]
pub(crate) struct Rules {
    /// How often each page has begun anew.
    pub(crate) lives: Vec<u64>,
    pub(crate) is_writable: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Region {
    map: Map,
    rules: RwLock<Rules>,
    /// How often each page's counters were added to in its life.
    added: Vec<[AtomicU64; 2]>,
}

impl Region {
    pub(crate) fn new(nr_pages: usize) -> Self {
        Self {
            map: Map::holes(nr_pages),
            rules: RwLock::new(Rules { lives: vec![1; nr_pages], is_writable: true }),
            added: (0..nr_pages).map(|_| Default::default()).collect(),
        }
    }

    pub(crate) const fn map(&self) -> &Map {
        &self.map
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Rules> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Rules> {
        self.rules.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A word in the program's memory, for an access that may wait for the page.
    pub(crate) fn word(&self, page: usize, word: usize) -> &AtomicU64 {
        assert!(page < self.map.nr_pages() && word < PAGE_SIZE / 8);
        let at = self.map.start().wrapping_add(page * PAGE_SIZE + word * 8).cast();
        // SAFETY: aligned and mapped; whoever accesses it holds the region's lock, and everybody does so atomically.
        unsafe { AtomicU64::from_ptr(at) }
    }

    pub(crate) fn load(&self, page: usize, word: usize) -> u64 {
        self.word(page, word).load(Ordering::SeqCst)
    }

    /// Somebody has added one to a counter.
    pub(crate) fn note_added(&self, page: usize, counter: usize) {
        self.added[page][counter].fetch_add(1, Ordering::SeqCst);
    }

    /// The pages begin anew. The caller holds the lock for writing.
    pub(crate) fn begin_anew(&self, rules: &mut Rules, pages: std::ops::Range<usize>) {
        for page in pages {
            rules.lives[page] += 1;
            self.added[page].iter().for_each(|added| added.store(0, Ordering::SeqCst));
        }
    }

    /// Everything is what it must be, seen by `load`. Nobody writes meanwhile.
    pub(crate) fn verify(&self, load: &mut dyn FnMut(usize, usize) -> u64) {
        let lives = self.write().lives.clone();
        (0..self.map.nr_pages()).for_each(|page| self.verify_page(&lives, page, load));
    }

    /// The same for one page. The caller holds the lock for writing.
    pub(crate) fn verify_page(&self, lives: &[u64], page: usize, load: &mut dyn FnMut(usize, usize) -> u64) {
        for (counter, word) in COUNTERS.into_iter().enumerate() {
            let added = self.added[page][counter].load(Ordering::SeqCst);
            assert_eq!(load(page, word), added, "counter {counter} of page {page} of {:?}", self.map.pages());
        }
        for writer in 0..NR_AGENTS {
            let value = load(page, word_of(writer));
            check_life(value, lives[page], page, writer);
        }
    }
}

/// What a writer writes.
pub(crate) const fn value(life: u64, number: u64) -> u64 {
    life << LIFE_SHIFT | number
}

/// A writer's word is of the page's present life, or was not written in it yet.
pub(crate) fn check_life(value: u64, life: u64, page: usize, writer: usize) {
    let of = value >> LIFE_SHIFT;
    assert!(
        value == 0 || of == life,
        "page {page} is in life {life}, and has writer {writer}'s word of life {of}: {value:#x}"
    );
}
