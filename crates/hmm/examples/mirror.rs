//! A driver in a page: a device that mirrors a vector of the program, and what it sees of it.
//!
//! The "device" has a page table of its own, reads through it, and adds numbers up. It learns of every change from a
//! notifier, and never uses an entry that is out of date.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hmm::AddressSpace;
use hmm::core::addr::{PAGE_SIZE, PageRange, Vpn};
use hmm::core::mirror::{Found, Pfn, RangeFault, Request};
use hmm::core::notifier::{Change, Notifier, Pass, Watch};
use hmm::mirror::pages;

/// The device's page table: which pages it may use, and whether it may write to them.
type PageTable = BTreeMap<Vpn, bool>;

struct Driver;

impl Watch for Driver {
    type Table = PageTable;

    fn invalidate(&self, table: &mut PageTable, change: &Change) -> Pass {
        // What it uses next it has to ask for anew.
        table.retain(|page, _| !change.range.contains(*page));
        Pass::Done
    }
}

/// One character for each page, as the device would find it now.
fn picture(space: &AddressSpace, notifier: &Notifier<Driver>) -> Result<String, Box<dyn std::error::Error>> {
    let range = notifier.range();
    let mut pfns = vec![Pfn::default(); usize::try_from(range.nr_pages())?];
    let mut look = RangeFault::snapshot(range, None, &mut pfns);
    space.range_fault_within(notifier, &mut look, Duration::from_secs(1))?;
    let letter = |pfn: &Pfn| match (pfn.found, pfn.write) {
        (Found::None, _) => '.',
        (Found::Error, _) => '!',
        (Found::System { zero: true }, _) => '0',
        (Found::System { zero: false }, false) => 'r',
        (Found::System { zero: false }, true) => 'w',
        (Found::Private(_), _) => 'D',
        (Found::Coherent(..), _) => 'C',
    };
    Ok(pfns.iter().map(letter).collect())
}

/// Has the pages brought, and enters them into the device's table.
fn map(
    space: &AddressSpace,
    notifier: &Notifier<Driver>,
    range: PageRange,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut pfns = vec![Pfn::default(); usize::try_from(range.nr_pages())?];
    loop {
        let mut fault = RangeFault::all(range, Request::FAULT, None, &mut pfns);
        let seq = space.range_fault_within(notifier, &mut fault, Duration::from_secs(1))?;
        let entered = notifier.install(seq, |table| {
            table.extend(range.iter().zip(&pfns).map(|(page, pfn)| (page, pfn.write)));
        });
        if entered.is_ok() {
            return Ok(());
        }
    }
}

/// What the device computes: the sum of the first word of each page that its table lets it see.
fn sum(notifier: &Notifier<Driver>, data: &[u64]) -> u64 {
    let table = notifier.table();
    let first = pages(data).start;
    // System memory is reached at the program's own addresses.
    table.keys().map(|page| data[usize::try_from(page.0 - first.0).unwrap_or(0) * (PAGE_SIZE / 8)]).sum()
}

#[cfg_attr(test, expect(dead_code, reason = "its test calls what it calls"))]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    run(&mut std::io::stdout())
}

/// Shows it.
pub(crate) fn run(out: &mut dyn Write) -> Result<(), Box<dyn std::error::Error>> {
    let space = AddressSpace::builder().build()?;
    let mut data = space.alloc(16 * PAGE_SIZE)?;
    let range = pages(data.as_slice::<u8>());
    let notifier = space.watch(range, Arc::new(Mutex::new(PageTable::new())), Driver)?;
    writeln!(out, "untouched:           {}", picture(&space, &notifier)?)?;

    for (number, page) in (1u64..).zip(data.as_mut_slice::<u64>().chunks_mut(PAGE_SIZE / 8).take(6)) {
        page[0] = number;
    }
    writeln!(out, "six pages written:   {}", picture(&space, &notifier)?)?;

    map(&space, &notifier, PageRange::new(range.start, 8))?;
    writeln!(out, "device maps eight:   {}", picture(&space, &notifier)?)?;
    let total = sum(&notifier, data.as_slice());
    writeln!(out, "the device's sum is {total}")?;

    let taken = space.evict_pages(PageRange::new(range.start, 3));
    writeln!(out, "{taken} taken out:         {}", picture(&space, &notifier)?)?;
    map(&space, &notifier, PageRange::new(range.start, 8))?;
    writeln!(out, "device maps again:   {}", picture(&space, &notifier)?)?;
    if sum(&notifier, data.as_slice()) != total || total != 21 {
        return Err("the device has seen wrong numbers".into());
    }
    Ok(())
}
