//! Compares the devices' page tables with where the pages are (I2).
//!
//! An entry is true as long as nothing has changed since `read_begin`; so the entries are read, then the pages' states, and
//! what was found counts if nothing has changed in between. The driver migrates nothing meanwhile, of which it is not told;
//! the mapping stays as it is.

use std::sync::PoisonError;

use hmm::core::driver::Select;
use hmm::core::mirror::{Found, RangeFault};
use hmm::core::state::PageState;
use hmm_conformance::{Entry, Rng};

use crate::{Accelerator, Fire, Kind, Region};

pub(crate) fn audit(fire: &Fire, rng: &mut Rng) {
    while fire.goes_on() {
        std::thread::sleep(std::time::Duration::from_micros(200 + rng.bits() % 2000));
        let index = rng.below(fire.regions.len());
        let region = &fire.regions[index];
        let accelerator = &fire.accelerators[rng.below(fire.accelerators.len())];
        fire.report.now("audit", index, 0);
        let rules = region.read();
        let working = accelerator.working.write().unwrap_or_else(PoisonError::into_inner);
        let first = rng.below(region.map().nr_pages());
        audit_pages(fire, accelerator, region, first);
        drop((working, rules));
    }
}

fn audit_pages(fire: &Fire, accelerator: &Accelerator, region: &Region, first: usize) {
    let driver = &accelerator.driver;
    let range = region.map().part(first, (region.map().nr_pages() - first).min(16));
    let seq = driver.notifier().read_begin();
    let mut entries: [Option<Entry>; 16] = [None; 16];
    {
        let table = driver.notifier().table();
        for (entry, page) in entries.iter_mut().zip(range.iter()) {
            *entry = table.entries.get(&page).copied();
        }
    }
    let mut pfns = [Default::default(); 16];
    let mut look = RangeFault::snapshot(
        range,
        Some(driver.owner()),
        &mut pfns[..usize::try_from(range.nr_pages()).unwrap_or(0)],
    );
    let looked = fire.space.range_fault(driver.notifier(), seq, &mut look);
    let states = range.iter().map(|page| fire.space.state(page)).collect::<Vec<_>>();
    if driver.notifier().check_retry(seq) || looked.is_err() {
        return;
    }
    for ((page, entry), (state, pfn)) in range.iter().zip(entries).zip(states.iter().zip(pfns)) {
        let Some(entry) = entry else { continue };
        let is_true = match (entry, state) {
            // Somebody is about to bring it home: the driver will be told before it is read.
            (Entry::Frame(mine), PageState::Device { frame } | PageState::Fetching { frame, .. }) => {
                mine == *frame
            }
            (Entry::Exclusive(_), state) => matches!(state, PageState::Exclusive { .. }),
            // The kernel itself moves pages about (compaction), and then it is not mapped for a moment.
            (Entry::System { .. }, PageState::System { .. } | PageState::Coherent { .. })
                if pfn.found == Found::None =>
            {
                true
            }
            // It has migrated to this device's frame, but could not be mapped at the end: the first access has it mapped.
            (Entry::System { .. }, PageState::Device { frame }) if pfn.found == Found::None => {
                driver.select() == Select::COHERENT && frame.device == driver.id().number()
            }
            (Entry::System { .. }, _) => matches!(pfn.found, Found::System { .. } | Found::Coherent(..)),
            (Entry::Frame(_), _) => false,
        };
        assert!(is_true, "{page:?} has the entry {entry:?}, and is {state:?}, {pfn:?}");
        let is_coherent = matches!(pfn.found, Found::Coherent(..));
        fire.report.count(if is_coherent { Kind::AuditedCoherent } else { Kind::Audited });
    }
}
