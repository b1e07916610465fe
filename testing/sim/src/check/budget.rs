//! The budget holds (I9): what is charged is what is resident, and no more than the user allowed.

use std::sync::atomic::Ordering;

use hmm_core::Engine;

use super::homes::Census;
use crate::kernel::SimKernel;
use crate::machine::Machine;
use crate::shared::Shared;

/// At any time, also in the middle of the engine's work: what is resident is charged. Not counted are pages that the
/// engine has been told to be gone, and will be, and such that came behind its back.
pub(crate) fn check_resident(shared: &Shared, machine: &Machine) {
    let staged = machine.slots.nr_present();
    let charged = shared.ledger.charged();
    if (machine.memory.nr_of_system() + staged) as u64 <= charged {
        return;
    }
    let counts = |page: &u32| {
        machine.memory.is_managed(*page)
            && machine.memory.is_of_system(*page)
            && !machine.strangers.contains(page)
            && !machine.dropping.iter().any(|span| span.contains(*page))
    };
    let mapped = machine.arena().all().pages().filter(counts).count();
    assert!(
        (mapped + staged) as u64 <= charged,
        "{mapped} pages mapped, {staged} in staging, {charged} charged"
    );
}

/// Between two calls of the engine: what is charged is what is resident, within the budget.
pub(crate) fn check(shared: &Shared, machine: &Machine, engine: &Engine<SimKernel>, census: &Census) {
    let charged = shared.ledger.charged();
    let resident = census.nr_system + census.nr_staged + engine.nr_stock();
    assert_eq!(charged, resident, "charged, and resident ({census:?}, {} in stock)", engine.nr_stock());
    assert_eq!(
        shared.stats.away.load(Ordering::Relaxed),
        census.nr_away,
        "the gauge, and pages that are away"
    );
    let found = machine.nr_adopted + shared.stats.pgadopt.load(Ordering::Relaxed);
    let allowed = shared.ledger.budget() + found + shared.stats.overcharged.load(Ordering::Relaxed);
    assert!(
        shared.ledger.peak() <= allowed,
        "{} pages were charged, {allowed} are allowed",
        shared.ledger.peak()
    );
}
