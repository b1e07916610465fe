//! Looking at resident memory, against what the kernel takes to tell that it is resident.

use super::figure::Figure;
use super::memory::{Memory, PageKind};
use super::sample::{Found, Sampler, time};
use super::space::space;
use anyhow::{Context, Result, ensure};
use hmm::core::addr::PageRange;
use hmm::core::mirror::{Found as Place, Pfn, RangeFault};
use hmm::core::notifier::{Change, Pass, Watch};
use hmm_uapi::pagemap::{Categories, PageRegion, Pagemap, ScanArgs};
use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// A device without a table.
struct Nothing;

impl Watch for Nothing {
    type Table = ();

    fn invalidate(&self, (): &mut (), _: &Change) -> Pass {
        Pass::Done
    }
}

const fn resident(write: bool) -> Pfn {
    Pfn { found: Place::System { zero: false }, write, order: 0, protected: false }
}

/// The floor: what PAGEMAP_SCAN tells, written down for each page.
fn scan(pagemap: &Pagemap, memory: &Memory, pfns: &mut [Pfn]) -> Result<()> {
    let categories = Categories::PRESENT | Categories::PFNZERO | Categories::HUGE;
    let mut at = memory.addrs();
    let first = memory.pages().start.0;
    while at.start < at.end {
        let mut regions = [PageRegion::default(); 64];
        let scanned = pagemap.scan(at, ScanArgs::any(categories), &mut regions).context("PAGEMAP_SCAN")?;
        for region in &regions[..scanned.nr_regions] {
            let pages = PageRange::of_bytes(region.range().start, region.range().end);
            let index = |page: u64| usize::try_from(page - first).unwrap_or(usize::MAX);
            pfns[index(pages.start.0)..index(pages.end.0)].fill(resident(true));
        }
        at.start = scanned.walk_end;
    }
    Ok(())
}

/// Measures the snapshot of memory that a driver has managed, and that is all resident.
///
/// # Errors
/// A page is not told as resident.
pub(crate) fn measure(nr_bytes: usize, rounds: u64) -> Result<Found> {
    let space = space()?;
    let memory = Memory::filled(nr_bytes, PageKind::Small, 1)?;
    space.manage(memory.pages())?;
    let notifier = space.watch(memory.pages(), Arc::new(Mutex::new(())), Nothing)?;
    let pagemap = Pagemap::open().context("cannot open /proc/self/pagemap")?;
    let mut found = Sampler::default();
    let mut pfns = vec![Pfn::default(); memory.nr_pages()];
    for round in 0..=rounds {
        pfns.fill(Pfn::default());
        let mut result = Ok(());
        let floor = time(|| result = scan(&pagemap, &memory, black_box(&mut pfns)));
        result?;
        ensure!(pfns.iter().all(|pfn| *pfn == resident(true)), "PAGEMAP_SCAN misses resident pages");
        pfns.fill(Pfn::default());
        let mut result = None;
        let seconds = time(|| {
            let mut fault = RangeFault::snapshot(memory.pages(), None, black_box(&mut pfns));
            result = Some(space.range_fault_within(&notifier, &mut fault, PATIENCE));
        });
        result.context("it has run")??;
        let wrong = pfns.iter().position(|pfn| *pfn != resident(true));
        ensure!(wrong.is_none(), "page {wrong:?} is told as {:?}", wrong.map(|at| pfns[at]));
        if round > 0 {
            let rate = |seconds: f64| memory.nr_pages() as f64 / seconds / 1e6;
            found.add(Figure::Snapshot, rate(seconds), rate(floor));
        }
    }
    memory.verify(1, 0)?;
    Ok(found.end())
}
