//! Those who work on the memory: threads of the program, and units of the devices.
//!
//! A unit accesses a page as its device's page table says: in the device's memory or in a page of its own under the table's
//! lock, in system memory at the page's address without it, because such an access may wait for a fault to be served.
//! Without an entry there is a device fault.

use std::sync::atomic::{AtomicU64, Ordering};

use hmm::core::addr::{PageRange, Vpn};
use hmm::core::mirror::{RangeError, Request};
use hmm_conformance::{Entry, Rng};

use crate::region::{COUNTERS, Region, Rules, check_life, value, word_of};
use crate::{Fire, Kind, NR_AGENTS};

/// Where an agent stands.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    Cpu,
    /// The unit of that accelerator.
    Unit(usize),
}

/// What an agent knows of a page.
#[derive(Clone, Debug, Default)]
struct Known {
    life: u64,
    /// What it saw last of each writer's word; its own: what it wrote last.
    seen: [u64; NR_AGENTS],
    /// What the counters were at least.
    counters: [u64; 2],
}

/// See the module.
pub(crate) struct Agent<'f> {
    fire: &'f Fire,
    number: usize,
    side: Side,
    known: Vec<Vec<Known>>,
}

impl<'f> Agent<'f> {
    pub(crate) fn new(fire: &'f Fire, number: u64, side: Side) -> Self {
        let known = fire.regions.iter().map(|region| vec![Known::default(); region.map().nr_pages()]);
        let number = usize::try_from(number).expect("few agents");
        Self { fire, number, side, known: known.collect() }
    }

    pub(crate) fn work(mut self, rng: &mut Rng) {
        while self.fire.goes_on() {
            let index = rng.below(self.fire.regions.len());
            let region = &self.fire.regions[index];
            let rules = region.read();
            // Some accesses of pages near each other, as programs make them.
            let first = rng.below(region.map().nr_pages());
            for _ in 0..1 + rng.below(12) {
                let page = (first + rng.below(8)) % region.map().nr_pages();
                self.step(region, &rules, index, page, rng);
            }
        }
    }

    fn step(&mut self, region: &Region, rules: &Rules, index: usize, page: usize, rng: &mut Rng) {
        let (side, fire, me) = (self.side, self.fire, self.number);
        let known = &mut self.known[index][page];
        let life = rules.lives[page];
        if known.life != life {
            *known = Known { life, ..Known::default() };
        }
        match rng.below(4) {
            0 if rules.is_writable => {
                fire.report.now("add", index, page);
                let counter = rng.below(2);
                let before = access(fire, side, region, page, COUNTERS[counter], true, &|word| {
                    word.fetch_add(1, Ordering::SeqCst)
                });
                region.note_added(page, counter);
                let least = known.counters[counter];
                assert!(
                    before >= least,
                    "counter {counter} of page {page}: {before} after {least}, {side:?}"
                );
                known.counters[counter] = before + 1;
                fire.report.count(Kind::Add);
            }
            1 if rules.is_writable => {
                fire.report.now("write", index, page);
                // Zero in this life means: not written yet.
                let next = value(life, (known.seen[me] & 0xFF_FFFF_FFFF) + 1);
                access(fire, side, region, page, word_of(me), true, &|word| {
                    word.store(next, Ordering::SeqCst);
                    0
                });
                known.seen[me] = next;
                fire.report.count(Kind::Write);
            }
            _ => {
                fire.report.now("read", index, page);
                let writer = rng.below(NR_AGENTS);
                let load = |word: &AtomicU64| word.load(Ordering::SeqCst);
                let got = access(fire, side, region, page, word_of(writer), false, &load);
                check_life(got, life, page, writer);
                let last = known.seen[writer];
                let is_right = if writer == me { got == last } else { got >= last };
                assert!(
                    is_right,
                    "page {page}: {got:#x} of writer {writer} after {last:#x}, {side:?}, agent {me}"
                );
                known.seen[writer] = got;
                fire.report.count(Kind::Read);
            }
        }
    }
}

/// Does something to a word, as that side can. The caller holds the region's lock.
pub(crate) fn access(
    fire: &Fire,
    side: Side,
    region: &Region,
    page: usize,
    word: usize,
    write: bool,
    work: &dyn Fn(&AtomicU64) -> u64,
) -> u64 {
    let Side::Unit(number) = side else { return work(region.word(page, word)) };
    let accelerator = &fire.accelerators[number];
    let vpn = region.map().page(page);
    loop {
        let table = accelerator.driver.notifier().table();
        match table.entries.get(&vpn) {
            Some(Entry::Frame(frame)) => {
                fire.report.count(Kind::InFrame);
                return work(accelerator.vram.inner().word(frame.pfn, word));
            }
            Some(Entry::Exclusive(addr)) => {
                fire.report.count(Kind::InExclusive);
                return work(exclusive_word(*addr, word));
            }
            Some(Entry::System { write: may_write }) if *may_write || !write => {
                drop(table);
                fire.report.count(Kind::InSystem);
                return work(region.word(page, word));
            }
            Some(Entry::System { .. }) | None => {}
        }
        drop(table);
        fault(accelerator, vpn, write);
        fire.report.count(Kind::DeviceFault);
    }
}

/// A word of a page that the device has to itself. The caller holds the lock of the table that says so.
fn exclusive_word<'a>(addr: u64, word: usize) -> &'a AtomicU64 {
    let start = std::ptr::with_exposed_provenance_mut::<u64>(usize::try_from(addr).expect("an address"));
    // SAFETY: aligned, and a page of staging as long as the table has the entry (I5), for us alone.
    unsafe { AtomicU64::from_ptr(start.wrapping_add(word)) }
}

fn fault(accelerator: &crate::Accelerator, page: Vpn, write: bool) {
    let want = if write { Request::FAULT | Request::WRITE } else { Request::FAULT };
    match accelerator.driver.fault(PageRange::new(page, 1), want) {
        // It was changing for too long; the caller tries again.
        Ok(_) | Err(RangeError::Busy) => {}
        Err(error) => panic!("device fault at {page:?}, write {write}: {error}"),
    }
}
