//! Pages that come home before a fork, because a child could not have them where they are.
//!
//! The thread that forks waits for that, so it is done only where it is enough, and not too much.

use hmm::core::Engine;
use hmm::core::addr::Vpn;
use hmm::core::kernel::Kernel;
use hmm::mm::Mm;

use crate::devices;

/// One in so many pages of the budget is little.
const LITTLE_SHARE: u64 = 4;
/// Pages that come between two looks at who else waits.
const STEP: usize = 64;
/// Pages of the budget that stay free: what comes home must have nothing else leave.
const FREE_PAGES: u64 = 256;

/// Brings home what is in files that cannot be shared, if it is little. Calls `meanwhile` now and then.
pub(crate) fn empty_unshareable(engine: &Engine<Mm>, meanwhile: &mut dyn FnMut()) {
    let enough = usize::try_from(engine.kernel().ledger().budget() / LITTLE_SHARE).unwrap_or(usize::MAX);
    let mut pages = Vec::new();
    for number in devices::unshareable(engine.kernel().procfs()) {
        engine.for_each_on(number, &mut |page| {
            if pages.len() <= enough {
                pages.push(page);
            }
        });
    }
    if pages.len() <= enough {
        bring_home(engine, &pages, meanwhile);
    }
}

/// Brings home all that is away, if the budget has room for it. Calls `meanwhile` now and then.
pub(crate) fn bring_all_home(engine: &Engine<Mm>, meanwhile: &mut dyn FnMut()) {
    let nr_away = engine.kernel().stats().away.load(std::sync::atomic::Ordering::Relaxed);
    if nr_away + FREE_PAGES > engine.free_pages() {
        return;
    }
    let mut pages = Vec::new();
    engine.for_each_absent(&mut |page| pages.push(page));
    bring_home(engine, &pages, meanwhile);
}

/// What does not come makes the fork fail.
fn bring_home(engine: &Engine<Mm>, pages: &[Vpn], meanwhile: &mut dyn FnMut()) {
    for some in pages.chunks(STEP) {
        some.iter().for_each(|page| _ = engine.fault(*page));
        meanwhile();
    }
}
